"""What a run leaves behind: tables and pictures of the test, the identity of the run in its checkpoints."""

import csv
import io
import os
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback, ModelCheckpoint
from pytorch_lightning.loggers import WandbLogger
from torch import Tensor

from cxlp.errors import CxlpError

_HELD: list[IO[str]] = []  # an open file keeps its lock


def write_whole(path: Path, content: bytes | str) -> None:
    """Write a file aside and rename it, so that no reader ever sees half of it."""
    data = content.encode() if isinstance(content, str) else content
    partial = path.with_name(f".{path.name}.{os.getpid()}.part")
    partial.write_bytes(data)
    partial.replace(path)


def hold(folder: Path) -> None:
    """Keep a run's folder for this process, until :func:`let_go` or its end.

    Raises:
        CxlpError: If another process has it: two would overwrite each other's checkpoints.
    """
    if fcntl is None:  # not on this system
        return
    file = (folder / ".lock").open("w")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise CxlpError(f"another process is working in {folder}: wait for it, or stop it") from error
    _HELD.append(file)


def let_go() -> None:
    """Give the folders free that this process holds."""
    while _HELD:
        _HELD.pop().close()


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
    callbacks = [best, last] if monitor else [last]
    for callback in callbacks:
        # The frozen epoch takes no gradient step, and Lightning would not save at step 0.
        callback._last_global_step_saved = -1
    return callbacks


class RunIdentity(Callback):
    """Puts into each checkpoint which wandb run it belongs to, so that a resumed run continues it."""

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Add ``cxlp_run``."""
        wandb = _wandb(trainer)
        checkpoint["cxlp_run"] = {"wandb_id": None if wandb is None else wandb.version}


class TestReport(Callback):
    """Writes ``per_class.csv`` and ``confusion_matrix.png`` of a test, and logs both to wandb.

    Args:
        folder: The run's folder.
    """

    __test__ = False  # not a test case of pytest's

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def on_test_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Compute on every rank, write on rank 0."""
        counts: Tensor = pl_module.confusion.compute().cpu()  # type: ignore[operator, union-attr]
        pl_module.confusion.reset()  # type: ignore[operator, union-attr]
        if not trainer.is_global_zero:
            return
        classes = pl_module.network.classes  # type: ignore[union-attr]
        columns, rows = per_class(counts, classes)  # type: ignore[arg-type]
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows([columns, *rows])
        write_whole(self.folder / "per_class.csv", text.getvalue())
        picture = self.folder / "confusion_matrix.png"
        write_whole(picture, draw_confusion(counts, classes))  # type: ignore[arg-type]
        wandb = _wandb(trainer)
        if wandb is not None:
            wandb.log_table("test/per_class", columns=columns, data=rows)
            wandb.log_image("test/confusion_matrix", [str(picture)])


def per_class(counts: Tensor, classes: Sequence[str]) -> tuple[list[str], list[list[Any]]]:
    """Tabulate a confusion matrix ``(true, predicted)``: worst class first, with what it is taken for."""
    rows: list[list[Any]] = []
    for k, name in enumerate(classes):
        total, right = int(counts[k].sum()), int(counts[k, k])
        wrong = counts[k].clone()
        wrong[k] = 0
        taken_for = classes[int(wrong.argmax())] if int(wrong.sum()) else ""
        rows.append([name, total, right, round(right / total, 4) if total else None, taken_for, int(wrong.max())])
    rows.sort(key=lambda row: (row[3] is None, row[3]))
    return ["class", "images", "right", "accuracy", "most often taken for", "times"], rows


def draw_confusion(counts: Tensor, classes: Sequence[str]) -> bytes:
    """Draw a confusion matrix, rows summing to 1; names and numbers where they can be read. Returns a PNG."""
    # matplotlib's object interface: pyplot would look for a screen and keep state between runs.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    n = len(classes)
    rates = counts.float() / counts.sum(dim=1, keepdim=True).clamp_min(1)
    side = min(16.0, 4.0 + 0.35 * n)
    figure = Figure(figsize=(side + 1.5, side), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    shown = axes.imshow(rates.numpy(), cmap="Blues", vmin=0, vmax=1)
    figure.colorbar(shown, ax=axes, shrink=0.8, label="part of the true class")
    accuracy = float(torch.trace(counts) / counts.sum().clamp_min(1))
    axes.set(xlabel="predicted", ylabel="true", title=f"{accuracy:.1%} of {int(counts.sum())} test images")
    if n <= 60:
        short = [name if len(name) <= 28 else name[:27] + "…" for name in classes]
        axes.set_xticks(range(n), short, rotation=90, fontsize=8)
        axes.set_yticks(range(n), short, fontsize=8)
    if n <= 20:
        for i, j in (counts > 0).nonzero().tolist():
            colour = "white" if rates[i, j] > 0.5 else "black"
            axes.text(j, i, str(int(counts[i, j])), ha="center", va="center", color=colour, fontsize=8)
    picture = io.BytesIO()
    figure.savefig(picture, dpi=120)
    return picture.getvalue()


def _wandb(trainer: pl.Trainer) -> WandbLogger | None:
    return next((logger for logger in trainer.loggers if isinstance(logger, WandbLogger)), None)
