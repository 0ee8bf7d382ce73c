"""Along the way of a run: its checkpoints, whose they are, and figures of training beside the loss."""

import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback, ModelCheckpoint, TQDMProgressBar
from pytorch_lightning.loggers import WandbLogger
from pytorch_lightning.plugins.io import TorchCheckpointIO
from torch.nn.utils import get_total_norm
from torch.optim import Optimizer


class WholeCheckpoints(TorchCheckpointIO):
    """Writes a checkpoint beside its place and renames it, so that a kill within leaves the earlier one as it was.

    Lightning's own writes it below the system's temporary folder and moves it: where that is another disk, as a run's
    folder often is, moving is copying, and the earlier checkpoint is lost before the new one is whole.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:  # noqa: ANN401 (Lightning's type)
        """Write a checkpoint; to a remote address, as Lightning does."""
        if storage_options is not None or "://" in str(path):
            super().save_checkpoint(checkpoint, path, storage_options)
            return
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f".{path.name}.part")
        with partial.open("wb") as file:
            torch.save(checkpoint, file)
            file.flush()
            os.fsync(file.fileno())  # else the rename may reach the disk before what is renamed
        partial.replace(path)


def checkpoints(folder: Path, monitor: str | None) -> list[ModelCheckpoint]:
    """Make ``last.ckpt``, and ``best.ckpt`` by a validation metric where there is one.

    Two callbacks, because Lightning's ``save_last`` writes only when the best one changes. And because ``last.ckpt``
    waits for the end of an epoch: only there can a run be taken up, even where validation comes within epochs.

    Args:
        folder: Where they go.
        monitor: A metric to maximise, such as ``val/accuracy``; of equals, the earliest is the best.

    Returns:
        The callbacks; the first one's ``best_model_path`` is what is to be tested.
    """
    last = ModelCheckpoint(folder, filename="last", enable_version_counter=False, save_on_train_epoch_end=True)
    best = ModelCheckpoint(folder, filename="best", monitor=monitor, mode="max", enable_version_counter=False)
    return [save_from_step_0(callback) for callback in ([best, last] if monitor else [last])]


def save_from_step_0(callback: ModelCheckpoint) -> ModelCheckpoint:
    """Have a callback save the frozen epoch, too: it takes no gradient step, and Lightning does not save at step 0."""
    callback._last_global_step_saved = -1
    return callback


class EpochSeed(Callback):
    """Seeds torch anew for each epoch, by the run's seed, the epoch and the rank.

    So what is drawn on the device (dropout, stochastic depth, mixing of images) does not hang on what was drawn
    before, and a resumed run draws what an uninterrupted one would have.
    """

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Seed, unless ``seed_everything`` is false."""
        seed = os.environ.get("PL_GLOBAL_SEED")  # where Lightning leaves it for all processes
        if seed is not None:
            entropy = (int(seed), trainer.current_epoch, trainer.global_rank)
            torch.manual_seed(int(np.random.SeedSequence(entropy).generate_state(1, np.uint64)[0]))


class RunIdentity(Callback):
    """Puts into each checkpoint which wandb run it belongs to, so that a resumed run continues it."""

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Add ``cxlp_run``."""
        wandb = wandb_logger(trainer)
        checkpoint["cxlp_run"] = {"wandb_id": None if wandb is None else wandb.version}


class TrainingWatch(Callback):
    """Logs, beside the loss, how many images were handed out, how fast, and the sizes of gradients.

    At the logging interval: ``images_seen``, of all ranks since the run began; ``train/images_per_second``, of all
    ranks since the epoch's last logging; and, of each group of parameters that gradient descent moves,
    ``grad_norm/GROUP``, the Euclidean norm of its gradient before any clipping. Validation logs ``images_seen``, too,
    so that all curves can be drawn over them.
    """

    def __init__(self) -> None:
        self.images = 0
        self._last = (0, 0.0)

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Add ``cxlp_images_seen``."""
        checkpoint["cxlp_images_seen"] = self.images

    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Go on counting in a resumed run; the test of an earlier checkpoint takes nothing back."""
        if trainer.state.fn == "fit":
            self.images = checkpoint.get("cxlp_images_seen", 0)

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Leave validation and what else was between epochs out of the speed."""
        self._last = (self.images, time.perf_counter())

    def on_before_optimizer_step(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: Optimizer
    ) -> None:
        """Measure gradients: unscaled, of all ranks."""
        if not trainer._logger_connector.should_update_logs:
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
        self.images += len(batch["label"]) * trainer.world_size
        if trainer._logger_connector.should_update_logs:  # logging a number copies it to the GPU, and waits for that
            pl_module.log("images_seen", float(self.images), rank_zero_only=True)
            now = time.perf_counter()
            images, then = self._last
            pl_module.log("train/images_per_second", (self.images - images) / (now - then), rank_zero_only=True)
            self._last = (self.images, now)

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Put the count beside the metrics of validation."""
        pl_module.log("images_seen", float(self.images), rank_zero_only=True)


class TrainingBar(TQDMProgressBar):
    """A progress bar that moves with each batch, and shows figures of training at the logging interval.

    Lightning's own reads the loss at each step, which waits for the GPU.
    """

    def __init__(self) -> None:
        super().__init__()
        self._shown: dict[str, int | str | float | dict[str, float]] = {}

    def get_metrics(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule
    ) -> dict[str, int | str | float | dict[str, float]]:
        """Read the figures anew, or give the last ones within the interval."""
        every = trainer.log_every_n_steps  # type: ignore[attr-defined]
        within = trainer.training and not trainer.is_last_batch and every and self.train_progress_bar.n % every
        if not within:
            self._shown = super().get_metrics(trainer, pl_module)
        return self._shown


def wandb_logger(trainer: pl.Trainer) -> WandbLogger | None:
    """A Trainer's wandb logger, if it has one."""
    return next((logger for logger in trainer.loggers if isinstance(logger, WandbLogger)), None)
