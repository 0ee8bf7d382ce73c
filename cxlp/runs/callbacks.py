"""Callbacks of a run: checkpoints, their metadata, random seeds, and training metrics."""

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


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes checkpoints atomically: a kill while writing keeps the earlier checkpoint.

    A checkpoint is written to a temporary file in the same folder, which is then renamed.

    Lightning writes to the system's temporary folder and moves the file. If the run's folder is on another disk, as it
    often is, the move is a copy, and the earlier checkpoint is lost before the new one is complete.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:  # noqa: ANN401 (Lightning's type)
        """Write a checkpoint; for a remote URL, use Lightning's method.

        Raises:
            CxlpError: If the checkpoint cannot be written, for example on a full disk; the earlier one is kept.
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
                os.fsync(file.fileno())  # otherwise the rename may reach the disk before the content
        except (OSError, RuntimeError) as error:  # torch raises RuntimeError on a full disk
            partial.unlink(missing_ok=True)
            behind = error if isinstance(error, OSError) else error.__context__
            reason = behind.strerror if isinstance(behind, OSError) else "the file is shorter than the data written"
            raise CxlpError(f"cannot write {path}: {reason}. Free disk space, or give another --run.root") from error
        partial.replace(path)


def checkpoints(folder: Path, monitor: str | None) -> list[ModelCheckpoint]:
    """Build the callbacks that save ``last.ckpt`` and, given a metric, ``finetuned.ckpt``.

    There are two callbacks because Lightning's ``save_last`` writes only when the best checkpoint changes, and because
    ``last.ckpt`` must be written at the end of an epoch even if validation runs within epochs: a run can be resumed
    only from the end of an epoch.

    Args:
        folder: The folder of the checkpoints.
        monitor: A metric to maximise, such as ``val/accuracy``; ties keep the earlier epoch. ``None``: save only
            ``last.ckpt``.

    Returns:
        The callbacks; the ``best_model_path`` of the first one is the best checkpoint of the stage.
    """
    last = LastCheckpoint(folder, filename="last", enable_version_counter=False, save_on_train_epoch_end=True)
    best = ModelCheckpoint(folder, filename="finetuned", monitor=monitor, mode="max", enable_version_counter=False)
    return [best, last] if monitor else [last]


class LastCheckpoint(ModelCheckpoint):
    """Saves ``last.ckpt``.

    A separate class, since Lightning cannot save the state of two callbacks with equal keys.
    """


class MovedCheckpoints(Callback):
    """Restores the best checkpoint of a resumed stage if the run's folder was moved or copied.

    A ``ModelCheckpoint`` stores absolute paths, and discards the best epoch if its folder has changed.
    """

    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Replace the paths in the callbacks' saved state by the present ones."""
        for callback in trainer.checkpoint_callbacks:
            state = checkpoint["callbacks"].get(callback.state_key)
            if isinstance(callback, ModelCheckpoint) and callback.dirpath and state and state.get("dirpath"):
                old, new = Path(state["dirpath"]), Path(callback.dirpath)
                if old != new:
                    _copy_best(callback.state_key, state, old, new, copies=trainer.is_global_zero)
                    state |= _with_moved_paths(state, old, new)


def _copy_best(key: str, state: dict[str, Any], old: Path, new: Path, copies: bool) -> None:
    """Copy the best checkpoint if it exists only at its old path and no other run has overwritten it."""
    best, score = Path(state["best_model_path"]), state["best_model_score"]
    there = new / os.path.relpath(best, old)
    if not state["best_model_path"] or score is None or there.is_file():
        return
    held = torch.load(best, map_location="cpu", weights_only=True)["callbacks"].get(key, {}) if best.is_file() else {}
    known = held.get("best_model_score")
    if known is None or not torch.equal(torch.as_tensor(known), torch.as_tensor(score)):
        if copies:
            print(f"warning: {best}, the best checkpoint so far, is missing: choosing among later epochs")  # noqa: T201
        return
    if copies:
        copy_whole(best, there)


def _with_moved_paths(state: dict[str, Any], old: Path, new: Path) -> dict[str, Any]:
    """Replace ``old`` by ``new`` in the state of a ``ModelCheckpoint``, and leave out missing files."""

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
    """Seeds torch at the start of each epoch, from the run's seed, the epoch and the rank.

    Random numbers on the device (dropout, stochastic depth) then do not depend on earlier epochs, and a resumed run
    draws the same numbers as an uninterrupted one.
    """

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Seed torch if the run has a seed."""
        seed = os.environ.get("PL_GLOBAL_SEED")  # Lightning stores the seed here for all processes
        if seed is not None:
            entropy = (int(seed), trainer.current_epoch, trainer.global_rank)
            torch.manual_seed(int(np.random.SeedSequence(entropy).generate_state(1, np.uint64)[0]))


class RestoreEarlyStop(Callback):
    """Ends a resumed stage immediately if early stopping had already ended it."""

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Stop if the checkpoint says that early stopping has ended the stage."""
        if any(isinstance(c, EarlyStopping) and c.stopped_epoch for c in trainer.callbacks):  # type: ignore[attr-defined]
            trainer.should_stop = True


