"""Paired tests of systems on the per-image results of their runs."""

import csv
import json
from collections import Counter
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from cxlp.metrics.paired import Paired, holm, paired_accuracy, paired_precision, resampled
from cxlp.runs.matching import match_classes
from cxlp.runs.places import REFIT
from cxlp.utils.errors import CxlpError
from cxlp.utils.spelling import points

#: The note below a comparison.
NOTE = (
    "difference: {metric} minus the {metric} of {reference} on the same test images, in percentage points. With one "
    "run per system, the test is McNemar's exact test, or for mAP a paired bootstrap over images. With several runs on "
    "the same test images, it is Obuchowski and Rockette's test, which treats images and runs as random samples. With "
    "several splits, it is the t-test of Nadeau and Bengio. p (Holm): p-values corrected for all rows together, so "
    "that at a level of 0.05 the probability of any false finding is at most 5 %. Without the correction, one of "
    "twenty systems that are as good as the reference has p < 0.05 on average."
)

#: Runs have the same split if they share at least this fraction of their test images; some may have lost images.
_SAME = 0.9


class Difference(NamedTuple):
    """The comparison of a system with the reference.

    Attributes:
        found: The result of the test.
        adjusted: The p-value, corrected by Holm's method for all tests of the comparison.
        images: Number of compared images per run.
        left_out: Number of images, over all runs, that are left out because some run lacks them or has other labels.
    """

    found: Paired
    adjusted: float
    images: int
    left_out: int

    @property
    def cells(self) -> dict[str, str]:
        """The cells of a table, in percentage points."""
        found = self.found
        return {
            "difference": points(found.difference),
            "95% of it": f"{points(found.low)} to {points(found.high)}",
            "p": p_as_text(found.p),
            "p (Holm)": p_as_text(self.adjusted),
        }


#: The columns of :attr:`Difference.cells`.
COLUMNS = ("difference", "95% of it", "p", "p (Holm)")


def p_as_text(p: float) -> str:
    """Format a p-value with two significant digits, or as ``<0.001``."""
    return "<0.001" if p < 0.001 else f"{p:.3f}" if p < 0.1 else f"{p:.2f}"


@dataclass(frozen=True, repr=False)
class ImageResults:
    """The results of a run's test for each of its n images.

    Attributes:
        folder: The run's folder.
        keys: For each image, its path relative to the root of the data, and its index among the rows of this path.
        classes: Names of classes; with one label per image, of those that have images.
        truth: ``(n,)`` indices into ``classes``; with several labels per image ``(n, K)`` of 1, -1 or 0.
        results: ``(n,)`` booleans, whether the prediction is right; with several labels per image ``(n, K)`` scores.
    """

    folder: Path
    keys: tuple[tuple[str, int], ...]
    classes: tuple[str, ...]
    truth: NDArray[Any]
    results: NDArray[Any]

    def __repr__(self) -> str:
        return f"ImageResults({len(self.keys):,} images of {len(self.classes):,} classes, in {self.folder})"

    @property
    def multi_label(self) -> bool:
        """Whether images may have several labels."""
        return self.truth.ndim == 2

    @property
    def split(self) -> tuple[float, float]:
        """The numbers of test images and training images of the run.

        Raises:
            CxlpError: If ``metrics.json`` is missing or broken.
        """
        try:
            found = json.loads((self.folder / "metrics.json").read_text())["images"]
            return float(found["test"]), float(found["train"])
        except (OSError, ValueError, LookupError, TypeError) as error:
            raise CxlpError(
                f"{self.folder / 'metrics.json'} has no numbers of images ({type(error).__name__}): leave the run out"
            ) from error


def results_folder(folder: Path) -> Path:
    """Return the folder of a run's test results, which is ``refit/`` for a run with a refit."""
    return folder / REFIT if (folder / REFIT / "metrics.json").is_file() else folder


def read_image_results(folder: Path) -> ImageResults:
    """Read a test's results by image: ``predictions.csv``, or with several labels per image ``scores.npz``.

    Raises:
        CxlpError: If the file is missing or broken.
    """
    table, scores = folder / "predictions.csv", folder / "scores.npz"
    try:
        with table.open(newline="", encoding="utf-8", errors="surrogateescape") as file:
            reader = csv.DictReader(file)
            if "right" in (reader.fieldnames or ()):
                records = [(row["path"], row["true"], row["right"]) for row in reader]
                classes = tuple(dict.fromkeys(true for _, true, _ in records))
                number = {name: k for k, name in enumerate(classes)}
                truth = np.array([number[true] for _, true, _ in records], dtype=np.int64)
                right = np.array([bool(int(right)) for *_, right in records], dtype=bool)
                return ImageResults(folder, _keys([path for path, *_ in records]), classes, truth, right)
        with np.load(scores) as found:
            names = tuple(map(str, found["classes"]))
            return ImageResults(folder, _keys(found["paths"].tolist()), names, found["labels"], found["scores"])
    except FileNotFoundError as error:
        raise CxlpError(
            f"{error.filename} is missing: a paired test needs the predictions of a run with run.predictions: all"
        ) from error
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise CxlpError(
            f"{folder}: predictions.csv or scores.npz is broken ({type(error).__name__}): leave the run out"
        ) from error


def _keys(paths: Sequence[str]) -> tuple[tuple[str, int], ...]:
    """Number the rows of each path: an image with several boxes has several rows."""
    seen: dict[str, int] = {}
    found = []
    for path in paths:
        seen[path] = seen.get(path, -1) + 1
        found.append((path, seen[path]))
    return tuple(found)


