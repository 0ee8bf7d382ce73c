"""Average precision compared with reference implementations and with cases worked by hand."""

from collections.abc import Callable
from fractions import Fraction
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from sklearn import config_context
from sklearn.metrics import average_precision_score
from torch import Tensor

from cxlp.metrics.average_precision import Kind, average_precision, mean_average_precision
from cxlp.metrics.classification import (
    RankingMetric,
    multi_label_metrics,
    per_class_average_precision,
)
from cxlp.utils.errors import CxlpError

KINDS: list[Kind] = ["11point", "allpoint", "uninterpolated"]
Array = NDArray[Any]

# --- references, implemented from the definitions ------------------------------------------------------


def precision_and_recall(positive: list[bool]) -> tuple[list[Fraction], list[Fraction]]:
    """Compute precision and recall after each row of a ranked list, as in the VOC devkit."""
    precision, recall = [], []
    found = 0
    for seen, hit in enumerate(positive, start=1):
        found += hit
        precision.append(Fraction(found, seen))
        recall.append(Fraction(found, sum(positive)))
    return precision, recall


def eleven_points(positive: list[bool]) -> float:
    """VOC 2007: the mean over eleven recall levels of the best precision at that recall or a higher one."""
    precision, recall = precision_and_recall(positive)
    total = Fraction(0)
    for tenth in range(11):
        best = Fraction(0)
        for p, r in zip(precision, recall, strict=True):
            if r >= Fraction(tenth, 10):
                best = max(best, p)
        total += best / 11
    return float(total)


def area(positive: list[bool]) -> float:
    """VOC 2010 and later: the area under the precision after it is made monotonically decreasing."""
    precision, recall = precision_and_recall(positive)
    precision, recall = [Fraction(0), *precision, Fraction(0)], [Fraction(0), *recall, Fraction(1)]
    for i in range(len(precision) - 2, -1, -1):
        precision[i] = max(precision[i], precision[i + 1])
    total = Fraction(0)
    for i in range(1, len(recall)):
        if recall[i] != recall[i - 1]:
            total += (recall[i] - recall[i - 1]) * precision[i]
    return float(total)


DEVKIT: dict[Kind, Callable[[list[bool]], float]] = {"11point": eleven_points, "allpoint": area}


def absent_first(scores: Array, labels: Array) -> list[bool]:
    """Rank one class: ignored rows are dropped, and absent precedes present among equal scores."""
    rows = sorted((-float(s), int(y)) for s, y in zip(scores, labels, strict=True) if y != 0)
    return [y > 0 for _, y in rows]


def listed_first(scores: Array, labels: Array) -> list[bool]:
    """Rank one class as in the devkit, by a stable sort."""
    rows = [(-float(s), int(y)) for s, y in zip(scores, labels, strict=True) if y != 0]
    return [y > 0 for _, y in sorted(rows, key=lambda row: row[0])]


def reference(scores: Array, labels: Array, kind: Kind) -> float:
    """Compute one class by the devkit's loops or by scikit-learn."""
    if not (labels > 0).any():
        return float("nan")
    if kind == "uninterpolated":
        counts = labels != 0
        with config_context(skip_parameter_validation=True):  # which takes most of the time
            return float(average_precision_score(labels[counts] > 0, scores[counts].astype(np.float64)))
    return DEVKIT[kind](absent_first(scores, labels))


def assert_is_the_reference(scores: Array, labels: Array) -> None:
    """Compute all three kinds for all classes."""
    for kind in KINDS:
        expected = [reference(s, y, kind) for s, y in zip(scores.T, labels.T, strict=True)]
        np.testing.assert_allclose(average_precision(scores, labels, kind), expected, rtol=0, atol=1e-12, err_msg=kind)


# --- average precision: thousands of random cases ---------------------------------------------------

LABELS = st.sampled_from((-1, 0, 1))
TIED = st.sampled_from((-3.0, -0.0, 0.0, 0.5, 40.0))
ANY = st.floats(allow_nan=False, allow_infinity=False, width=32)


def columns(rows: list[tuple[float, int]]) -> tuple[Array, Array]:
    """Return random rows of one class as ``(n, 1)`` scores and labels."""
    table = np.array(rows, dtype=np.float64).reshape(-1, 2)
    return table[:, :1], table[:, 1:].astype(np.int8)


@settings(max_examples=600, deadline=None)
@given(
    st.lists(st.tuples(TIED, LABELS) | st.tuples(TIED | ANY, LABELS), max_size=12), st.randoms(use_true_random=False)
)
def test_average_precision_of_few_rows(rows: list[tuple[float, int]], random: Any) -> None:
    scores, labels = columns(rows)
    assert_is_the_reference(scores, labels)
    shuffled = columns(random.sample(rows, len(rows)))
    for kind in KINDS:  # bitwise independent of the order of rows
        assert np.array_equal(
            average_precision(scores, labels, kind), average_precision(*shuffled, kind), equal_nan=True
        )
    if not (labels > 0).any():
        return
    for name, devkit in DEVKIT.items():  # ties cost at most as much as in the devkit's worst order
        ours = average_precision(scores, labels, name)[0]
        official = devkit(listed_first(scores[:, 0], labels[:, 0]))
        assert ours <= official + 1e-12
        if not set(scores[labels > 0]) & set(scores[labels < 0]):
            assert ours == pytest.approx(official, abs=1e-12)


