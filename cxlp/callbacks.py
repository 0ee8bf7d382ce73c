"""What a run leaves behind: tables and pictures of the test, the identity of the run in its checkpoints."""

import csv
import io
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback, ModelCheckpoint
from pytorch_lightning.loggers import WandbLogger
from pytorch_lightning.plugins.io import TorchCheckpointIO

from cxlp.reports import confusion_table, draw_confusion, draw_precisions, precision_table
from cxlp.tasks.base import CrossLayerTask


def write_whole(path: Path, content: bytes | str) -> None:
    """Write a file aside and rename it, so that no reader ever sees half of it."""
    data = content.encode() if isinstance(content, str) else content
    partial = path.with_name(f".{path.name}.{os.getpid()}.part")
    partial.write_bytes(data)
    partial.replace(path)


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
        # One name for all attempts: the folder is one process's, and what a kill leaves is written over.
        partial = path.with_name(f".{path.name}.part")
        with partial.open("wb") as file:
            torch.save(checkpoint, file)
            file.flush()
            os.fsync(file.fileno())  # else the rename may reach the disk before what is renamed
        partial.replace(path)


def checkpoints(folder: Path, monitor: str | None) -> list[ModelCheckpoint]:
    """Make ``last.ckpt``, and ``best.ckpt`` by a validation metric where there is one.

    Two callbacks, because Lightning's ``save_last`` writes only when the best one changes.

    Args:
        folder: Where they go.
        monitor: A metric to maximise, such as ``val/accuracy``; of equals, the earliest is the best.

    Returns:
        The callbacks; the first one's ``best_model_path`` is what is to be tested.
    """
    last = ModelCheckpoint(folder, filename="last", enable_version_counter=False)
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
        wandb = _wandb(trainer)
        checkpoint["cxlp_run"] = {"wandb_id": None if wandb is None else wandb.version}


class TestReport(Callback):
    """Writes the test's result class by class as ``per_class.csv`` and as a picture, and logs both to wandb.

    With one label per image the picture is ``confusion_matrix.png``, with several
    ``average_precision.png``.

    Args:
        folder: The run's folder.
    """

    __test__ = False  # not a test case of pytest's

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def on_test_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Compute on every rank, write on rank 0."""
        assert isinstance(pl_module, CrossLayerTask)
        found: Any = pl_module.per_class.compute()  # counts, or precisions by their names
        pl_module.per_class.reset()
        if not trainer.is_global_zero:
            return
        classes = pl_module.network.classes
        if pl_module.network.multi_label:
            labels = torch.tensor([s.label for s in trainer.datamodule.splits["test"].samples])  # type: ignore[attr-defined]
            names = sorted(found, key=lambda name: (name == "AP", name))  # the un-interpolated one last: it is drawn
            columns, rows = precision_table({name: found[name].cpu() for name in names}, labels, classes)
            name, drawing = "average_precision", draw_precisions(columns, rows)
        else:
            columns, rows = confusion_table(found.cpu(), classes)
            name, drawing = "confusion_matrix", draw_confusion(found.cpu(), classes)
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows([columns, *rows])
        write_whole(self.folder / "per_class.csv", text.getvalue())
        picture = self.folder / f"{name}.png"
        write_whole(picture, drawing)
        wandb = _wandb(trainer)
        if wandb is not None:
            wandb.log_table("test/per_class", columns=columns, data=rows)
            wandb.log_image(f"test/{name}", [str(picture)])


def _wandb(trainer: pl.Trainer) -> WandbLogger | None:
    return next((logger for logger in trainer.loggers if isinstance(logger, WandbLogger)), None)
