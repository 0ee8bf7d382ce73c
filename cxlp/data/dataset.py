"""Samples of a data set, and the data set of their pictures."""

import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import Dataset

from cxlp.data.decode import Box, read_image
from cxlp.data.transforms import Transform
from cxlp.utils.errors import CxlpError

Split = Literal["train", "val", "test"]


class Sample(NamedTuple):
    """One image of a data set.

    Attributes:
        path: The file.
        label: Class index; or, for each class, 1 present, -1 absent, 0 unspecified.
        box: ``x, y, w, h`` in pixels, or ``None`` for all of the image.
    """

    path: Path
    label: int | tuple[int, ...]
    box: Box | None = None


#: What a data set's lists say: the names of the classes, and the samples of each split.
Content = tuple[tuple[str, ...], dict[Split, list[Sample]]]


def is_there(path: Path) -> bool:
    """Whether a file is there for this process: in a folder that it may not enter, none is."""
    try:
        return path.is_file()
    except OSError:
        return False


class Draw(NamedTuple):
    """One request to a dataset.

    Attributes:
        item: Which sample.
        seed: What its augmentation is drawn from; ``None``: no augmentation.
        repeat: Whether the sample repeats an earlier one, so that all ranks get equally many.
    """

    item: int
    seed: int | None = None
    repeat: bool = False


class ImageDataset(Dataset[dict[str, Any]]):
    """Samples, decoded and transformed.

    Args:
        samples: What it holds.
        classes: Names by class index.
        transform: Makes the network's input of a picture.
    """

    def __init__(self, samples: Sequence[Sample], classes: Sequence[str], transform: Transform) -> None:
        self.samples, self.classes, self.transform = list(samples), tuple(classes), transform
        #: Features by sample, where they are known: then pictures in order, not augmented, are not decoded.
        self.features: Callable[[int], Tensor] | None = None

    def __repr__(self) -> str:
        return f"{type(self).__name__}({len(self.samples):,} images, {len(self.classes):,} classes)"

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, draw: int | Draw) -> dict[str, Any]:
        """Return ``image`` (uint8, ``(3, H, W)``), ``label`` (int64, ``()`` or ``(K,)``), ``index`` and ``repeat``.

        Where the features are known, ``features`` takes the place of ``image``.

        Raises:
            CxlpError: If the file cannot be decoded; names it.
        """
        draw = draw if isinstance(draw, Draw) else Draw(draw)
        sample = self.samples[draw.item]
        item = {"label": torch.tensor(sample.label), "index": draw.item, "repeat": draw.repeat}
        if self.features is not None and draw.seed is None:
            return {"features": self.features(draw.item), **item}
        return {"image": self.picture(draw), **item}

    def picture(self, draw: Draw) -> Tensor:
        """Decode and transform a sample's picture: uint8, ``(3, H, W)``.

        Raises:
            CxlpError: If the file cannot be decoded, or a change of one's own fails; names it.
        """
        sample = self.samples[draw.item]
        pixels = read_image(sample.path, sample.box, self.transform.needed(draw.seed))
        try:
            return self.transform(pixels, draw.seed)
        except CxlpError as error:
            raise CxlpError(f"{error} (of {sample.path})") from error

    def proportion(self, item: int) -> float:
        """Height, in parts of the width, of what a sample's square picture shows."""
        sample = self.samples[item]
        return self.transform.proportion(read_image(sample.path, sample.box, self.transform.needed(None)))


def rarest(labels: Sequence[int], classes: Sequence[str]) -> str:
    """Name the class that has the fewest images, in brackets; classes without any are left out."""
    if not labels:
        return ""
    label, count = min(Counter(labels).items(), key=lambda found: found[1])
    return f" (the rarest, {classes[label]!r}, has {count})" if label < len(classes) else ""


def list_defects(classes: Sequence[str], samples: Mapping[Split, Sequence[Sample]]) -> Iterator[str]:
    """Yield each defect of a data set's lists that stops a run, whatever the images hold.

    Args:
        classes: Names.
        samples: By split; ``train``: all that are fitted.
    """
    if shared := [name for name, count in Counter(classes).items() if count > 1]:
        yield f"several classes have the same name: {', '.join(shared[:5])}"
    labels = [s.label for s in samples["train"]]
    if not labels:
        yield "there are no training images"
    elif len(classes) < 2 and isinstance(labels[0], int):
        yield f"there is only one class, {', '.join(classes)}: nothing to tell apart"
    else:
        rows = [label for label in labels if not isinstance(label, int)]
        of_all = {sign: {k for row in rows for k, label in enumerate(row) if label == sign} for sign in (1, -1)}
        known = of_all if rows else {1: set(labels)}  # where each image shows one class, it lacks the others
        for sign, what in {1: "no training image of", -1: "not one training image lacks"}.items():
            without = [name for k, name in enumerate(classes) if k not in known.get(sign, range(len(classes)))]
            if without:
                yield f"{what} {len(without)} of {len(classes)} classes: {', '.join(without[:5])}"
    if not samples["test"]:
        yield "there are no test images"
    identity = {path: _identity(path) for path in {s.path for part in samples.values() for s in part}}
    shown: dict[object, Sample] = {}
    for sample in (s for part in samples.values() for s in part if isinstance(s.label, int)):
        earlier = shown.setdefault((identity[sample.path], sample.box), sample)
        if earlier.label != sample.label:
            yield f"{earlier.path} and {sample.path} are the same file, under two classes: keep one"
            break
    files = {split: {identity[s.path]: s.path for s in part} for split, part in samples.items()}
    for one, other in combinations(samples, 2):
        if both := files[one].keys() & files[other].keys():
            path, twin = min((files[one][file], files[other][file]) for file in both)
            same = "" if path == twin else f", which is the same file as {twin}"
            yield f"{len(both)} images are in {one} and in {other}, such as {path}{same}: keep each once"


def check_samples(name: str, classes: Sequence[str], samples: Mapping[Split, Sequence[Sample]]) -> None:
    """Refuse lists that stop a run.

    Args:
        name: The data set's.
        classes: Names.
        samples: By split.

    Raises:
        CxlpError: Names the first defect, see :func:`list_defects`, or a file that is not there.
    """
    for defect in list_defects(classes, samples):
        raise CxlpError(f"{name}: {defect}")
    everything = {s.path for part in samples.values() for s in part}
    if lacking := [path for path in everything if not is_there(path)]:
        first = min(lacking)
        is_link = os.path.islink(first)  # noqa: PTH114 (raises nothing in a folder that may not be entered)
        link = f" (a link to {first.readlink()}, which is not there or cannot be reached)" if is_link else ""
        raise CxlpError(f"{name}: {len(lacking):,} of {len(everything):,} images are missing, such as {first}{link}")


def _identity(path: Path) -> object:
    """What two names of the same file have in common."""
    try:
        status = path.stat()
    except (OSError, ValueError):  # it is not there, may not be looked at, or has a name that no file can have
        return path
    return status.st_dev, status.st_ino