def compare(
    systems: Mapping[str, Sequence[Path]], reference: str, refused: dict[str, CxlpError] | None = None
) -> dict[str, Difference]:
    """Compare systems with a reference among them.

    Images are matched by path and true class, and classes by name, see :func:`~cxlp.runs.matching.match_classes`.

    Args:
        systems: The folders of the test results of each system's runs, by the system's name. The r-th run of a system
            is paired with the r-th run of the reference.
        reference: The name of the reference.
        refused: Collects the errors of systems that cannot be compared, by name; ``None`` raises the first error.

    Returns:
        The differences by name, without the reference. Holm's correction is for the tests that were done.

    Raises:
        CxlpError: If the reference has no per-image results, or ``refused`` is ``None`` and the runs of a system cannot
            be paired.
    """
    theirs = [read_image_results(place) for place in systems[reference]]
    found = {}
    for name, places in systems.items():
        if name != reference:
            try:
                found[name] = _compare(name, reference, [read_image_results(place) for place in places], theirs)
            except CxlpError as error:
                if refused is None:
                    raise
                refused[name] = error
    adjusted = holm([test.p for test, *_ in found.values()])
    return {
        name: Difference(test, p, *counts) for (name, (test, *counts)), p in zip(found.items(), adjusted, strict=True)
    }


def _compare(
    name: str, reference: str, ours: Sequence[ImageResults], theirs: Sequence[ImageResults]
) -> tuple[Paired, int, int]:
    if len(ours) != len(theirs):
        raise CxlpError(
            f"{name} has {len(ours)} runs and {reference} has {len(theirs)}: name the same number of runs of both, "
            "because the r-th runs are paired"
        )
    pairs = [_match(one, other) for one, other in zip(ours, theirs, strict=True)]
    common = set(pairs[0].keys).intersection(*(pair.keys for pair in pairs))
    is_one_split = all(len(common) >= _SAME * len(pair.keys) for pair in pairs)
    if is_one_split:
        pairs = [pair.only(common) for pair in pairs]
    first, left_out = pairs[0], sum(pair.left_out for pair in pairs)
    if not is_one_split:
        found = np.array([_test([pair]).difference for pair in pairs])
        test, train = np.mean([results.split for results in theirs], axis=0).tolist()
        return resampled(found, test, train), len(first.keys), left_out
    if any(not np.array_equal(pair.truth, first.truth) for pair in pairs):
        raise CxlpError(f"the runs of {name} have different labels for the same test images: compare them one by one")
    return _test(pairs), len(first.keys), left_out


class _Pair(NamedTuple):
    """The results of two runs for the images of both, in the same order.

    ``truth`` has the names of classes; with several labels per image, it has 1, -1 or 0 for each class.
    """

    keys: tuple[tuple[str, int], ...]
    truth: NDArray[Any]
    ours: NDArray[Any]
    theirs: NDArray[Any]
    left_out: int

    def only(self, keys: Set[tuple[str, int]]) -> "_Pair":
        """Keep only the images with these keys."""
        kept = [i for i, key in enumerate(self.keys) if key in keys]
        left_out = self.left_out + 2 * (len(self.keys) - len(kept))
        return _Pair(tuple(self.keys[i] for i in kept), self.truth[kept], self.ours[kept], self.theirs[kept], left_out)


def _match(one: ImageResults, other: ImageResults) -> _Pair:
    if one.multi_label != other.multi_label:
        raise CxlpError(
            f"{one.folder} and {other.folder} cannot be compared: only one of them has several labels per image"
        )
    places = match_classes(one.classes, other.classes)
    row = {key: i for i, key in enumerate(other.keys)}
    mine, theirs = one.truth, other.truth
    if one.multi_label:
        columns = sorted(places)
        mine, theirs = mine[:, columns], theirs[:, [places[k] for k in columns]]
    else:
        mine = np.array([places.get(k, -1) for k in mine.tolist()])
    # If the runs have different numbers of rows for a path, it is unknown which rows correspond.
    counts = [Counter(path for path, _ in run.keys) for run in (one, other)]
    known = [(i, key) for i, key in enumerate(one.keys) if key in row and counts[0][key[0]] == counts[1][key[0]]]
    shared = [(i, row[key]) for i, key in known]
    same = sorted(((i, j) for i, j in shared if np.array_equal(mine[i], theirs[j])), key=lambda pair: one.keys[pair[0]])
    if not same:
        raise CxlpError(
            f"{one.folder} and {other.folder} have no test images in common"
            + (f": {len(shared)} paths are the same, but their labels differ" if shared else "")
        )
    a, b = (list(rows) for rows in zip(*same, strict=True))
    results = one.results[a], other.results[b]
    # Names, because the indices of a run's classes depend on the order of its images.
    truth = mine[a] if one.multi_label else np.array(one.classes)[one.truth[a]]
    if one.multi_label:
        results = results[0][:, columns], results[1][:, [places[k] for k in columns]]
    left_out = len(one.keys) + len(other.keys) - 2 * len(same)
    return _Pair(tuple(one.keys[i] for i in a), truth, *results, left_out)


def _test(pairs: Sequence[_Pair]) -> Paired:
    """Test runs that have the same images. Rows of the same file form a group."""
    first = pairs[0]
    _, groups = np.unique([path for path, _ in first.keys], return_inverse=True)
    ours, theirs = np.stack([pair.ours for pair in pairs]), np.stack([pair.theirs for pair in pairs])
    if first.truth.ndim == 1:
        return paired_accuracy(ours, theirs, groups)
    return paired_precision(ours, theirs, first.truth, groups)
