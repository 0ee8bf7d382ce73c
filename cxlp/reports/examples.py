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
from cxlp.reports.overlays import Statement
from cxlp.utils.distributed import gather_objects
from cxlp.utils.files import write_whole
from cxlp.utils.threads import one_thread

#: Number of mistakes and of right answers that are kept.
MISTAKES, RIGHT = 16, 8
#: Most height and width of a thumbnail, and width of the gap between two, pixels.
HEIGHT, WIDTH, GAP = 140, 186, 4

#: Pictures that pass through the network together; and up to how many seconds for the first one, by one thread, the
#: others have one thread, too. All threads wait for each other after each operation: beside another busy process, a
#: small network takes ten times as long by them; a large one gains.
BATCH, ONE_THREAD_SECONDS = 8, 1.0

#: Draws the evidence into pictures: network, pictures ``(B, 3, H, W)`` uint8, the statements for each of them -> for
#: each picture a drawing per statement, ``(3, h, w)`` uint8.
Overlay = Callable[[Network, Tensor, Sequence[Sequence[Statement]]], list[list[Tensor]]]


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

    @property
    def truth(self) -> float:
        """Probability that the truth was given."""
        return math.exp(-self.loss)

    @property
    def statements(self) -> list[Statement]:
        """What was answered and, where that is wrong, what is true."""
        both = [(k, 1) if k >= 0 else (self.shown, -1) for k in (self.answered, self.true)]
        return list(dict.fromkeys(both))

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
            true,
            float(f"{e.truth:.4g}"),
            answered,
            float(f"{e.probability:.4g}"),
            str(data.samples[e.position].path),
        ]
        for name, kind, e in _named(mistakes, right)
        for true, answered in [e.names(data.classes)]
    ]
    return ["picture", "kind", "true", "true probability", "answered", "answered probability", "image"], rows


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
        overlay: Draws the evidence for statements; shown beside the picture for the answer and, where that is wrong,
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
    found: list[tuple[str, Example, Tensor, float]] = []
    for name, example in named:
        with outputs.attempt("examples"):
            proportion = data.proportion(example.position)
            found.append((name, example, data.picture(Draw(example.position)), proportion))
    drawn: list[list[Tensor]] = [[] for _ in found]
    if overlay is not None and found:
        with outputs.attempt("examples"):
            pictures = torch.stack([picture for _, _, picture, _ in found])
            drawn = overlay(network, pictures, [example.statements for _, example, _, _ in found])
    for (name, _, picture, proportion), beside in zip(found, drawn, strict=True):
        with outputs.attempt("examples"):
            write_whole(place / name, _thumbnail([picture, *beside], proportion))


def _thumbnail(pictures: Sequence[Tensor], proportion: float) -> bytes:
    """Draw square pictures beside each other in their true shape, height by width, as a JPEG."""
    width = max(1, round(min(WIDTH, HEIGHT / proportion)))
    height = max(1, round(min(HEIGHT, WIDTH * proportion)))
    strip = Image.new("RGB", (len(pictures) * (width + GAP) - GAP, height), "black")
    for number, shown in enumerate(pictures):
        strip.paste(to_pil_image(shown).resize((width, height)), (number * (width + GAP), 0))
    file = io.BytesIO()
    strip.save(file, "JPEG", quality=85)
    return file.getvalue()
