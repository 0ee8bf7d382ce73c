"""What a test leaves behind: tables and pictures, class by class, and the images to look at; in files and in wandb."""

import csv
import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
import wandb
from pytorch_lightning.callbacks import Callback
from torch import Tensor

from cxlp.data.datamodule import ImageDataModule
from cxlp.explain.attribution import is_explainable
from cxlp.models.network import Network
from cxlp.reports.examples import Example, Examples, write_examples
from cxlp.reports.figures import confusion_pairs, confusion_table, draw_confusion, draw_precisions, precision_table
from cxlp.reports.overlays import draw_evidence
from cxlp.runs.callbacks import wandb_logger
from cxlp.tasks.base import ClassificationTask
from cxlp.utils.distributed import all_sum
from cxlp.utils.errors import CxlpError
from cxlp.utils.files import write_whole
from cxlp.utils.threads import one_thread

#: Headings and rows.
Table = tuple[list[str], list[list[Any]]]
#: Most rows of a table in wandb, and most curves of a plot there. The files hold all of them.
ROWS, CURVES = 1000, 40


class TestReport(Callback):
    """Writes the test's result class by class and its worst mistakes, and logs them to wandb.

    Files: ``per_class.csv``; with one label per image ``confusions.csv`` and ``confusion_matrix.png``, with several
    ``precision_recall.csv`` and ``average_precision.png``; ``examples.csv`` and ``examples/``.

    Args:
        folder: The run's folder.
        data: What is tested on.
    """

    __test__ = False  # not a test case of pytest's

    def __init__(self, folder: Path, data: ImageDataModule) -> None:
        self.folder, self.data = folder, data
        self._examples = Examples()
        self._scored = 0

    def on_test_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Forget an earlier test."""
        self._examples, self._scored = Examples(), 0

    def on_test_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,  # noqa: ANN401 (Lightning's type is wider)
        batch: Any,  # noqa: ANN401 (Lightning's type)
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Look for mistakes, and count."""
        self._scored += len(outputs["label"])
        if len(outputs["label"]):
            self._examples.update(outputs["score"], outputs["label"], outputs["index"])

    def on_test_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Compute on every rank, write on rank 0.

        Raises:
            CxlpError: If not all images were scored.
        """
        assert isinstance(pl_module, ClassificationTask)
        scored, images = int(all_sum(torch.tensor(self._scored))), len(self.data.splits["test"])
        if scored != images:
            raise CxlpError(
                f"the test has scored {scored} of {images} images: something in the Trainer has cut it short"
            )
        found: Any = pl_module.per_class.compute()  # counts, or precisions and curves by their names
        pl_module.per_class.reset()
        mistakes, right = self._examples.gather()
        if not trainer.is_global_zero:
            return
        # Explaining single images is made of small operations.
        with pl_module.times.measure("pictures"), one_thread():
            self._write(trainer, pl_module.network, found, mistakes, right)

    def _write(
        self,
        trainer: pl.Trainer,
        network: Network,
        found: Any,  # noqa: ANN401 (counts, or figures by their names)
        mistakes: list[Example],
        right: list[Example],
    ) -> None:
        data = self.data.splits["test"]
        if network.multi_label:
            labels = torch.tensor([s.label for s in data.samples])
            found = {name: value.cpu() for name, value in found.items()}
            tables = self._write_precisions(found, labels, network.classes)
        else:
            tables = self._write_confusions(found.cpu(), network.classes)
        overlay = draw_evidence if is_explainable(network) else None
        tables["examples"] = write_examples(self.folder, network, data, mistakes, right, overlay)
        for name, (columns, rows) in tables.items():
            text = io.StringIO()
            csv.writer(text, lineterminator="\n").writerows([columns, *rows])
            write_whole(self.folder / f"{name}.csv", text.getvalue())
        logger = wandb_logger(trainer)
        if logger is not None:
            logger.experiment.log(_panels(self.folder, tables))

    def _write_confusions(self, counts: Tensor, classes: Sequence[str]) -> dict[str, Table]:
        write_whole(self.folder / "confusion_matrix.png", draw_confusion(counts, classes))
        return {"per_class": confusion_table(counts, classes), "confusions": confusion_pairs(counts, classes)}

    def _write_precisions(
        self, found: Mapping[str, Tensor], labels: Tensor, classes: Sequence[str]
    ) -> dict[str, Table]:
        # The un-interpolated one last: it is drawn.
        names = sorted(found.keys() - {"curves"}, key=lambda name: (name == "AP", name))
        columns, rows = precision_table({name: found[name] for name in names}, labels, classes)
        write_whole(self.folder / "average_precision.png", draw_precisions(columns, rows))
        curves = [
            [name, *(round(precision, 4) for precision in curve)]
            for name, curve in zip(classes, found["curves"].tolist(), strict=True)
            if not math.isnan(curve[0])
        ]
        return {
            "per_class": (columns, rows),
            "precision_recall": (["class", *(str(i / 100) for i in range(101))], curves),
        }


def _panels(folder: Path, tables: Mapping[str, Table]) -> dict[str, Any]:
    """What wandb is given of the files that were written."""
    panels: dict[str, Any] = {
        f"test/{name}": wandb.Table(list(columns), [list(row) for row in rows[:ROWS]], allow_mixed_types=True)
        for name, (columns, rows) in tables.items()
        if name != "precision_recall"  # drawn instead
    }
    for name in ("confusion_matrix", "average_precision"):
        if (folder / f"{name}.png").is_file():
            panels[f"test/{name}"] = wandb.Image(str(folder / f"{name}.png"))
    if "precision_recall" in tables:
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
    for kind, key in (("mistake", "test/mistakes"), ("right", "test/right_answers")):
        pictures = [
            wandb.Image(str(folder / "examples" / name), caption=f"{answered} {probability:.0%}, is: {true}")
            for name, found, true, answered, probability, *_ in tables["examples"][1]
            if found == kind
        ]
        if pictures:
            panels[key] = pictures
    return panels
