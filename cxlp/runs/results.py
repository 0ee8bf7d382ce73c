"""What a run leaves when it has been tested: ``metrics.json``, the end of its wandb run, its report, a table."""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.loggers import WandbLogger
from rich.console import Console
from rich.table import Table

from cxlp.data.datamodule import ImageDataModule
from cxlp.reports.formatting import as_text
from cxlp.reports.history import how_to_look
from cxlp.reports.page import write_report
from cxlp.runs.cost import measure_cost
from cxlp.runs.loggers import RunConfig, close_wandb
from cxlp.runs.refit import Choice
from cxlp.tasks.base import CrossLayerTask
from cxlp.utils.files import write_whole
from cxlp.utils.profiling import peak_memory


@dataclass(frozen=True)
class Results:
    """What came out, on rank 0.

    Attributes:
        trainer: It has fitted and tested.
        tested: The test's metrics.
        checkpoint: What was tested; empty: the weights as they were in the end.
        seconds: By phase, and altogether.
        drawn: How many images were handed out for training, in all epochs.
        choice: Of a refit.
    """

    trainer: pl.Trainer
    tested: Mapping[str, float]
    checkpoint: str
    seconds: dict[str, float]
    drawn: int
    choice: Choice | None

    @property
    def task(self) -> CrossLayerTask:
        """With the tested weights, and what their checkpoint says of itself."""
        task = self.trainer.lightning_module
        assert isinstance(task, CrossLayerTask)
        return task

    @property
    def data(self) -> ImageDataModule:
        """What it was fitted to and tested on."""
        data: ImageDataModule = self.trainer.datamodule  # type: ignore[attr-defined]
        return data

    @property
    def epoch(self) -> int:
        """The tested weights' last one, from 0."""
        loaded = self.task.epoch_tested if self.checkpoint else None
        return self.task.current_epoch - 1 if loaded is None else loaded

    @property
    def metrics(self) -> dict[str, float]:
        """Of the tested checkpoint: its test, its validation, and what its frozen fit found."""
        return {**self.tested, **self.task.validated, **{f"frozen/{k}": v for k, v in self.task.report.items()}}

    @property
    def images(self) -> dict[str, int]:
        """How many there are, by split."""
        return {name: len(split) for name, split in self.data.splits.items()}

    @property
    def images_per_second(self) -> dict[str, float]:
        """By phase."""
        passes = sum(epoch < self.task.current_epoch for epoch in self.task.frozen_epochs)
        images = {"extraction": passes * self.images["train"], "test": self.images["test"]}
        images["fine-tuning"] = self.drawn - images["extraction"]
        return {phase: images[phase] / spent for phase, spent in self.task.times.items() if phase in images and spent}

    def write(self, folder: Path, run: RunConfig) -> None:
        """Write ``metrics.json``, end the wandb run, and make the report.

        Args:
            folder: The run's.
            run: Whether cost is measured, and the checkpoint uploaded.
        """
        summary = self._summary(run.cost)
        write_whole(folder / "metrics.json", json.dumps(summary, indent=2, allow_nan=False) + "\n")
        for logger in self.trainer.loggers:
            if isinstance(logger, WandbLogger):
                close_wandb(logger.experiment, summary, (self.checkpoint or None) if run.log_model else None)
        write_report(folder)

    def _summary(self, cost: bool) -> dict[str, Any]:
        summary: dict[str, Any] = {
            "metrics": {k: v if math.isfinite(v) else None for k, v in self.metrics.items()},  # JSON knows no NaN
            "seconds": self.seconds,
            "tested": self.checkpoint or "final weights",
            "epoch": self.epoch,
            "images": self.images,
        }
        if self.choice is not None:
            summary["refit"] = {
                "chosen by": self.choice.checkpoint,
                "epoch": self.choice.epoch,
                "validated": self.choice.validated,
            }
        if self.task.made_earlier:
            summary["features made by an earlier run"] = self.task.made_earlier
        if cost:
            self.task.to(self.trainer.strategy.root_device)  # which Lightning has left
            with self.trainer.precision_plugin.forward_context():
                summary["cost"] = measure_cost(self.task.network, self.data.splits["test"], self.task.frozen.features)
        summary["memory"] = peak_memory()
        summary["images_per_second"] = self.images_per_second
        return summary

    def show(self, folder: Path) -> None:
        """Print a table, and where to look."""
        table = Table(title=f"{self.data.name}: {', '.join(f'{n} {k}' for k, n in self.images.items())} images")
        table.add_column("what")
        table.add_column("value", justify="right")
        for key, value in self.metrics.items():
            table.add_row(key, as_text(key, value))
        if self.choice is not None:
            table.add_section()
            table.add_row("refit: chosen epoch", str(self.choice.epoch))
            for key, value in self.choice.validated.items():
                table.add_row(f"chosen by: {key}", as_text(key, value))
        table.add_section()
        if self.task.current_epoch > 1:
            frozen = self.epoch in self.task.frozen_epochs
            table.add_row("tested: epoch", f"{self.epoch} of {self.task.current_epoch}{', the frozen fit' * frozen}")
        for phase, seconds in self.seconds.items():
            table.add_row(f"time: {phase}", f"{seconds:.1f} s")
        console = Console()
        console.print(table)
        console.print(f"Everything is in {folder} (tested: {self.checkpoint or 'the final weights'})", soft_wrap=True)
        console.print(f"Look at it in a browser: {folder / 'report.html'}", soft_wrap=True, highlight=False)
        look = how_to_look(folder)
        if look:
            console.print(f"Look at the curves: {look}", soft_wrap=True, highlight=False)