@settings(max_examples=500, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    n=st.integers(0, 120),
    classes=st.integers(1, 4),
    levels=st.sampled_from((1, 2, 7, 1000)),
    present=st.floats(0, 1),
    ignored=st.sampled_from((0.0, 0.1, 0.9, 1.0)),
)
def test_average_precision_of_many_rows(
    seed: int, n: int, classes: int, levels: int, present: float, ignored: float
) -> None:
    rng = np.random.default_rng(seed)
    labels = np.where(rng.random((n, classes)) < present, 1, -1)
    labels[rng.random((n, classes)) < ignored] = 0
    scores = (rng.integers(0, levels, (n, classes)) - levels / 2) * 7.3 + 0.3 * labels * (levels > 7)
    assert_is_the_reference(scores, labels)


# --- average precision: cases worked by hand --------------------------------------------------------


def one_class(positive: list[int]) -> tuple[Array, Array]:
    """Return labels ranked by decreasing scores."""
    return -np.arange(len(positive), dtype=np.float32)[:, None], np.array(positive)[:, None]


@pytest.mark.parametrize(
    ("kind", "expected"), [("11point", (4 + 7 * 0.6) / 11), ("allpoint", 2.2 / 3), ("uninterpolated", 2.1 / 3)]
)
def test_the_kinds_differ_as_defined(kind: Kind, expected: float) -> None:
    # Precision 1, 1/2, 1/3, 2/4, 3/5 at recall 1/3, 1/3, 1/3, 2/3, 1.
    assert average_precision(*one_class([1, -1, -1, 1, 1]), kind)[0] == pytest.approx(expected)


@pytest.mark.parametrize("tenths", range(1, 10))
def test_recalls_are_compared_exactly(tenths: int) -> None:
    scores, labels = one_class([1] * tenths + [-1] * 30 + [1] * (10 - tenths))
    expected = (tenths + 1 + (10 - tenths) * 10 / 40) / 11
    assert average_precision(scores, labels, "11point")[0] == pytest.approx(expected)


@pytest.mark.parametrize("kind", KINDS)
def test_ranks_by_scores_of_any_range(kind: Kind) -> None:
    labels = np.array([[1], [-1], [1], [-1]])
    scores = np.array([[90.0], [80.0], [70.0], [60.0]])  # a sigmoid in float32 would round all to 1
    expected = average_precision(scores / 1000, labels, kind)
    assert expected[0] > 0.8
    assert average_precision(scores, labels, kind) == expected
    assert average_precision(scores - 1000, labels, kind) == expected
    metric = RankingMetric(1, partial(average_precision, kind=kind))
    metric.update(torch.from_numpy(scores), torch.from_numpy(labels))
    assert metric.compute() == pytest.approx(expected[0])


@pytest.mark.parametrize("kind", KINDS)
def test_infinite_scores_and_unsigned_integers_have_ranks_too(kind: Kind) -> None:
    labels = np.array([[1], [-1], [1], [-1]])
    expected = average_precision(np.array([[4.0], [3.0], [2.0], [1.0]]), labels, kind)
    assert average_precision(np.array([[np.inf], [3.0], [2.0], [-np.inf]]), labels, kind) == expected
    assert average_precision(np.array([[9], [3], [2], [0]], np.uint8), labels, kind) == expected


@pytest.mark.parametrize("kind", KINDS)
def test_equal_scores_get_the_share_of_positives(kind: Kind) -> None:
    labels = np.array([[1], [-1], [-1], [1], [-1], [0]])
    assert average_precision(np.full((6, 1), -3.0), labels, kind)[0] == pytest.approx(2 / 5)


@pytest.mark.parametrize("kind", KINDS)
def test_classes_without_positives_are_nan_and_not_in_the_mean(kind: Kind) -> None:
    # Only absent; all ignored; one present among ignored, whose NaN score does not count; perfect.
    labels = torch.tensor([[-1, 0, 0, 1], [-1, 0, 1, -1], [-1, 0, -1, -1]])
    scores = torch.tensor([[3.0, 3, float("nan"), 3], [2, 2, 1, 2], [1, 1, 2, 1]])
    assert np.array_equal(average_precision(scores, labels, kind), [np.nan, np.nan, 0.5, 1], equal_nan=True)
    assert mean_average_precision(scores, labels, kind) == 0.75


@pytest.mark.parametrize("labels", [torch.zeros(3, 2), -torch.ones(3, 2), torch.zeros(0, 2)])
def test_no_class_with_positives_gives_nan(labels: Tensor) -> None:
    metrics, classes = multi_label_metrics(2, ""), per_class_average_precision(2)
    for collection in (metrics, classes):
        collection.update(torch.rand_like(labels), labels)
    assert all(value.shape == () and value.isnan() for value in metrics.compute().values())
    found = classes.compute()
    assert found.pop("curves").shape == (2, 101)
    assert all(value.shape == (2,) and value.isnan().all() for value in found.values())


def test_wrong_input_is_refused() -> None:
    scores, labels = np.zeros((3, 2)), np.ones((3, 2))
    with pytest.raises(CxlpError, match=r"one shape \(n, K\), not \(3, 2\) and \(3, 1\)"):
        average_precision(scores, labels[:, :1])
    with pytest.raises(CxlpError, match=r"not \(3,\) and \(3,\)"):
        average_precision(scores[:, 0], labels[:, 0])
    with pytest.raises(CxlpError, match=r"or 0 \(ignored\), not 2"):
        average_precision(scores, labels * 2)
    with pytest.raises(CxlpError, match="some scores are NaN"):
        average_precision(scores * np.nan, labels)
    with pytest.raises(CxlpError, match="'voc'; valid: 11point, allpoint, uninterpolated"):
        average_precision(scores, labels, "voc")  # type: ignore[arg-type]
    with pytest.raises(CxlpError, match=r"of shape \(images, 3\), not \(3, 2\) and \(3, 2\)"):
        RankingMetric(3, average_precision).update(torch.zeros(3, 2), torch.zeros(3, 2))
