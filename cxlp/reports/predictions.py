"""The predictions of a test, collected over all ranks and written to ``predictions.csv`` and ``scores.npz``."""

import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from cxlp.data.dataset import ImageDataset
from cxlp.reports.formatting import csv_writer
from cxlp.reports.outputs import Outputs
from cxlp.utils.distributed import all_sum
from cxlp.utils.files import aside

#: The images whose predictions are kept: all, none, or this number of images, evenly spaced in the split.
Kept = int | Literal["all", "none"]
#: Number of classes per image in ``predictions.csv``.
TOP = 5
#: Number of rows that are sorted at a time.
_ROWS = 1000


def spread(images: int, kept: Kept) -> Tensor:
    """Return the indices ``(m,)`` of the images to keep, evenly spaced because splits are sorted by class."""
    count = {"all": images, "none": 0}[kept] if isinstance(kept, str) else min(kept, images)
    return torch.arange(count) * images // max(1, count)


class Scores:
    """Collects the scores of some images, batch by batch, in ``4 m K`` bytes of memory.

    Args:
        images: Number of images in the split.
        classes: Number of classes K.
        positions: Indices ``(m,)`` in the split of the images whose scores are kept.

    Attributes:
        scores: ``(m, K)`` float32.
    """

    def __init__(self, images: int, classes: int, positions: Tensor) -> None:
        self.positions = positions
        self.scores = torch.zeros(len(positions), classes)
        self._rows = torch.full((images,), -1)
        self._rows[positions] = torch.arange(len(positions))

    def update(self, scores: Tensor, positions: Tensor) -> None:
        """Add a batch: scores ``(B, K)`` of the images with indices ``(B,)``. Each image must be on one rank only."""
        if not len(self.positions):
            return
        rows = self._rows[positions.cpu()]
        self.scores[rows[rows >= 0]] = scores.detach().cpu().float()[rows >= 0]

    def gather(self) -> Tensor:
        """Return the scores of all ranks, summed: each has zeros for the others' images. All ranks must call this."""
        return all_sum(self.scores)


@dataclass(frozen=True)
class Predictions:
    """The predictions of a network for the images of a split.

    Attributes:
        data: The split.
        root: The root of the data set; images below it are named by their relative paths.
        scores: Logits ``(m, K)``; see :class:`Scores`.
        positions: Indices ``(m,)`` in the split of the images of ``scores``.
        kept: The images whose predictions are written to files.
    """

    data: ImageDataset
    root: Path
    scores: Tensor
    positions: Tensor
    kept: Kept

    @property
    def labels(self) -> Tensor:
        """Labels of the images: ``(m,)`` class indices, or ``(m, K)`` of 1, -1 or 0."""
        return torch.tensor([self.data.samples[i].label for i in self.positions.tolist()])

    def write(self, folder: Path, outputs: Outputs) -> None:
        """Write ``predictions.csv`` and ``scores.npz``, and delete those of an earlier test.

        The table has a row per image: ``path``, ``true``, ``right`` (1 or 0), and the most probable classes with their
        softmax probabilities. With several labels per image, ``true`` lists the present classes and ``unspecified`` the
        unspecified ones, both as JSON, and probabilities are sigmoids. ``scores.npz`` has ``scores`` ``(m, K)``
        float32, ``labels``, ``paths``, ``classes``, and ``index``, the images' indices in the split.
        """
        for name, write in {"predictions.csv": self._write_table, "scores.npz": self._write_scores}.items():
            (folder / name).unlink(missing_ok=True)
            if self.kept == "none":
                continue
            with outputs.attempt(name), aside(folder / name) as partial:
                write(partial)

    def _chosen(self) -> Tensor:
        """Return the rows of :attr:`scores` that are written."""
        rows = torch.full((len(self.data),), -1)
        rows[self.positions] = torch.arange(len(self.positions))
        return rows[spread(len(self.data), self.kept)]

    def _write_table(self, path: Path) -> None:
        top = min(TOP, len(self.data.classes))
        several = bool(self.data.samples) and not isinstance(self.data.samples[0].label, int)
        heads = ["path", "true", "unspecified" if several else "right"]
        heads += [f"{what}_{k + 1}" for k in range(top) for what in ("class", "probability")]
        with path.open("w", encoding="utf-8", errors="surrogateescape", newline="") as file:
            writer = csv_writer(file)
            writer.writerow(heads)
            for rows in torch.split(self._chosen(), _ROWS):
                writer.writerows(self._records(rows, top, several))

    def _records(self, rows: Tensor, top: int, several: bool) -> Iterator[list[Any]]:
        names, scores = self.data.classes, self.scores[rows]
        # A stable sort keeps ties in the order of the classes.
        best = scores.argsort(dim=1, descending=True, stable=True)[:, :top]
        found = (scores.sigmoid() if several else scores.softmax(dim=1)).gather(1, best)
        for position, ranked, values in zip(self.positions[rows].tolist(), best.tolist(), found.tolist(), strict=True):
            label = self.data.samples[position].label
            if isinstance(label, int):
                truth = [names[label], int(ranked[0] == label)]
            else:
                truth = [_listed(names, label, 1), _listed(names, label, 0)]
            answers = [cell for k, p in zip(ranked, values, strict=True) for cell in (names[k], f"{p:.6g}")]
            yield [self._place(position), *truth, *answers]

    def _write_scores(self, path: Path) -> None:
        rows = self._chosen()
        labels = self.labels[rows]
        with path.open("wb") as file:
            np.savez(
                file,
                scores=self.scores[rows].numpy(),
                labels=labels.numpy().astype(np.int64 if labels.ndim == 1 else np.int8),
                paths=np.array([self._place(i) for i in self.positions[rows].tolist()]),
                classes=np.array(self.data.classes),
                index=self.positions[rows].numpy(),
            )

    def _place(self, position: int) -> str:
        path, root = (Path(os.path.abspath(p)) for p in (self.data.samples[position].path, self.root))  # noqa: PTH100 (links are kept)
        return path.relative_to(root).as_posix() if path.is_relative_to(root) else str(path)


def _listed(names: Sequence[str], label: Sequence[int], sign: int) -> str:
    found = [name for name, value in zip(names, label, strict=True) if value == sign]
    return json.dumps(found, ensure_ascii=False)
