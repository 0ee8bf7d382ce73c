"""The result of a test, and its files: tables, pictures and example images."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from cxlp.data.dataset import ImageDataset
from cxlp.explain.attribution import is_explainable
from cxlp.metrics.classification import SUFFIXES
from cxlp.metrics.intervals import Interval, accuracy_intervals, precision_intervals
from cxlp.models.network import Network
from cxlp.reports.examples import Example, example_table, write_thumbnails
from cxlp.reports.figures import confusion_pairs, confusion_table, draw_confusion, draw_precisions, precision_table
from cxlp.reports.formatting import as_csv
from cxlp.reports.outputs import Outputs
from cxlp.reports.overlays import draw_evidence
from cxlp.reports.predictions import Predictions
from cxlp.utils.files import write_whole

#: Headings and rows.
Table = tuple[list[str], list[list[Any]]]


@dataclass(frozen=True)
class TestResult:
    """The result of a test.

    Attributes:
        network: The tested network.
        data: The test split.
        found: The confusion matrix ``(true, predicted)`` of counts on the CPU. With several labels per image: average
            precisions ``(K,)`` by name, and ``curves`` of precision at 101 recalls ``(K, 101)``.
        mistakes: Mistakes from :class:`~cxlp.reports.examples.Examples`.
        right: Right predictions from :class:`~cxlp.reports.examples.Examples`.
        predictions: The predictions for images; with several labels per image, for all images.
    """

    __test__ = False  # pytest must not collect this class

    network: Network
    data: ImageDataset
    found: Any
    mistakes: Sequence[Example]
    right: Sequence[Example]
    predictions: Predictions

    def intervals(self) -> dict[str, Interval]:
        """Compute 95 % confidence intervals by the names of the metrics."""
        if not self.network.multi_label:
            found = accuracy_intervals(self.found)
        else:
            kinds = {f"mAP{suffix}": kind for suffix, kind in SUFFIXES.items()}
            found = precision_intervals(self.predictions.scores, self.predictions.labels, kinds)
        return {f"test/{name}": interval for name, interval in found.items()}

    def write(self, folder: Path, outputs: Outputs) -> dict[str, Table]:
        """Write the tables, then the figures. Files of an earlier test are deleted, even if new ones fail.

        Files: ``predictions.csv`` and ``scores.npz``, see :class:`~cxlp.reports.predictions.Predictions`;
        ``per_class.csv``; with one label per image ``confusions.csv`` and ``confusion_matrix.png``, with several
        ``precision_recall.csv`` and ``average_precision.png``; ``examples.csv`` and ``examples/``.

        Args:
            folder: The run's folder.
            outputs: Records the files that could not be written.

        Returns:
            The tables, by name.
        """
        self.predictions.write(folder, outputs)
        tables: dict[str, Table] = {}
        for name, make in self._tables().items():
            (folder / f"{name}.csv").unlink(missing_ok=True)
            with outputs.attempt(f"{name}.csv"):
                tables[name] = make()
                write_whole(folder / f"{name}.csv", as_csv(*tables[name]))
        name = "average_precision.png" if self.network.multi_label else "confusion_matrix.png"
        (folder / name).unlink(missing_ok=True)
        with outputs.attempt(name):
            several = self.network.multi_label
            drawn = (
                draw_precisions(*self._precisions()) if several else draw_confusion(self.found, self.network.classes)
            )
            write_whole(folder / name, drawn)
        overlay = draw_evidence if is_explainable(self.network) else None
        write_thumbnails(folder, self.network, self.data, self.mistakes, self.right, outputs, overlay)
        return tables

    def _tables(self) -> dict[str, Callable[[], Table]]:
        classes, found = self.network.classes, self.found
        tables: dict[str, Callable[[], Table]] = {
            "per_class": lambda: confusion_table(found, classes),
            "confusions": lambda: confusion_pairs(found, classes),
        }
        if self.network.multi_label:
            tables = {"per_class": self._precisions, "precision_recall": self._curves}
        return {**tables, "examples": lambda: example_table(self.data, self.mistakes, self.right)}

    def _precisions(self) -> Table:
        # The un-interpolated average precision comes last, because the last column is drawn.
        names = sorted(self.found.keys() - {"curves"}, key=lambda name: (name == "AP", name))
        labels = torch.tensor([sample.label for sample in self.data.samples])
        # For a single class, torchmetrics returns a scalar.
        values = {name: self.found[name].reshape(-1) for name in names}
        return precision_table(values, labels, self.network.classes)

    def _curves(self) -> Table:
        rows = [
            [name, *(round(precision, 4) for precision in curve)]
            for name, curve in zip(self.network.classes, self.found["curves"].tolist(), strict=True)
            if not math.isnan(curve[0])
        ]
        return ["class", *(str(i / 100) for i in range(101))], rows
