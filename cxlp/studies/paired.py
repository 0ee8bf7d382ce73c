"""Paired tests of systems, by what their runs have left of their tests image by image."""

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

#: What a comparison says of itself.
NOTE = (
    "difference: {metric} of the same test images, minus that of {reference}, in points. One run of each: McNemar's "
    "exact test, for mAP a paired bootstrap over images. Several runs with the same test images: Obuchowski and "
    "Rockette's test, for which images and runs are draws. Several splits: the t-test of Nadeau and Bengio. p (Holm): "
    "the p-values of all rows together, so that any false finding among them has a chance of 5 % at most; without it, "
    "one of twenty systems that are as good as the reference has a p below 0.05."
)

#: Runs that share this part of their test images, or more, have one split, from which some of them have lost images.
_SAME = 0.9


class Difference(NamedTuple):
    """A row's comparison with the reference.

    Attributes:
        found: The test.
        adjusted: Its p-value by Holm, among all that were made with it.
        images: How many images, of a run.
        left_out: How many other images some of the runs have, not all, or with other labels; of all runs.
    """

    found: Paired
    adjusted: float
    images: int
    left_out: int

    @property
    def cells(self) -> dict[str, str]:
        """For a table, in points."""
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
    """Write a p-value with two digits."""
    return "<0.001" if p < 0.001 else f"{p:.3f}" if p < 0.1 else f"{p:.2f}"


@dataclass(frozen=True, repr=False)
class Answers:
    """What a run's test has answered.

    Attributes:
        folder: Of the run.
        keys: Each image's path below the root of its data, and which of the rows of this path it is, from 0.
        classes: Names; of one label per image, those that have images.
        truth: ``(n,)`` indices of ``classes``; of several labels ``(n, K)`` of 1, -1, 0.
        answers: ``(n,)``, whether it is right; of several labels ``(n, K)`` scores.
    """

    folder: Path
    keys: tuple[tuple[str, int], ...]
    classes: tuple[str, ...]
    truth: NDArray[Any]
    answers: NDArray[Any]

    def __repr__(self) -> str:
        return f"Answers({len(self.keys):,} images of {len(self.classes):,} classes, in {self.folder})"

    @property
    def multi_label(self) -> bool:
        """Whether images have several labels."""
        return self.truth.ndim == 2

    @property
    def split(self) -> tuple[float, float]:
        """How many test images, and how many training images, the run had."""
        try:
            found = json.loads((self.folder / "metrics.json").read_text())["images"]
            return float(found["test"]), float(found["train"])
        except (OSError, ValueError, LookupError, TypeError) as error:
            raise CxlpError(f"{self.folder / 'metrics.json'} does not say how many images the run had") from error


def results_folder(folder: Path) -> Path:
    """The folder of a run's test results: for a refit, that of its second run."""
    return folder / REFIT if (folder / REFIT / "metrics.json").is_file() else folder


