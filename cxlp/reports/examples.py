"""The worst mistakes of a test and a few right predictions, collected batch by batch over all ranks."""

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

#: Numbers of mistakes and of right predictions that are kept.
MISTAKES, RIGHT = 16, 8
#: Maximum height and width of a thumbnail, and width of the gap between two, in pixels.
HEIGHT, WIDTH, GAP = 140, 186, 4

#: Batch size of images for the network.
BATCH = 8
#: If the first image takes less than this with one thread, the others use one thread, too. Threads wait for each
#: other after each operation, so that beside another busy process a small network takes ten times as long with all
#: threads; a large network is faster with them.
ONE_THREAD_SECONDS = 1.0

#: Draws evidence. Arguments: the network, images ``(B, 3, H, W)`` uint8, and the statements about each image.
#: Result: for each image a drawing ``(3, h, w)`` uint8 per statement.
Overlay = Callable[[Network, Tensor, Sequence[Sequence[Statement]]], list[list[Tensor]]]


class Example(NamedTuple):
    """A prediction for one image or, with several labels per image, for one class in one image.

    Attributes:
        loss: Negative log-probability of the truth.
        position: Index of the image in the test split.
        shown: The predicted class; with several labels per image the class in question.
        true: The true class; with several labels ``shown``, or -1 if the class is absent.
        answered: The predicted class; with several labels ``shown``, or -1 if the class is predicted to be absent.
        probability: Probability of the prediction.
    """

    loss: float
    position: int
    shown: int
    true: int
    answered: int
    probability: float

    @property
    def truth(self) -> float:
        """Probability of the truth."""
        return math.exp(-self.loss)

    @property
    def statements(self) -> list[Statement]:
        """The prediction and, if it is wrong, the truth."""
        both = [(k, 1) if k >= 0 else (self.shown, -1) for k in (self.answered, self.true)]
        return list(dict.fromkeys(both))

    def names(self, classes: Sequence[str]) -> tuple[str, str]:
        """Return the truth and the prediction as text."""
        absent = f"no {classes[self.shown]}"
        true, answered = (classes[k] if k >= 0 else absent for k in (self.true, self.answered))
        return true, answered


class Examples:
    """Collects the mistakes with the largest loss, and the most probable right prediction of each class.

    Batches are added one by one. The result does not depend on the order of the images or on their distribution over
    ranks: ties keep the image with the smaller index.
    """

    def __init__(self) -> None:
        self.mistakes: list[Example] = []
        self.right: dict[int, Example] = {}

    def update(self, scores: Tensor, labels: Tensor, positions: Tensor) -> None:
        """Add a batch.

        Args:
            scores: Logits ``(B, K)``.
            labels: ``(B,)`` class indices, or ``(B, K)`` of 1 (present), -1 (absent) or 0 (unspecified).
            positions: ``(B,)`` indices of the images in the test split.
        """
        found = _predictions(scores.float(), labels, positions)
        wrong = [example for example in found if example.true != example.answered]
        self.mistakes = heapq.nsmallest(MISTAKES, [*self.mistakes, *wrong], key=_worst_first)
        # With several labels per image, a right prediction of an absent class is not worth showing.
        self._keep_right(example for example in found if example.true == example.answered >= 0)

    def gather(self) -> tuple[list[Example], list[Example]]:
        """Combine the examples of all ranks. All ranks must call this method.

        Returns:
            At most 16 mistakes, largest loss first, and at most 8 right predictions of different classes, most probable
            first.
        """
        everywhere = gather_objects((self.mistakes, self.right))
        self.mistakes = heapq.nsmallest(MISTAKES, [e for part, _ in everywhere for e in part], key=_worst_first)
        for _, right in everywhere:
            self._keep_right(right.values())
        return self.mistakes, heapq.nsmallest(RIGHT, self.right.values(), key=_most_probable_first)

    def _keep_right(self, examples: Iterable[Example]) -> None:
        for example in examples:
            kept = self.right.get(example.shown, example)
            self.right[example.shown] = min(kept, example, key=_most_probable_first)


def _worst_first(example: Example) -> tuple[float, int, int]:
    return -example.loss, example.position, example.shown


def _most_probable_first(example: Example) -> tuple[float, int, int]:
    return example.loss, example.position, example.shown


def _predictions(scores: Tensor, labels: Tensor, positions: Tensor) -> list[Example]:
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
    # NaN scores count as the worst mistakes.
    columns = (columns[0].nan_to_num(nan=math.inf, posinf=math.inf), *columns[1:])
    return [Example(*values) for values in zip(*(column.tolist() for column in columns), strict=True)]


def _named(mistakes: Sequence[Example], right: Sequence[Example]) -> Iterator[tuple[str, str, Example]]:
    """Yield the file name of the thumbnail, the kind, and the example."""
    for kind, examples in (("mistake", mistakes), ("right", right)):
        for number, example in enumerate(examples, 1):
            yield f"{kind}-{number:02d}.jpg", kind, example


def example_table(
    data: ImageDataset, mistakes: Sequence[Example], right: Sequence[Example]
) -> tuple[list[str], list[list[Any]]]:
    """Return the table of the examples, with the file names of their thumbnails.

    Args:
        data: The test split.
        mistakes: Mistakes from :meth:`Examples.gather`.
        right: Right predictions from :meth:`Examples.gather`.

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
        network: The tested network.
        data: The test split.
        mistakes: Mistakes from :meth:`Examples.gather`.
        right: Right predictions from :meth:`Examples.gather`.
        outputs: Records failures. If a thumbnail fails, the others are still written. If the evidence cannot be drawn,
            the thumbnails show only the images.
        overlay: Draws the evidence beside the image, for the prediction and, if it is wrong, for the truth.
    """
    place = folder / "examples"
    with outputs.attempt("examples"):
        place.mkdir(exist_ok=True)
        for path in place.iterdir():
            path.unlink()
    named = [(name, example) for name, _, example in _named(mistakes, right)]
    begun = time.thread_time()  # CPU time of this thread, without that of other processes
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
    """Draw square images side by side as a JPEG, stretched to ``proportion``, their height divided by width."""
    width = max(1, round(min(WIDTH, HEIGHT / proportion)))
    height = max(1, round(min(HEIGHT, WIDTH * proportion)))
    strip = Image.new("RGB", (len(pictures) * (width + GAP) - GAP, height), "black")
    for number, shown in enumerate(pictures):
        strip.paste(to_pil_image(shown).resize((width, height)), (number * (width + GAP), 0))
    file = io.BytesIO()
    strip.save(file, "JPEG", quality=85)
    return file.getvalue()
