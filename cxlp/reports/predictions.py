"""A test's answers image by image: collected over all ranks, and written as ``predictions.csv`` and ``scores.npz``."""

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

#: Of how many images answers are kept: of all, of none, or of so many, evenly spread over the split.
Kept = int | Literal["all", "none"]
#: How many classes of an image ``predictions.csv`` names.
TOP = 5
#: Rows that are ranked at a time.
_ROWS = 1000


def spread(images: int, kept: Kept) -> Tensor:
    """Positions ``(m,)`` of the images that are kept, of so many; evenly spread, since lists are sorted by class."""
    count = {"all": images, "none": 0}[kept] if isinstance(kept, str) else min(kept, images)
    return torch.arange(count) * images // max(1, count)


class Scores:
    """Collects the scores of some images, batch by batch, in ``4 m K`` bytes of memory.

    Args:
        images: Number of images in the split.
        classes: Number of classes K.
        positions: Positions ``(m,)`` of the images whose scores are kept.

    Attributes:
        scores: ``(m, K)`` float32.
    """

    def __init__(self, images: int, classes: int, positions: Tensor) -> None:
        self.positions = positions
        self.scores = torch.zeros(len(positions), classes)
        self._rows = torch.full((images,), -1)
        self._rows[positions] = torch.arange(len(positions))

    def update(self, scores: Tensor, positions: Tensor) -> None:
        """Take in a batch: scores ``(B, K)`` of the images at ``positions`` ``(B,)``, each once over all ranks."""
        if not len(self.positions):
            return
        rows = self._rows[positions.cpu()]
        self.scores[rows[rows >= 0]] = scores.detach().cpu().float()[rows >= 0]

    def gather(self) -> Tensor:
        """Return the scores of all ranks, which call this together; each has zeros where another one has scored."""
        return all_sum(self.scores)


@dataclass(frozen=True)
class Predictions:
    """What a network says of the images of a split.

    Attributes:
        data: The split.
        root: Folder of the data set; files below it are named by their path there.
        scores: ``(m, K)``, logits; see :class:`Scores`.
        positions: ``(m,)``, the images that these are of.
        kept: Of which of them files are written.
    """

    data: ImageDataset
    root: Path
    scores: Tensor
    positions: Tensor
    kept: Kept

    @property
    def labels(self) -> Tensor:
        """Labels of the images: ``(m,)``, or ``(m, K)`` of 1, -1, 0."""
        return torch.tensor([self.data.samples[i].label for i in self.positions.tolist()])

    def write(self, folder: Path, outputs: Outputs) -> None:
        """Write ``predictions.csv`` and ``scores.npz``, and delete those of an earlier test.

        The table has a row per image: ``path``, ``true``, ``right`` (1 or 0), and the most probable classes with their
        softmax. With several labels per image, ``true`` has the classes that are present and ``unspecified`` those that
        are not known, both as a JSON list, and each class has its own sigmoid. The other file has ``scores``
        ``(m, K)`` float32, ``labels``, ``paths``, ``classes``, and ``index``, the images' positions in the split.
        """
        for name, write in {"predictions.csv": self._write_table, "scores.npz": self._write_scores}.items():
            (folder / name).unlink(missing_ok=True)
            if self.kept == "none":
                continue
            with outputs.attempt(name), aside(folder / name) as partial:
                write(partial)

    def _chosen(self) -> Tensor:
        """Rows of :attr:`scores` that are written."""
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
        # Ties in the order of the classes.
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
