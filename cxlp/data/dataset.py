"""Samples, and the data set of their images and labels."""

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
        label: Class index; or one value per class: 1 present, -1 absent, 0 unspecified.
        box: ``x, y, w, h`` in pixels, or ``None`` for the whole image.
    """

    path: Path
    label: int | tuple[int, ...]
    box: Box | None = None


#: Contents of a data set's lists: the class names, and the samples of each split.
Content = tuple[tuple[str, ...], dict[Split, list[Sample]]]


def is_there(path: Path) -> bool:
    """Return whether a file exists; False if this process may not enter its folder."""
    try:
        return path.is_file()
    except OSError:
        return False


class Draw(NamedTuple):
    """A sampler's request for one sample.

    Attributes:
        item: Index of the sample.
        seed: Seed of the augmentation, or ``None`` for no augmentation.
        repeat: Whether the sample repeats an earlier one, so that all ranks have equally many.
    """

    item: int
    seed: int | None = None
    repeat: bool = False


class ImageDataset(Dataset[dict[str, Any]]):
    """A data set that decodes and transforms the images of samples.

    Args:
        samples: The samples.
        classes: Class names by index.
        transform: Transforms a decoded image into the network's input.
    """

    def __init__(self, samples: Sequence[Sample], classes: Sequence[str], transform: Transform) -> None:
        self.samples, self.classes, self.transform = list(samples), tuple(classes), transform
        #: Stored features by sample, if there are any. They replace images that are loaded without augmentation.
        self.features: Callable[[int], Tensor] | None = None

    def __repr__(self) -> str:
        return f"{type(self).__name__}({len(self.samples):,} images, {len(self.classes):,} classes)"

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, draw: int | Draw) -> dict[str, Any]:
        """Return an item: ``image`` (uint8, ``(3, H, W)``), ``label`` (int64), ``index`` and ``repeat``.

        ``label`` is a class index ``()``, or has one value per class, ``(K,)``.
        If there are stored features, ``features`` replaces ``image``.

        Raises:
            CxlpError: If the file cannot be decoded; the error names it.
        """
        draw = draw if isinstance(draw, Draw) else Draw(draw)
        sample = self.samples[draw.item]
        item = {"label": torch.tensor(sample.label), "index": draw.item, "repeat": draw.repeat}
        if self.features is not None and draw.seed is None:
            return {"features": self.features(draw.item), **item}
        return {"image": self.picture(draw), **item}

    def picture(self, draw: Draw) -> Tensor:
        """Return the decoded and transformed image of a sample, ``(3, H, W)``, uint8.

        Raises:
            CxlpError: If the file cannot be decoded, or a user's transform fails; the error names the file.
        """
        sample = self.samples[draw.item]
        pixels = read_image(sample.path, sample.box, self.transform.needed(draw.seed))
        try:
            return self.transform(pixels, draw.seed)
        except CxlpError as error:
            raise CxlpError(f"{error} (image {sample.path})") from error

    def proportion(self, item: int) -> float:
        """Return the ratio of height to width of the image region that a sample's square input shows."""
        sample = self.samples[item]
        return self.transform.proportion(read_image(sample.path, sample.box, self.transform.needed(None)))


def rarest(labels: Sequence[int], classes: Sequence[str]) -> str:
    """Return a remark in brackets on the class with the fewest images, at least one."""
    if not labels:
        return ""
    label, count = min(Counter(labels).items(), key=lambda found: found[1])
    return f" (the rarest, {classes[label]!r}, has {count})" if label < len(classes) else ""


def list_defects(classes: Sequence[str], samples: Mapping[Split, Sequence[Sample]]) -> Iterator[str]:
    """Yield each defect of a data set's lists that stops a run, whatever the images contain.

    Args:
        classes: Class names.
        samples: Samples by split; ``train`` contains all images that are fitted.
    """
    if shared := [name for name, count in Counter(classes).items() if count > 1]:
        yield f"several classes have the same name: {', '.join(shared[:5])}"
    labels = [s.label for s in samples["train"]]
    if not labels:
        yield "there are no training images"
    elif len(classes) < 2 and isinstance(labels[0], int):
        yield f"there is only one class, {', '.join(classes)}: classification needs two or more"
    else:
        rows = [label for label in labels if not isinstance(label, int)]
        of_all = {sign: {k for row in rows for k, label in enumerate(row) if label == sign} for sign in (1, -1)}
        known = of_all if rows else {1: set(labels)}  # with one label per image, all other classes are absent
        for sign, what in {1: "no training image of", -1: "no training image lacks"}.items():
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
    """Check that the lists have no defects and that all files exist.

    Args:
        name: Name of the data set, for errors.
        classes: Class names.
        samples: Samples by split.

    Raises:
        CxlpError: If there is a defect, see :func:`list_defects`, or a file is missing; the error names the first one.
    """
    for defect in list_defects(classes, samples):
        raise CxlpError(f"{name}: {defect}")
    everything = {s.path for part in samples.values() for s in part}
    if lacking := [path for path in everything if not is_there(path)]:
        first = min(lacking)
        is_link = os.path.islink(first)  # noqa: PTH114 (raises nothing in a folder that may not be entered)
        link = f" (a link to {first.readlink()}, which is missing or not accessible)" if is_link else ""
        raise CxlpError(f"{name}: {len(lacking):,} of {len(everything):,} images are missing, such as {first}{link}")


def _identity(path: Path) -> object:
    """Return an identifier of a file, equal for all paths that lead to the file."""
    try:
        status = path.stat()
    except (OSError, ValueError):  # the file is missing or inaccessible, or its name is invalid
        return path
    return status.st_dev, status.st_ino
