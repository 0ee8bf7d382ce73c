"""The worst mistakes of a test and a few right answers: collected batch by batch over all ranks, with thumbnails."""

import heapq
import io
import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2.functional import to_pil_image

from cxlp.data.dataset import Draw, ImageDataset
from cxlp.models.network import Network
from cxlp.reports.outputs import Outputs
from cxlp.utils.distributed import gather_objects
from cxlp.utils.files import write_whole
from cxlp.utils.threads import one_thread

#: Number of mistakes and of right answers that are kept.
MISTAKES, RIGHT = 16, 8
#: Side of a thumbnail and width of the gap between two, pixels.
SIDE, GAP = 160, 4

#: Pictures that pass through the network together; and up to how many seconds for the first one, by one thread, the
#: others have one thread, too. All threads wait for each other after each operation: beside another busy process, a
#: small network takes ten times as long by them; a large one gains.
BATCH, ONE_THREAD_SECONDS = 8, 1.0

#: Draws the evidence into pictures: network, pictures ``(B, 3, H, W)`` uint8, the classes for each of them -> for each
#: picture a drawing per class, ``(3, h, w)`` uint8.
Overlay = Callable[[Network, Tensor, Sequence[Sequence[int]]], list[list[Tensor]]]


class Example(NamedTuple):
    """An answer about one image or, with several labels per image, about one class in one image.

    Attributes:
        loss: Negative logarithm of the probability that the truth was given.
        position: Position of the image in the test split.
        shown: The predicted class; with several labels the class in question.
        true: The true class; with several labels ``shown``, or -1 where it is absent.
        answered: The predicted class; with several labels ``shown``, or -1 where it was said to be absent.
        probability: Probability that the answer was given.
    """

    loss: float
    position: int
    shown: int
    true: int
    answered: int
    probability: float

    def names(self, classes: Sequence[str]) -> tuple[str, str]:
        """Return the truth and the answer as text."""
        absent = f"no {classes[self.shown]}"
        true, answered = (classes[k] if k >= 0 else absent for k in (self.true, self.answered))
        return true, answered


class Examples:
    """Collects, batch by batch, the mistakes of largest loss and for each class the surest right answer.

    The result depends neither on the order of images nor on how ranks share them: ties keep the earlier image.
    """

    def __init__(self) -> None:
        self.mistakes: list[Example] = []
        self.right: dict[int, Example] = {}

    def update(self, scores: Tensor, labels: Tensor, positions: Tensor) -> None:
        """Take in a batch.

        Args:
            scores: Logits ``(B, K)``.
            labels: ``(B,)`` class indices, or ``(B, K)`` of 1 present, -1 absent, 0 unspecified.
            positions: ``(B,)``, positions in the test split.
        """
        found = _answers(scores.float(), labels, positions)
        wrong = [example for example in found if example.true != example.answered]
        self.mistakes = heapq.nsmallest(MISTAKES, [*self.mistakes, *wrong], key=_worst_first)
        # With several labels, that a class is absent is no answer to show.
        self._keep_right(example for example in found if example.true == example.answered >= 0)

    def gather(self) -> tuple[list[Example], list[Example]]:
        """Collect the examples of all ranks, which call this together.

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
    # Scores that are not numbers count as the worst mistakes.
    columns = (columns[0].nan_to_num(nan=math.inf, posinf=math.inf), *columns[1:])
    return [Example(*values) for values in zip(*(column.tolist() for column in columns), strict=True)]


def _named(mistakes: Sequence[Example], right: Sequence[Example]) -> Iterator[tuple[str, str, Example]]:
    """Yield file name of the thumbnail, kind, and example."""
    for kind, examples in (("mistake", mistakes), ("right", right)):
        for number, example in enumerate(examples, 1):
            yield f"{kind}-{number:02d}.jpg", kind, example


def example_table(
    data: ImageDataset, mistakes: Sequence[Example], right: Sequence[Example]
) -> tuple[list[str], list[list[Any]]]:
    """Tabulate examples, with the names of their thumbnails.

    Args:
        data: The test split.
        mistakes: See :class:`Examples`.
        right: See :class:`Examples`.

    Returns:
        Headings and rows.
    """
    rows = [
        [
            name,
            kind,
            *e.names(data.classes),
            round(e.probability, 4),
            round(e.loss, 4),
            str(data.samples[e.position].path),
        ]
        for name, kind, e in _named(mistakes, right)
    ]
    return ["picture", "kind", "true", "answered", "probability", "loss", "image"], rows


def write_thumbnails(
    folder: Path,
    network: Network,
    data: ImageDataset,
    mistakes: Sequence[Example],
    right: Sequence[Example],
    outputs: Outputs,
    overlay: Overlay | None = None,
) -> None:
    """Write a thumbnail of each example into ``examples/``, and delete those of an earlier test.

    Args:
        folder: The run's folder.
        network: The network that answered.
        data: The test split.
        mistakes: See :class:`Examples`.
        right: See :class:`Examples`.
        outputs: Notes whether one fails; the others are written all the same, and pictures alone if the evidence
            cannot be drawn.
        overlay: Draws the evidence for classes; shown beside the picture for the answer and, where that is wrong,
            for the truth.
    """
    place = folder / "examples"
    with outputs.attempt("examples"):
        place.mkdir(exist_ok=True)
        for path in place.iterdir():
            path.unlink()
    named = [(name, example) for name, _, example in _named(mistakes, right)]
    begun = time.thread_time()  # of this thread only: what else the machine does is not counted
    with one_thread():
        _write_batch(place, network, data, named[:1], outputs, overlay)
    is_quick = time.thread_time() - begun < ONE_THREAD_SECONDS
    with one_thread() if is_quick else nullcontext():
        for start in range(1, len(named), BATCH):
            _write_batch(place, network, data, named[start : start + BATCH], outputs, overlay)


def _write_batch(
    place: Path,
    network: Network,
    data: ImageDataset,
    named: Sequence[tuple[str, Example]],
    outputs: Outputs,
    overlay: Overlay | None,
) -> None:
    found: list[tuple[str, Example, Tensor]] = []
    for name, example in named:
        with outputs.attempt("examples"):
            found.append((name, example, data.picture(Draw(example.position))))
    drawn: list[list[Tensor]] = [[] for _ in found]
    if overlay is not None and found:
        asked = [[k for k in dict.fromkeys((e.shown, e.true)) if k >= 0] for _, e, _ in found]
        with outputs.attempt("examples"):
            drawn = overlay(network, torch.stack([picture for _, _, picture in found]), asked)
    for (name, _, picture), beside in zip(found, drawn, strict=True):
        with outputs.attempt("examples"):
            write_whole(place / name, _thumbnail([picture, *beside]))


def _thumbnail(pictures: Sequence[Tensor]) -> bytes:
    """Draw pictures beside each other, as a JPEG."""
    strip = Image.new("RGB", (len(pictures) * (SIDE + GAP) - GAP, SIDE), "white")
    for number, shown in enumerate(pictures):
        strip.paste(to_pil_image(shown).resize((SIDE, SIDE)), (number * (SIDE + GAP), 0))
    file = io.BytesIO()
    strip.save(file, "JPEG", quality=85)
    return file.getvalue()
