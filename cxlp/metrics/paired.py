"""Paired comparisons of systems on the same test images: differences, intervals, p-values and their correction."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binom, norm, t

from cxlp.metrics.average_precision import Kind
from cxlp.metrics.intervals import FEWEST, LEVEL, MOST, RESAMPLES, rank_classes, resample, resampled_means
from cxlp.utils.errors import CxlpError

Floats = NDArray[np.float64]


class Paired(NamedTuple):
    """Difference of a metric, system minus reference.

    Attributes:
        difference: Difference of accuracy or mean average precision, in [-1, 1].
        low: Lower end of the 95 % confidence interval of the difference.
        high: Upper end of the interval.
        p: Two-sided p-value of the null hypothesis of no difference.
        by: Name of the test.
    """

    difference: float
    low: float
    high: float
    p: float
    by: str


def paired_accuracy(right: NDArray[np.bool_], reference: NDArray[np.bool_], groups: NDArray[np.int64]) -> Paired:
    """Compare the accuracies of two systems on the same images.

    **One run each.** Let ``d_g`` be the number of images of group g that the system classifies correctly, minus that of
    the reference. Under the null hypothesis, each ``d_g`` is equally likely to have the opposite sign. p is the share
    of all assignments of signs whose sum is at least as far from 0, computed exactly. If each image is a group of its
    own, this is McNemar's exact test (Psychometrika 1947): of the b + c images that exactly one of the two systems
    classifies correctly, b is compared with c by a binomial distribution. The interval is that of Bonett and Price (J.
    Educ. Behav. Stat. 2012), which adds one image each to b and c: ``d +- 1.96 sqrt(variance)``, with the variance
    between groups. It may contain 0 if p is slightly below 5 %, and vice versa: p is exact, the interval a good
    approximation.

    **Several runs each**, for example with several seeds: see :func:`over_runs`. Runs with the same differences on all
    images count as one run.

    Args:
        right: Whether the system is right, ``(R, n)`` by run and image.
        reference: Whether the reference is right, ``(R, n)``. Its run r is compared with run r of the system.
        groups: ``(n,)``, the group of each image, 0 to G - 1. Images of a group may depend on each other, such as
            several boxes in one image; groups are independent.
    """
    difference = right.astype(np.int64) - reference  # (R, n)
    if (difference == difference[0]).all():
        difference = difference[:1]
    runs, images = difference.shape
    sizes = np.bincount(groups)
    sums = np.array([np.bincount(groups, d, len(sizes)) for d in difference])  # (R, G), whole numbers
    mean = sums.sum(axis=1) / images
    # Bonett and Price: add two groups of mean size, one that only the system has right, and one only the reference.
    size = images / len(sizes)
    sums = np.hstack([sums, np.tile([size, -size], (runs, 1))])
    sizes = np.append(sizes, [size, size])
    centre = sums.sum(axis=1) / sizes.sum()
    residuals = sums - centre[:, None] * sizes
    covariance = residuals @ residuals.T / sizes.sum() ** 2
    if runs > 1:
        return over_runs(mean, covariance, len(sizes) - 2)
    half = norm.ppf((1 + LEVEL) / 2) * covariance[0, 0] ** 0.5
    by = "McNemar, exact" if images == len(sizes) - 2 else "exchanged signs by group, exact"
    low, high = max(-1.0, centre[0] - half), min(1.0, centre[0] + half)
    return Paired(float(mean[0]), float(low), float(high), exchange_signs(sums[0, :-2].astype(np.int64)), by)


def exchange_signs(sums: NDArray[np.int64]) -> float:
    """Return the exact p-value of the sum of integers ``(G,)`` under random signs.

    It is the share of all assignments of signs whose sum is at least as far from 0.
    """
    values, counts = np.unique(np.abs(sums[sums != 0]), return_counts=True)
    chances = np.ones(1)  # probabilities of the sums -(len - 1) / 2 to (len - 1) / 2
    for value, count in zip(values.tolist(), counts.tolist(), strict=True):
        own = np.zeros(2 * value * count + 1)
        own[:: 2 * value] = binom.pmf(np.arange(count + 1), count, 0.5)
        chances = np.convolve(chances, own)
    place = np.arange(len(chances)) - len(chances) // 2
    return float(min(1.0, chances[np.abs(place) >= abs(int(sums.sum()))].sum()))


def paired_precision(
    scores: NDArray[Any],
    reference: NDArray[Any],
    labels: NDArray[Any],
    groups: NDArray[np.int64],
    kind: Kind = "uninterpolated",
) -> Paired:
    """Compare the mean average precisions of two systems on the same images, by a bootstrap over images.

    Both are computed from the same resamples of groups of images, see
    :func:`~cxlp.metrics.intervals.precision_intervals`. The interval between the 2.5 % and 97.5 % quantiles of the
    resampled differences is shifted so that their mean equals the difference. p is the share of resamples whose
    difference is at least as far from their mean as the difference is from 0, counting the test images themselves as
    one resample (Davison and Hinkley 1997, 4.4). For several runs each, see :func:`over_runs`, with the covariance of
    the resampled differences.

    Args:
        scores: Scores of the system, ``(R, n, K)`` by run, image and class.
        reference: Scores of the reference, ``(R, n, K)``. Its run r is compared with run r of the system.
        labels: ``(n, K)``: 1 present, -1 absent, 0 ignored.
        groups: See :func:`paired_accuracy`.
        kind: Kind of average precision.

    Raises:
        CxlpError: If no class has positives, or there are so many images and classes that fewer than 100 resamples
            could be computed in a minute.
    """
    count = min(2 * RESAMPLES, 10 * MOST // max(1, 2 * len(scores) * labels.size))
    ranked = [[rank_classes(s, labels) for s in system] for system in (scores, reference)]
    if not ranked[0][0]:
        raise CxlpError("no class has positives: there is no average precision to compare")
    if count < FEWEST:
        raise CxlpError(f"{len(labels):,} images of {labels.shape[1]:,} classes are too many for a bootstrap")

    def differences(weights: NDArray[np.int32]) -> Floats:
        ours, theirs = (
            np.array([resampled_means(run, {"": kind}, weights)[""] for run in system]) for system in ranked
        )
        return np.asarray(ours - theirs)  # (R, B)

    difference = differences(np.ones((len(labels), 1), np.int32))[:, 0]
    drawn = np.hstack([differences(weights) for weights in resample(groups, count)])
    if len(difference) > 1 and not (drawn == drawn[0]).all():
        return over_runs(difference, np.cov(drawn), int(groups.max()) + 1)
    moved, one = drawn[0] - drawn[0].mean(), float(difference[0])
    low, high = (one + np.quantile(moved, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])).tolist()
    p = (1 + int((np.abs(moved) >= abs(one)).sum())) / (1 + len(moved))
    return Paired(one, max(-1.0, low), min(1.0, high), p, "paired bootstrap")


def over_runs(differences: Floats, covariance: Floats, groups: int) -> Paired:
    """Test the mean difference of several runs on the same images, with images and runs as random samples.

    With the differences ``D_r`` of R runs, their sample variance ``s^2`` (divisor R - 1), and the mean c of the
    covariances between two runs, which are caused by images that are hard or easy in all runs::

        variance of the mean = s^2 / R + max(c, 0)        t = mean / sqrt(variance)
        degrees of freedom   = variance^2 / ((s^2 / R)^2 / (R - 1))

    This is the test of Obuchowski and Rockette for readers and cases (Commun. Stat. 1995), with runs as readers, and
    with the degrees of freedom of Hillis (Stat. Med. 2007). The variance is at least that of the given runs on other
    images. The test has little power if the variance between runs dominates: with two runs and no variance between
    images, t must exceed 12.7, and with three runs 4.3.

    Args:
        differences: ``(R,)``, R >= 2.
        covariance: ``(R, R)``, covariance of the differences over random draws of images.
        groups: Number of independent groups of images.
    """
    runs = len(differences)
    between = float(np.var(differences, ddof=1)) / runs
    shared = float((covariance.sum() - covariance.trace()) / (runs * (runs - 1)))
    variance = max(between + max(shared, 0.0), float(covariance.mean()))
    most = max(1.0, groups - 1.0)
    freedom = min(most, variance**2 * (runs - 1) / between**2) if between else most
    return _by_t(float(differences.mean()), variance, freedom, f"{runs} runs x images, t")


def resampled(differences: Floats, test: float, train: float) -> Paired:
    """Test the mean difference of several runs, each with a different split into training and test images.

    The training sets overlap, so the differences are correlated, and the plain t-test finds differences too often.
    Nadeau and Bengio (Machine Learning 2003) correct its variance ``s^2 / R`` to ``s^2 (1 / R + test / train)``, with
    R - 1 degrees of freedom.

    Args:
        differences: ``(R,)``, R >= 2.
        test: Number of test images of a run.
        train: Number of training images of a run.
    """
    runs = len(differences)
    least = 1 / (12 * test**2)  # variance of rounding to whole images
    variance = max(float(np.var(differences, ddof=1)), least) * (1 / runs + test / train)
    return _by_t(float(differences.mean()), variance, runs - 1, f"{runs} splits, corrected t")


def _by_t(mean: float, variance: float, freedom: float, by: str) -> Paired:
    error = variance**0.5
    if not error:  # the systems do not differ in any run
        return Paired(mean, mean, mean, 1.0, by)
    half = float(t.ppf((1 + LEVEL) / 2, freedom)) * error
    p = float(2 * t.sf(abs(mean) / error, freedom))
    return Paired(mean, max(-1.0, mean - half), min(1.0, mean + half), p, by)


def holm(values: Sequence[float]) -> list[float]:
    """Adjust the p-values of several tests to control the family-wise error rate.

    After Holm (Scand. J. Statist. 1979), the smallest of m p-values is multiplied by m, the next one by m - 1, and so
    on. Adjusted values do not decrease in this order, and are at most 1. Rejecting those below 5 % has a probability of
    at most 5 % of any false rejection.
    """
    found, highest = [1.0] * len(values), 0.0
    for rank, place in enumerate(sorted(range(len(values)), key=values.__getitem__)):
        highest = max(highest, min(1.0, (len(values) - rank) * values[place]))
        found[place] = highest
    return found
