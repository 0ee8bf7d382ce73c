"""Two systems on the same test images: how they differ, how sure that is, and what many comparisons do to it."""

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
    """A difference, system minus reference.

    Attributes:
        difference: Of accuracy or mean average precision, in [-1, 1].
        low: Lower end of its interval of 95 % confidence.
        high: Upper end.
        p: Two-sided p-value of "there is none".
        by: The test.
    """

    difference: float
    low: float
    high: float
    p: float
    by: str


def paired_accuracy(right: NDArray[np.bool_], reference: NDArray[np.bool_], groups: NDArray[np.int64]) -> Paired:
    """Compare two systems' accuracies on the same images.

    **One run of each.** Let ``d_g`` be how many more images of a group the system has right. Under the hypothesis
    that the two are alike, each ``d_g`` may as well have the other sign; p is the share of all signings whose sum is as
    far from 0. It is computed exactly. Where each image is a group of its own, this is McNemar's exact test
    (Psychometrika 1947): of b + c images that just one of the two has right, b against c by a binomial distribution.
    The interval is Bonett and Price's (J. Educ. Behav. Stat. 2012), which adds an image to b and another one to c, and
    takes ``d +- 1.96 sqrt(variance)``; variances are between groups. It may hold 0 where p is a little below 5 %, and
    the other way round: p is exact, the interval a good approximation.

    **Several runs of each**, as with several seeds: see :func:`over_runs`. Runs that all answer alike count as one.

    Args:
        right: Whether the system is right, ``(R, n)`` by run and image.
        reference: The same of the other one; its run r is compared with the system's run r.
        groups: Of each image ``(n,)`` the number of its group, 0 to G - 1. Images of a group, as several boxes in one
            picture, go together; groups are independent.
    """
    difference = right.astype(np.int64) - reference  # (R, n)
    if (difference == difference[0]).all():
        difference = difference[:1]
    runs, images = difference.shape
    sizes = np.bincount(groups)
    sums = np.array([np.bincount(groups, d, len(sizes)) for d in difference])  # (R, G), whole numbers
    mean = sums.sum(axis=1) / images
    # Two groups more, as large as the mean of them, in one of which the system has all images more right: see above.
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
    """Share of all ways to give whole numbers ``(G,)`` signs in which their sum is as far from 0 as it is, exactly."""
    values, counts = np.unique(np.abs(sums[sums != 0]), return_counts=True)
    chances = np.ones(1)  # of the sums -(len - 1) / 2 to (len - 1) / 2
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
    """Compare two systems' mean average precisions on the same images, by a bootstrap over images.

    Both are computed of the same resamples, see :func:`~cxlp.metrics.intervals.precision_intervals`, of groups of
    images. The interval is that from the 2.5 % to the 97.5 % quantile of the resamples' differences, moved so that
    their mean falls on the difference; p is the share of resamples whose difference is as far from their mean as the
    difference is from 0, the test's own counted with them (Davison and Hinkley 1997, 4.4). Several runs of each:
    :func:`over_runs`, with the covariance of the resamples.

    Args:
        scores: The system's, ``(R, n, K)`` by run and image.
        reference: The other one's; its run r is compared with the system's run r.
        labels: ``(n, K)``: 1 present, -1 absent, 0 ignored.
        groups: See :func:`paired_accuracy`.
        kind: Of average precision.

    Raises:
        CxlpError: If no class has positives, or there are so many images and classes that fewer than 100 resamples
            could be made in a minute.
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
    """Test the mean difference of several runs on the same images, where images and runs are both draws.

    With the differences ``D_r`` of R runs, their variance ``s^2`` (R - 1), and the mean c of the covariances between
    two runs, which images cause that are hard or easy for all runs::

        variance of the mean = s^2 / R + max(c, 0)        t = mean / sqrt(variance)
        degrees of freedom   = variance^2 / ((s^2 / R)^2 / (R - 1))

    It is Obuchowski and Rockette's test of readers and cases (Commun. Stat. 1995) with Hillis' degrees of freedom
    (Stat. Med. 2007), whose readers are our runs. The variance is not let fall below that of the given runs alone on
    other images. It has little power where runs differ by more than images do: with two runs and no variance of images,
    t must reach 12.7; with three, 4.3.

    Args:
        differences: ``(R,)``, R >= 2.
        covariance: ``(R, R)``, of the differences over draws of images.
        groups: Independent groups of images.
    """
    runs = len(differences)
    between = float(np.var(differences, ddof=1)) / runs
    shared = float((covariance.sum() - covariance.trace()) / (runs * (runs - 1)))
    variance = max(between + max(shared, 0.0), float(covariance.mean()))
    most = max(1.0, groups - 1.0)
    freedom = min(most, variance**2 * (runs - 1) / between**2) if between else most
    return _by_t(float(differences.mean()), variance, freedom, f"{runs} runs x images, t")


def resampled(differences: Floats, test: float, train: float) -> Paired:
    """Test the mean difference of several runs that each have another split into training and test images.

    Their training images overlap, so that the differences go together, and the plain t-test finds differences where
    there are none. Nadeau and Bengio (Machine Learning 2003) correct its variance, ``s^2 / R``, to
    ``s^2 (1 / R + test / train)``; R - 1 degrees of freedom.

    Args:
        differences: ``(R,)``, R >= 2.
        test: Test images of a run.
        train: Training images of a run.
    """
    runs = len(differences)
    least = 1 / (12 * test**2)  # of values that are rounded to whole images
    variance = max(float(np.var(differences, ddof=1)), least) * (1 / runs + test / train)
    return _by_t(float(differences.mean()), variance, runs - 1, f"{runs} splits, corrected t")


def _by_t(mean: float, variance: float, freedom: float, by: str) -> Paired:
    error = variance**0.5
    if not error:  # the systems are one
        return Paired(mean, mean, mean, 1.0, by)
    half = float(t.ppf((1 + LEVEL) / 2, freedom)) * error
    p = float(2 * t.sf(abs(mean) / error, freedom))
    return Paired(mean, max(-1.0, mean - half), min(1.0, mean + half), p, by)


def holm(values: Sequence[float]) -> list[float]:
    """Adjust the p-values of several tests, so that any false finding among them has a chance of 5 % at most.

    Holm (Scand. J. Statist. 1979): the smallest of m is multiplied by m, the next one by m - 1, and so on; none comes
    out below one before it, nor above 1.
    """
    found, highest = [1.0] * len(values), 0.0
    for rank, place in enumerate(sorted(range(len(values)), key=values.__getitem__)):
        highest = max(highest, min(1.0, (len(values) - rank) * values[place]))
        found[place] = highest
    return found
