"""Average precision: interpolated at 11 points, interpolated at all points, and not interpolated."""

from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from cxlp.utils.errors import CxlpError

Kind = Literal["11point", "allpoint", "uninterpolated"]


def average_precision(
    scores: NDArray[Any] | Tensor, labels: NDArray[Any] | Tensor, kind: Kind = "11point"
) -> NDArray[np.float64]:
    """Compute the average precision of each class.

    For each class, images with label 0 are ignored, and the others are ranked by decreasing score. At each distinct
    score ``s``, the precision ``p`` and the recall ``r`` are computed from the images with a score of at least ``s``.
    With the interpolated precision ``P(t) = max {p : r >= t}`` (0 if no recall is that high):

    - ``"11point"``: ``1/11 sum_(t = 0, .1, ..., 1) P(t)`` (Pascal VOC 2007; Everingham et al., IJCV 2010). Recalls are
      compared exactly: 3 of 10 positives reach t = 0.3, which they would miss in floating point.
    - ``"allpoint"``: the area under ``P`` over [0, 1] (Pascal VOC 2010 and later).
    - ``"uninterpolated"``: ``sum_j (r_j - r_(j-1)) p_j`` (scikit-learn's ``average_precision_score``).

    Images with tied scores are added together, so the result depends neither on the order of images nor on their
    distribution over processes. The official VOC devkit ranks tied images in the order of its list. The two
    interpolated kinds equal its value for the worst such order (negatives first). So they are never higher than its
    value, and equal to it unless a positive and a negative image tie.

    Args:
        scores: ``(n, K)``, any real numbers, including infinities. Tensors must be on the CPU.
        labels: ``(n, K)``: 1 present, -1 absent, 0 ignored (unlike the {0, 1} of other libraries).
        kind: One of the three kinds.

    Returns:
        ``(K,)`` in [0, 1]; NaN for a class without positives, whose average precision is undefined.

    Raises:
        CxlpError: If shapes differ, the kind or a label is unknown, or the score of an image that is not ignored is
            NaN.
    """
    if kind not in get_args(Kind):
        raise CxlpError(f"unknown kind of average precision {kind!r}; valid: {', '.join(get_args(Kind))}")
    return np.array([_of_one_class(s, positive, kind) for s, positive in by_class(scores, labels)])


def mean_average_precision(
    scores: NDArray[Any] | Tensor, labels: NDArray[Any] | Tensor, kind: Kind = "11point"
) -> NDArray[np.float64]:
    """Compute the mean of :func:`average_precision` over the classes that have positives.

    Returns:
        A scalar ``()`` in [0, 1]; NaN if no class has positives.
    """
    values = average_precision(scores, labels, kind)
    defined = values[~np.isnan(values)]
    return np.array(defined.mean() if len(defined) else np.nan)


def precision_curves(scores: NDArray[Any] | Tensor, labels: NDArray[Any] | Tensor) -> NDArray[np.float64]:
    """Compute each class's interpolated precision ``P(t)`` at ``t = 0, .01, ..., 1``, see :func:`average_precision`.

    Args:
        scores: ``(n, K)``, any real numbers.
        labels: ``(n, K)``: 1 present, -1 absent, 0 ignored.

    Returns:
        ``(K, 101)`` in [0, 1]; NaN for a class without positives.

    Raises:
        CxlpError: If shapes differ, a label is unknown, or the score of an image that is not ignored is NaN.
    """
    return np.array([_interpolated(s, positive, 100) for s, positive in by_class(scores, labels)])


def by_class(
    scores: NDArray[Any] | Tensor, labels: NDArray[Any] | Tensor
) -> list[tuple[NDArray[Any], NDArray[np.bool_]]]:
    """Return for each class the scores of the images that are not ignored, and which of them are positive."""
    scores, labels = np.asarray(scores), np.asarray(labels)
    if scores.ndim != 2 or scores.shape != labels.shape:
        raise CxlpError(
            f"average precision takes scores and labels of one shape (n, K), not {scores.shape} and {labels.shape}"
        )
    odd = ~np.isin(labels, (-1, 0, 1))
    if odd.any():
        raise CxlpError(f"labels must be 1 (present), -1 (absent) or 0 (ignored), not {labels[odd][0]}")
    if np.isnan(scores[labels != 0]).any():
        raise CxlpError("some scores are NaN, so images cannot be ranked: check the network and its weights")
    return [(s[y != 0], y[y != 0] > 0) for s, y in zip(scores.T, labels.T, strict=True)]


def _of_one_class(scores: NDArray[Any], positive: NDArray[np.bool_], kind: Kind) -> float:
    if not positive.any():
        return float("nan")
    if kind == "11point":
        return float(_interpolated(scores, positive, 10).mean())
    found, precision = _ranked(scores, positive)
    if kind == "allpoint":
        precision = _envelope(precision)
    return float((np.diff(found, prepend=0) * precision).sum() / found[-1])


def _interpolated(scores: NDArray[Any], positive: NDArray[np.bool_], steps: int) -> NDArray[np.float64]:
    """Return ``P(t)`` at ``t = 0, 1 / steps, ..., 1``; NaN without positives."""
    if not positive.any():
        return np.full(steps + 1, np.nan)
    found, precision = _ranked(scores, positive)
    # The comparison found / positives >= t / steps, in integers.
    reached = np.searchsorted(steps * found, np.arange(steps + 1) * found[-1])
    values: NDArray[np.float64] = _envelope(precision)[reached]
    return values


def _envelope(precision: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return at each rank the highest precision at this or a later rank."""
    highest: NDArray[np.float64] = np.maximum.accumulate(precision[::-1])[::-1]
    return highest


def _ranked(scores: NDArray[Any], positive: NDArray[np.bool_]) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Return the number of positives and the precision down to each distinct score, highest score first."""
    order = np.argsort(scores)[::-1]  # the order of ties does not matter
    ranked = scores[order]
    last = np.append(np.flatnonzero(ranked[1:] != ranked[:-1]), len(ranked) - 1)  # last rank of each distinct score
    found = np.cumsum(positive[order])[last]
    return found, found / (last + 1)
