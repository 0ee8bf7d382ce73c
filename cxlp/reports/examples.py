"""The worst mistakes of a test and a few right answers: found in passing, over all ranks, and made into thumbnails."""

import heapq
import io
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from cxlp.data.dataset import Draw, ImageDataset
from cxlp.models.network import Network
from cxlp.utils.distributed import gather_objects
from cxlp.utils.files import write_whole

#: How many are kept, whatever the number of images.
MISTAKES, RIGHT = 16, 8
#: Side of a thumbnail, pixels.
SIDE = 160

#: Draws the evidence into a picture: network, picture ``(3, H, W)`` uint8, class index -> ``(3, h, w)`` uint8.
Overlay = Callable[[Network, Tensor, int], Tensor]


class Example(NamedTuple):
    """An answer to one image; with several labels per image, to one image and one class.

    Attributes:
        loss: Negative logarithm of the probability that the truth was given.
        position: In the test split.
        shown: The class that was recognised, or, of several labels, the one in question.
        true: The true class; of several labels: ``shown``, or -1 where it is absent.
        answered: Likewise.
        probability: That the answer was given.
    """

    loss: float
    position: int
    shown: int
    true: int
    answered: int
    probability: float

    def names(self, classes: Sequence[str]) -> tuple[str, str]:
        """The truth and the answer, for people."""
        absent = f"no {classes[self.shown]}"
        return tuple(classes[k] if k >= 0 else absent for k in (self.true, self.answered))  # type: ignore[return-value]


class Examples:
    """Collects the mistakes of largest loss, and for each class the surest right answer, batch by batch.

    What is kept depends neither on the order of images nor on how ranks share them: of equal losses, the
    earlier image goes first.
    """

    def __init__(self) -> None:
        self.mistakes: list[Example] = []
        self.right: dict[int, Example] = {}

    def update(self, scores: Tensor, labels: Tensor, positions: Tensor) -> None:
        """Look at a batch.

        Args:
            scores: Logits ``(B, K)``.
            labels: ``(B,)`` class indices, or ``(B, K)`` of 1 present, -1 absent, 0 unspecified.
            positions: ``(B,)``, in the test split.
        """
        found = _answers(scores.float(), labels, positions)
        wrong = [example for example in found if example.true != example.answered]
        self.mistakes = heapq.nsmallest(MISTAKES, [*self.mistakes, *wrong], key=_worst_first)
        # Of several labels, that something is absent is no answer to show.
        self._keep_right(example for example in found if example.true == example.answered >= 0)

    def gather(self) -> tuple[list[Example], list[Example]]:
        """Collect those of all ranks, each of which calls this.

        Returns:
            At most 16 mistakes, the largest loss first; at most 8 right answers of different classes, the
            surest first.
        """
        everywhere = gather_objects((self.mistakes, self.right))
        self.mistakes = heapq.nsmallest(MISTAKES, [e for part, _ in everywhere for e in part], key=_worst_first)
        for _, right in everywhere:
            self._keep_right(right.values())
        return self.mistakes, heapq.nsmallest(RIGHT, self.right.values(), key=_surest_first)

    def _keep_right(self, examples: Iterable[Example]) -> None:
        for example in examples:
            kept = self.right.get(example.shown, example)
            self.right[example.shown] = min(kept, example, key=_surest_first)


def _worst_first(example: Example) -> tuple[float, int, int]:
    return -example.loss, example.position, example.shown


def _surest_first(example: Example) -> tuple[float, int, int]:
    return example.loss, example.position, example.shown


def _answers(scores: Tensor, labels: Tensor, positions: Tensor) -> list[Example]:
    if labels.ndim == 1:
        logs = scores.log_softmax(dim=1)
        best, answered = logs.max(dim=1)
        losses = -logs.gather(1, labels[:, None])[:, 0]
        columns = (losses, positions, answered, labels, answered, best.exp())
    else:
        rows, shown = (labels != 0).nonzero(as_tuple=True)
        margins, signs = scores[rows, shown], labels[rows, shown]
        absent = torch.full_like(shown, -1)
        columns = (
            F.softplus(-signs * margins),
            positions[rows],
            shown,
            torch.where(signs > 0, shown, absent),
            torch.where(margins > 0, shown, absent),
            margins.abs().sigmoid(),
        )
    return [Example(*values) for values in zip(*(column.tolist() for column in columns), strict=True)]


def write_examples(
    folder: Path,
    network: Network,
    data: ImageDataset,
    mistakes: Sequence[Example],
    right: Sequence[Example],
    overlay: Overlay | None = None,
) -> tuple[list[str], list[list[Any]]]:
    """Write a thumbnail for each example into ``examples/``, in the place of those of an earlier test.

    Args:
        folder: The run's.
        network: What answered.
        data: The test split.
        mistakes: See :class:`Examples`.
        right: See :class:`Examples`.
        overlay: Draws the evidence for a class; shown beside the picture for the answer and, of a mistake,
            for the truth.

    Returns:
        A table of the examples: headings and rows.
    """
    place = folder / "examples"
    place.mkdir(exist_ok=True)
    records: list[list[Any]] = []
    for kind, examples in (("mistake", mistakes), ("right", right)):
        for number, example in enumerate(examples, 1):
            name = f"{kind}-{number:02d}.jpg"
            write_whole(place / name, _thumbnail(network, data, example, overlay))
            true, answered = example.names(data.classes)
            path = data.samples[example.position].path
            records.append(
                [name, kind, true, answered, round(example.probability, 4), round(example.loss, 4), str(path)]
            )
    written = {record[0] for record in records}
    for path in place.iterdir():
        if path.name not in written:
            path.unlink()
    return ["picture", "kind", "true", "answered", "probability", "loss", "image"], records


def _thumbnail(network: Network, data: ImageDataset, example: Example, overlay: Overlay | None) -> bytes:
    """The picture as the network sees it, and beside it the evidence, as a JPEG."""
    picture = data.picture(Draw(example.position))
    pictures = [picture]
    if overlay is not None:
        asked = dict.fromkeys((example.shown, example.true))
        pictures += [overlay(network, picture, k) for k in asked if k >= 0]
    gap = np.full((SIDE, 4, 3), 255, dtype=np.uint8)
    strip: list[np.ndarray[tuple[int, ...], np.dtype[np.uint8]]] = []
    for shown in pictures:
        pixels = np.asarray(Image.fromarray(shown.permute(1, 2, 0).numpy()).resize((SIDE, SIDE)))
        strip += [gap, pixels] if strip else [pixels]
    file = io.BytesIO()
    Image.fromarray(np.concatenate(strip, axis=1)).save(file, "JPEG", quality=85)
    return file.getvalue()
