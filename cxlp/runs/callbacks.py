"""Along the way of a run: its checkpoints, whose they are, and figures of training beside the loss."""

import os
import time
from collections.abc import Callable
from pathlib import Path
from threading import Event
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback, EarlyStopping, ModelCheckpoint
from pytorch_lightning.loggers import WandbLogger
from pytorch_lightning.plugins.io import TorchCheckpointIO
from torch.nn.utils import get_total_norm
from torch.optim import Optimizer

from cxlp.tasks import Frozen
from cxlp.tasks.batch import read_batch
from cxlp.utils.errors import CxlpError
from cxlp.utils.files import copy_whole


class WholeCheckpoints(TorchCheckpointIO):
    """Writes a checkpoint beside its place and renames it, so that a kill within leaves the earlier one as it was.

    Lightning's own writes it below the system's temporary folder and moves it: where that is another disk, as a run's
    folder often is, moving is copying, and the earlier checkpoint is lost before the new one is whole.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:  # noqa: ANN401 (Lightning's type)
        """Write a checkpoint; to a remote address, as Lightning does.

        Raises:
            CxlpError: If it cannot be written, as where the disk is full; the earlier one is kept.
        """
        if storage_options is not None or "://" in str(path):
            super().save_checkpoint(checkpoint, path, storage_options)
            return
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f".{path.name}.part")
        try:
            with partial.open("wb") as file:
                torch.save(checkpoint, file)
                file.flush()
                os.fsync(file.fileno())  # else the rename may reach the disk before what is renamed
        except (OSError, RuntimeError) as error:  # torch has words of its own for a disk that is full
            partial.unlink(missing_ok=True)
            behind = error if isinstance(error, OSError) else error.__context__
            reason = behind.strerror if isinstance(behind, OSError) else "the file became shorter than what was written"
            raise CxlpError(f"cannot write {path}: {reason}. Make room there, or give another --run.root") from error
        partial.replace(path)


def checkpoints(folder: Path, monitor: str | None) -> list[ModelCheckpoint]:
    """Make ``last.ckpt``, and ``finetuned.ckpt`` by a validation metric where there is one.

    Two callbacks, because Lightning's ``save_last`` writes only when the best one changes. And because ``last.ckpt``
    waits for the end of an epoch: only there can a run be taken up, even where validation comes within epochs.

    Args:
        folder: Where they go.
        monitor: A metric to maximise, such as ``val/accuracy``; ties keep the earlier epoch.

    Returns:
        The callbacks; the first one's ``best_model_path`` is the best of the stage.
    """
    last = LastCheckpoint(folder, filename="last", enable_version_counter=False, save_on_train_epoch_end=True)
    best = ModelCheckpoint(folder, filename="finetuned", monitor=monitor, mode="max", enable_version_counter=False)
    return [best, last] if monitor else [last]


class LastCheckpoint(ModelCheckpoint):
    """The run's own: of a class of its own, since two of one class and metric cannot both be saved."""


class MovedCheckpoints(Callback):
    """Finds the best checkpoint of a resumed stage again where its folder was moved or copied.

    A ``ModelCheckpoint`` keeps absolute paths, and forgets which epoch was best where its folder is another one.
    """

    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Put the present places into what the callbacks are about to take over."""
        for callback in trainer.checkpoint_callbacks:
            state = checkpoint["callbacks"].get(callback.state_key)
            if isinstance(callback, ModelCheckpoint) and callback.dirpath and state and state.get("dirpath"):
                old, new = Path(state["dirpath"]), Path(callback.dirpath)
                if old != new:
                    _bring_best(callback.state_key, state, old, new, copies=trainer.is_global_zero)
                    state |= _moved(state, old, new)


def _bring_best(key: str, state: dict[str, Any], old: Path, new: Path, copies: bool) -> None:
    """Copy the best checkpoint where it is still at its old place only, unless another run has overwritten it."""
    best, score = Path(state["best_model_path"]), state["best_model_score"]
    there = new / os.path.relpath(best, old)
    if not state["best_model_path"] or score is None or there.is_file():
        return
    held = torch.load(best, map_location="cpu", weights_only=True)["callbacks"].get(key, {}) if best.is_file() else {}
    known = held.get("best_model_score")
    if known is None or not torch.equal(torch.as_tensor(known), torch.as_tensor(score)):
        if copies:
            print(f"warning: {best}, the best epoch so far, is not there any more: later ones compete")  # noqa: T201
        return
    if copies:
        copy_whole(best, there)


def _moved(state: dict[str, Any], old: Path, new: Path) -> dict[str, Any]:
    """The state of a ``ModelCheckpoint`` with the paths of files that are there; others are left out."""

    def place(path: str) -> str:
        there = new / os.path.relpath(path, old) if path else Path()
        return str(there) if there.is_file() else ""

    kept = {place(path): score for path, score in state["best_k_models"].items() if place(path)}
    names = ("best_model_path", "kth_best_model_path", "last_model_path")
    found: dict[str, Any] = {name: place(state[name]) for name in names}
    if not found["best_model_path"]:
        found |= {"best_model_score": None, "current_score": None}
    return {**found, "dirpath": str(new), "best_k_models": kept}


class EpochSeed(Callback):
    """Seeds torch anew for each epoch, by the run's seed, the epoch and the rank.

    So what is drawn on the device (dropout, stochastic depth) does not depend on what was drawn before, and a resumed
    run draws what an uninterrupted one would have.
    """

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Seed, if the run was."""
        seed = os.environ.get("PL_GLOBAL_SEED")  # where Lightning leaves it for all processes
        if seed is not None:
            entropy = (int(seed), trainer.current_epoch, trainer.global_rank)
            torch.manual_seed(int(np.random.SeedSequence(entropy).generate_state(1, np.uint64)[0]))