def read_answers(folder: Path) -> Answers:
    """Read ``predictions.csv``, or of several labels per image ``scores.npz``, which alone has all scores.

    Raises:
        CxlpError: If it is not there, or not whole.
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
                return Answers(folder, _keys([path for path, *_ in records]), classes, truth, right)
        with np.load(scores) as found:
            names = tuple(map(str, found["classes"]))
            return Answers(folder, _keys(found["paths"].tolist()), names, found["labels"], found["scores"])
    except FileNotFoundError as error:
        raise CxlpError(
            f"{error.filename} is not there: answers image by image are what a paired test is made of "
            "(run.predictions: all)"
        ) from error
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise CxlpError(f"{folder} has no whole predictions.csv and scores.npz ({type(error).__name__})") from error


def _keys(paths: Sequence[str]) -> tuple[tuple[str, int], ...]:
    """Number the rows of each path, as boxes in one picture are."""
    seen: dict[str, int] = {}
    found = []
    for path in paths:
        seen[path] = seen.get(path, -1) + 1
        found.append((path, seen[path]))
    return tuple(found)


def compare(
    systems: Mapping[str, Sequence[Path]], reference: str, refused: dict[str, CxlpError] | None = None
) -> dict[str, Difference]:
    """Compare systems with one of them.

    Images are matched by path and true class, classes by their names, see
    :func:`~cxlp.runs.matching.match_classes`.

    Args:
        systems: By name the folders of the test results of its runs; run r of one is paired with run r of the other.
        reference: The name of the system that all others are compared with.
        refused: Collects, by name, the errors of systems that cannot be compared; ``None``: the first one is raised.

    Returns:
        The differences by name, without the reference. Holm's correction counts the tests that were done.

    Raises:
        CxlpError: If the reference has no answers, or a system cannot be compared and ``refused`` is ``None``.
    """
    theirs = [read_answers(place) for place in systems[reference]]
    found = {}
    for name, places in systems.items():
        if name != reference:
            try:
                found[name] = _compare(name, reference, [read_answers(place) for place in places], theirs)
            except CxlpError as error:
                if refused is None:
                    raise
                refused[name] = error
    adjusted = holm([test.p for test, *_ in found.values()])
    return {
        name: Difference(test, p, *counts) for (name, (test, *counts)), p in zip(found.items(), adjusted, strict=True)
    }


def _compare(name: str, reference: str, ours: Sequence[Answers], theirs: Sequence[Answers]) -> tuple[Paired, int, int]:
    if len(ours) != len(theirs):
        raise CxlpError(
            f"{name} has {len(ours)} runs and {reference} has {len(theirs)}: the r-th run of the one is compared with "
            "the r-th of the other, so give as many"
        )
    pairs = [_match(one, other) for one, other in zip(ours, theirs, strict=True)]
    common = set(pairs[0].keys).intersection(*(pair.keys for pair in pairs))
    is_one_split = all(len(common) >= _SAME * len(pair.keys) for pair in pairs)
    if is_one_split:
        pairs = [pair.only(common) for pair in pairs]
    first, left_out = pairs[0], sum(pair.left_out for pair in pairs)
    if not is_one_split:
        found = np.array([_test([pair]).difference for pair in pairs])
        test, train = np.mean([answers.split for answers in theirs], axis=0).tolist()
        return resampled(found, test, train), len(first.keys), left_out
    if any(not np.array_equal(pair.truth, first.truth) for pair in pairs):
        raise CxlpError(f"the runs of {name} have other labels for the same test images: compare them one by one")
    return _test(pairs), len(first.keys), left_out


class _Pair(NamedTuple):
    """Two runs' answers to the images that both have, in one order; the truth is names, or of several labels signs."""

    keys: tuple[tuple[str, int], ...]
    truth: NDArray[Any]
    ours: NDArray[Any]
    theirs: NDArray[Any]
    left_out: int

    def only(self, keys: Set[tuple[str, int]]) -> "_Pair":
        """Leave out all other images."""
        kept = [i for i, key in enumerate(self.keys) if key in keys]
        left_out = self.left_out + 2 * (len(self.keys) - len(kept))
        return _Pair(tuple(self.keys[i] for i in kept), self.truth[kept], self.ours[kept], self.theirs[kept], left_out)


def _match(one: Answers, other: Answers) -> _Pair:
    if one.multi_label != other.multi_label:
        raise CxlpError(f"{one.folder} and {other.folder}: images of one have a label each, of the other several")
    places = match_classes(one.classes, other.classes)
    row = {key: i for i, key in enumerate(other.keys)}
    mine, theirs = one.truth, other.truth
    if one.multi_label:
        columns = sorted(places)
        mine, theirs = mine[:, columns], theirs[:, [places[k] for k in columns]]
    else:
        mine = np.array([places.get(k, -1) for k in mine.tolist()])
    # Where a path has several rows, and just one of the runs has kept them all, which is which is not known.
    counts = [Counter(path for path, _ in answers.keys) for answers in (one, other)]
    known = [(i, key) for i, key in enumerate(one.keys) if key in row and counts[0][key[0]] == counts[1][key[0]]]
    shared = [(i, row[key]) for i, key in known]
    same = sorted(((i, j) for i, j in shared if np.array_equal(mine[i], theirs[j])), key=lambda pair: one.keys[pair[0]])
    if not same:
        raise CxlpError(
            f"{one.folder} and {other.folder} were tested on no image in common"
            + (f": {len(shared)} paths are the same, with other labels" if shared else "")
        )
    a, b = (list(rows) for rows in zip(*same, strict=True))
    answers = one.answers[a], other.answers[b]
    # By name: the numbers of a run's classes depend on which of its images comes first.
    truth = mine[a] if one.multi_label else np.array(one.classes)[one.truth[a]]
    if one.multi_label:
        answers = answers[0][:, columns], answers[1][:, [places[k] for k in columns]]
    left_out = len(one.keys) + len(other.keys) - 2 * len(same)
    return _Pair(tuple(one.keys[i] for i in a), truth, *answers, left_out)


def _test(pairs: Sequence[_Pair]) -> Paired:
    """Test runs that have the same images; those of one file are a group."""
    first = pairs[0]
    _, groups = np.unique([path for path, _ in first.keys], return_inverse=True)
    ours, theirs = np.stack([pair.ours for pair in pairs]), np.stack([pair.theirs for pair in pairs])
    if first.truth.ndim == 1:
        return paired_accuracy(ours, theirs, groups)
    return paired_precision(ours, theirs, first.truth, groups)
