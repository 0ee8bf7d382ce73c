"""The test of a run: collection of results for tables and pictures, and their panels in wandb."""

import csv
import itertools
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
import wandb
from PIL import Image
from pytorch_lightning.callbacks import Callback
from torch import Tensor

from cxlp.data.datamodule import ImageDataModule
from cxlp.reports.examples import Examples
from cxlp.reports.formatting import readable
from cxlp.reports.predictions import Kept, Predictions, Scores, spread
from cxlp.reports.result import Table, TestResult
from cxlp.tasks.base import ClassificationTask
from cxlp.utils.distributed import all_sum
from cxlp.utils.errors import CxlpError

#: Maximum number of rows of a table and of curves of a plot in wandb. The files contain all of them.
ROWS, CURVES = 1000, 40


class TestRecorder(Callback):
    """Collects the test's per-class results, its worst mistakes and its scores; writes no files.

    Args:
        data: The data set that is tested on.
        kept: Number of images whose scores are kept, see :class:`~cxlp.runs.loggers.RunConfig`.

    Attributes:
        result: The collected results, on rank 0.
    """

    __test__ = False  # not a test case for pytest

    def __init__(self, data: ImageDataModule, kept: Kept = "all") -> None:
        self.data, self.kept = data, kept
        self.result: TestResult | None = None
        self._examples, self._scored = Examples(), 0
        self._scores: Scores | None = None

    def on_test_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Discard the results of an earlier test."""
        assert isinstance(pl_module, ClassificationTask)
        network, images = pl_module.network, len(self.data.splits["test"])
        self._examples, self._scored = Examples(), 0
        # The intervals of average precision need the scores of all images.
        kept = spread(images, "all" if network.multi_label else self.kept)
        self._scores = Scores(images, len(network.classes), kept)

    def on_test_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,  # noqa: ANN401 (Lightning's type is wider)
        batch: Any,  # noqa: ANN401 (Lightning's type)
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Collect mistakes and scores, and count images."""
        self._scored += len(outputs["label"])
        if len(outputs["label"]):
            assert self._scores is not None
            self._examples.update(outputs["score"], outputs["label"], outputs["index"])
            self._scores.update(outputs["score"], outputs["index"])

    def on_test_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Gather the results of all ranks.

        Raises:
            CxlpError: If some images were not scored.
        """
        assert isinstance(pl_module, ClassificationTask) and self._scores is not None
        scored, images = int(all_sum(torch.tensor(self._scored))), len(self.data.splits["test"])
        if scored != images:
            raise CxlpError(
                f"the test scored only {scored} of {images} images: a Trainer option or callback stopped it early"
            )
        found: Any = pl_module.per_class.compute()  # counts, or precisions and curves by name
        pl_module.per_class.reset()
        found = found.cpu() if isinstance(found, Tensor) else {name: value.cpu() for name, value in found.items()}
        examples, scores, test = self._examples.gather(), self._scores.gather(), self.data.splits["test"]
        if trainer.is_global_zero:
            predictions = Predictions(test, self.data.root, scores, self._scores.positions, self.kept)
            self.result = TestResult(pl_module.network, test, found, *examples, predictions)


def read_predictions(file: Path, most: int) -> tuple[list[str], list[list[Any]]]:
    """Read the header and ``most`` evenly spaced rows of ``predictions.csv``, sorted by class."""
    with file.open(newline="", encoding="utf-8", errors="surrogateescape") as opened:
        count = sum(1 for _ in csv.reader(opened)) - 1
        opened.seek(0)
        reader = csv.reader(opened)
        heads, chosen = next(reader), set(spread(count, most).tolist())
        numbers = [head == "right" or head.startswith("probability") for head in heads]
        return heads, [
            # wandb's files are UTF-8, but file names need not be
            [
                float(cell) if n else cell.encode("utf-8", "replace").decode("utf-8")
                for n, cell in zip(numbers, row, strict=True)
            ]
            for row in itertools.compress(reader, (i in chosen for i in range(count)))
        ]


def wandb_panels(folder: Path, tables: Mapping[str, Table]) -> dict[str, Any]:
    """Build wandb panels from the tables and pictures that could be written."""
    panels: dict[str, Any] = {
        f"test/{name}": wandb.Table(list(columns), [list(row) for row in rows[:ROWS]], allow_mixed_types=True)
        for name, (columns, rows) in tables.items()
        if name != "precision_recall"  # plotted instead
    }
    if (folder / "predictions.csv").is_file():
        heads, answers = read_predictions(folder / "predictions.csv", ROWS)
        panels["test/predictions"] = wandb.Table([*heads], answers)
    for name in ("confusion_matrix", "average_precision"):
        if (folder / f"{name}.png").is_file():
            panels[f"test/{name}"] = wandb.Image(str(folder / f"{name}.png"))
    if {"precision_recall", "per_class"} <= tables.keys():
        worst = [[row[0], row[-1]] for row in tables["per_class"][1] if row[-1] is not None][:CURVES]
        panels["test/average_precision_by_class"] = wandb.plot.bar(
            wandb.Table(["class", "AP"], worst), "class", "AP", "average precision by class"
        )
        columns, curves = tables["precision_recall"]
        drawn = [curve for curve in curves if curve[0] in {name for name, _ in worst}]
        panels["test/precision_recall"] = wandb.plot.line_series(
            [float(recall) for recall in columns[1:]],
            [curve[1:] for curve in drawn],
            [curve[0] for curve in drawn],
            "precision and recall",
            "recall",
        )
    columns, rows = tables.get("examples", ([], []))
    classes = [row[0] for row in tables.get("per_class", ([], []))[1]]
    examples = readable((dict(zip(columns, row, strict=True)) for row in rows), classes)
    for kind, key in (("mistake", "test/mistakes"), ("right", "test/right_answers")):
        captions = {
            folder / "examples" / row["picture"]: f"answer: {row['answered']} {row['answered probability']}, "
            f"truth: {row['true']} {row['true probability']}"
            for row in examples
            if row["kind"] == kind and (folder / "examples" / row["picture"]).is_file()
        }
        if captions:
            shown = zip(pad_to_common_size(captions), captions.values(), strict=True)
            panels[key] = [wandb.Image(picture, caption=caption, file_type="jpg") for picture, caption in shown]
    return panels


def pad_to_common_size(files: Iterable[Path]) -> list[Image.Image]:
    """Read images and pad them with white to a common size, as wandb's panels need."""
    pictures = []
    for file in files:
        with Image.open(file) as opened:
            pictures.append(opened.convert("RGB"))
    size = max(picture.width for picture in pictures), max(picture.height for picture in pictures)
    padded = [Image.new("RGB", size, "white") for _ in pictures]
    for whole, picture in zip(padded, pictures, strict=True):
        whole.paste(picture, ((size[0] - picture.width) // 2, (size[1] - picture.height) // 2))
    return padded