class StopWhereItStopped(Callback):
    """Ends a resumed stage at once that early stopping had ended before."""

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Look at what the checkpoint says of early stopping."""
        if any(isinstance(c, EarlyStopping) and c.stopped_epoch for c in trainer.callbacks):  # type: ignore[attr-defined]
            trainer.should_stop = True


class Progress(Callback):
    """Logs, beside the loss, where a run is, how fast it goes, and the sizes of gradients.

    Logged are ``epoch``, counted over all stages, see :mod:`cxlp.runs.epochs`;
    ``images_seen``, of all ranks and stages; at the logging interval ``train/images_per_second``, of all ranks, and, of
    each group of parameters that gradient descent moves, ``grad_norm/GROUP``, the Euclidean norm of its gradient before
    any clipping.

    Attributes:
        first_epoch: The first epoch of the present stage, counted likewise.
        images: Seen so far.
        have_met: Is set when all processes have met and training begins.
        phases: How many of them went through the backbone, by phase; those whose features were there already did not.
    """

    def __init__(self) -> None:
        self.first_epoch = self.images = 0
        self.phases: dict[str, int] = {}
        self.have_met: Event | None = None  # made with the stage: spawned processes cannot be given one
        self._last = (0, 0.0)
        self._step = 0

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Tell that all processes are there, and have each epoch logged at least once, however few steps it has."""
        if self.have_met is not None:
            self.have_met.set()
        steps = max(1, trainer.num_training_batches // trainer.accumulate_grad_batches)
        trainer.log_every_n_steps = int(min(trainer.log_every_n_steps, steps))  # type: ignore[attr-defined]

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Leave validation and what else was between epochs out of the speed."""
        self._last = (self.images, time.perf_counter())
        self._step = trainer.global_step

    def on_before_optimizer_step(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: Optimizer
    ) -> None:
        """Measure gradients: unscaled, of all ranks."""
        every: int = trainer.log_every_n_steps  # type: ignore[attr-defined]
        if not every or (trainer.global_step + 1) % every:
            return
        # Those of a fused optimizer are still multiplied by the scale of mixed precision.
        scaler = getattr(trainer.precision_plugin, "scaler", None)
        scaled = scaler is not None and getattr(optimizer, "_step_supports_amp_scaling", False)
        scale = scaler.get_scale() if scaler is not None and scaled else 1.0
        for number, group in enumerate(optimizer.param_groups):
            gradients = [p.grad for p in group["params"] if p.grad is not None]
            if gradients:
                norm = get_total_norm(gradients) / scale
                pl_module.log(f"grad_norm/{group.get('name', number)}", norm, rank_zero_only=True)

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,  # noqa: ANN401 (Lightning's type is wider)
        batch: Any,  # noqa: ANN401 (Lightning's type)
        batch_idx: int,
    ) -> None:
        """Count; after a frozen pass's last batch this comes before the solution, which takes its own time."""
        read = read_batch(batch)
        count = len(read.labels) * trainer.world_size
        self.images += count
        if not read.stored:
            phase = "extraction" if isinstance(pl_module, Frozen) else "fine-tuning"
            self.phases[phase] = self.phases.get(phase, 0) + count
        every: int = trainer.log_every_n_steps  # type: ignore[attr-defined]
        # When Lightning writes a row: by steps over all epochs, as which a frozen pass's batches count, and at a stop.
        before, self._step = self._step, batch_idx + 1 if isinstance(pl_module, Frozen) else trainer.global_step
        due = every and self._step > before and self._step % every == 0
        if due or (every and trainer.should_stop):  # logging a number copies it to the GPU, and waits for that
            self._tell(trainer, pl_module)
            now = time.perf_counter()
            images, then = self._last
            pl_module.log("train/images_per_second", (self.images - images) / (now - then), rank_zero_only=True)
            self._last = (self.images, now)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Put epoch and count beside the epoch's means."""
        self._tell(trainer, pl_module)

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Put epoch and count beside the metrics of validation."""
        self._tell(trainer, pl_module)

    def on_test_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Put the tested weights' epoch beside the metrics of the test."""
        self._tell(trainer, pl_module)

    def _tell(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        pl_module.log("images_seen", float(self.images), rank_zero_only=True)
        pl_module.log("epoch", float(self.first_epoch + trainer.current_epoch), rank_zero_only=True)


class Record(Callback):
    """Puts into each checkpoint what it is of, as plain values: ``cxlp_run``, and ``image`` for prediction.

    Args:
        facts: Makes them.
    """

    def __init__(self, facts: Callable[[], dict[str, Any]], image: dict[str, Any]) -> None:
        self.facts, self.image = facts, image

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Add them."""
        checkpoint["cxlp_run"] = self.facts()
        checkpoint.setdefault("cxlp", {})["image"] = self.image


def wandb_logger(trainer: pl.Trainer) -> WandbLogger | None:
    """A Trainer's wandb logger, if it has one."""
    return next((logger for logger in trainer.loggers if isinstance(logger, WandbLogger)), None)