class Progress(Callback):
    """Logs a run's progress, its speed, and gradient norms.

    The callback logs ``epoch``, counted over all stages, see :mod:`cxlp.runs.epochs`, and ``images_seen``, the total
    over all ranks and stages. At the logging interval it logs ``train/images_per_second``, the total over all ranks,
    and, for each parameter group of the optimizer, ``grad_norm/GROUP``, the Euclidean norm of its gradient before
    clipping.

    Attributes:
        first_epoch: The first epoch of the current stage, counted over all stages.
        images: Number of images seen so far.
        have_met: Event that is set when all processes are connected and training begins.
        phases: Number of images that passed through the backbone, by phase; excludes images with stored features.
    """

    def __init__(self) -> None:
        self.first_epoch = self.images = 0
        self.phases: dict[str, int] = {}
        self.have_met: Event | None = None  # set when the stage starts: an Event cannot be passed to spawned processes
        self._last = (0, 0.0)
        self._step = 0

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Signal that all processes are connected, and log at least once per epoch."""
        if self.have_met is not None:
            self.have_met.set()
        steps = max(1, trainer.num_training_batches // trainer.accumulate_grad_batches)
        trainer.log_every_n_steps = int(min(trainer.log_every_n_steps, steps))  # type: ignore[attr-defined]

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Restart the clock, so that the speed excludes validation and other work between epochs."""
        self._last = (self.images, time.perf_counter())
        self._step = trainer.global_step

    def on_before_optimizer_step(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: Optimizer
    ) -> None:
        """Log the norms of the unscaled gradients, which are averaged over all ranks."""
        every: int = trainer.log_every_n_steps  # type: ignore[attr-defined]
        if not every or (trainer.global_step + 1) % every:
            return
        # With a fused optimizer, gradients are still multiplied by the loss scale of mixed precision.
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
        """Count images, and log the speed.

        After the last batch of a frozen pass, this hook runs before the fit, which is timed separately.
        """
        read = read_batch(batch)
        count = len(read.labels) * trainer.world_size
        self.images += count
        if not read.stored:
            phase = "extraction" if isinstance(pl_module, Frozen) else "fine-tuning"
            self.phases[phase] = self.phases.get(phase, 0) + count
        every: int = trainer.log_every_n_steps  # type: ignore[attr-defined]
        # Lightning logs a row by the number of steps over all epochs (of batches in a frozen pass), and when it stops.
        before, self._step = self._step, batch_idx + 1 if isinstance(pl_module, Frozen) else trainer.global_step
        due = every and self._step > before and self._step % every == 0
        if due or (every and trainer.should_stop):  # logging a number copies it to the GPU and waits for the copy
            self._log_position(trainer, pl_module)
            now = time.perf_counter()
            images, then = self._last
            pl_module.log("train/images_per_second", (self.images - images) / (now - then), rank_zero_only=True)
            self._last = (self.images, now)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Log epoch and image count with the epoch's means."""
        self._log_position(trainer, pl_module)

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Log epoch and image count with the validation metrics."""
        self._log_position(trainer, pl_module)

    def on_test_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Log the epoch of the tested weights with the test metrics."""
        self._log_position(trainer, pl_module)

    def _log_position(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        pl_module.log("images_seen", float(self.images), rank_zero_only=True)
        pl_module.log("epoch", float(self.first_epoch + trainer.current_epoch), rank_zero_only=True)


class Record(Callback):
    """Adds metadata to checkpoints: ``cxlp_run`` on the run, and ``image`` for prediction.

    All values have plain types.

    Args:
        facts: Returns the metadata of the run.
        image: Size and preprocessing of the images.
    """

    def __init__(self, facts: Callable[[], dict[str, Any]], image: dict[str, Any]) -> None:
        self.facts, self.image = facts, image

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Add the metadata."""
        checkpoint["cxlp_run"] = self.facts()
        checkpoint.setdefault("cxlp", {})["image"] = self.image


def wandb_logger(trainer: pl.Trainer) -> WandbLogger | None:
    """A Trainer's wandb logger, if it has one."""
    return next((logger for logger in trainer.loggers if isinstance(logger, WandbLogger)), None)
