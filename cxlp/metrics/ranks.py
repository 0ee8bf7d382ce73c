"""Several systems on several cells, such as data sets: mean ranks, and the tests of their differences."""

import math
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.stats import chi2, f, rankdata, studentized_range

from cxlp.metrics.intervals import LEVEL
from cxlp.metrics.paired import exchange_signs, holm

Floats = NDArray[np.float64]


class Ranking(NamedTuple):
    """A comparison over cells, see :func:`rank_systems`.

    Attributes:
        ranks: Mean ranks of the systems, ``(k,)``; 1 is the best.
        friedman: Friedman's statistic, with the correction for ties.
        p: Its p-value for the hypothesis that all systems are equal, by the chi-squared distribution.
        iman_davenport: Iman and Davenport's statistic ``F``, which is less conservative.
        p_iman_davenport: Its p-value.
        critical_difference: Nemenyi's critical difference: a smaller difference of mean ranks is not significant at the
            5 % level.
        pairs: p-values of Wilcoxon's signed-rank test, by Holm's correction over all pairs: ``(k, k)``, symmetric.
    """

    ranks: Floats
    friedman: float
    p: float
    iman_davenport: float
    p_iman_davenport: float
    critical_difference: float
    pairs: Floats


def rank_systems(values: NDArray[Any]) -> Ranking:
    """Compare k systems over N cells (Demsar, JMLR 2006; Benavoli, Corani and Mangili, JMLR 2016).

    In each cell the best system has rank 1, ties share their mean rank. With mean ranks ``R_j``, ::

        chi^2 = (12 N / (k (k + 1)) sum_j R_j^2 - 3 N (k + 1)) / c,     c = 1 - sum(t^3 - t) / (N (k^3 - k)),
        F     = (N - 1) chi^2 / (N (k - 1) - chi^2),
        CD    = q sqrt(k (k + 1) / (6 N)),

    where t are the sizes of ties, F has ``k - 1`` and ``(k - 1) (N - 1)`` degrees of freedom, and q is the 95 %
    quantile of the studentized range of k means, divided by ``sqrt(2)``. Wilcoxon's signed-rank test of each pair is
    exact: in the cells in which the two differ, all signs of the differences are equally likely. Unlike the
    comparison of mean ranks, it does not depend on which other systems are compared.

    All tests assume that the cells are independent. Cells that share images, such as one data set with several
    backbones, are not, and their p-values are too small.

    Args:
        values: The systems' quality in each cell, larger is better: ``(N, k)``, with N and k of 2 or more.
    """
    values = np.round(np.asarray(values, dtype=np.float64), 9)  # so that equal differences are ties
    cells, systems = values.shape
    ranks = rankdata(-values, axis=1)
    mean = ranks.mean(axis=0)
    ties = sum(float((counts**3 - counts).sum()) for counts in (np.unique(row, return_counts=True)[1] for row in ranks))
    left = 1 - ties / (cells * (systems**3 - systems))
    raw = 12 * cells / (systems * (systems + 1)) * float((mean**2).sum()) - 3 * cells * (systems + 1)
    friedman = max(0.0, raw) / left if left > 0 else 0.0  # otherwise all systems are tied in each cell
    rest = cells * (systems - 1) - friedman
    iman = (cells - 1) * friedman / rest if rest > 1e-9 else math.inf
    quantile = float(studentized_range.ppf(LEVEL, systems, math.inf)) / 2**0.5
    critical = quantile * (systems * (systems + 1) / (6 * cells)) ** 0.5
    upper = np.triu_indices(systems, 1)
    adjusted = holm([signed_rank(values[:, i] - values[:, j]) for i, j in zip(*upper, strict=True)])
    pairs = np.ones((systems, systems))
    pairs[upper] = pairs.T[upper] = adjusted
    return Ranking(
        mean,
        friedman,
        float(chi2.sf(friedman, systems - 1)),
        iman,
        float(f.sf(iman, systems - 1, (systems - 1) * (cells - 1))),
        critical,
        pairs,
    )


def signed_rank(differences: NDArray[Any]) -> float:
    """Compute the two-sided p of Wilcoxon's signed-rank test of ``(N,)``, exact also with ties; zeros are left out."""
    differences = np.round(np.asarray(differences, dtype=np.float64), 9)
    differences = differences[differences != 0]
    doubled = np.rint(2 * rankdata(np.abs(differences))).astype(np.int64)  # mean ranks of ties are halves
    return exchange_signs(np.sign(differences).astype(np.int64) * doubled)


def cliques(ranks: NDArray[Any], critical_difference: float) -> list[list[int]]:
    """Find the maximal groups of systems whose mean ranks differ by less than the critical difference.

    Args:
        ranks: ``(k,)``.
        critical_difference: See :class:`Ranking`.

    Returns:
        Groups of indices into ``ranks``, the best system first. Groups of one system, and subsets of other groups, are
        omitted.
    """
    order = np.argsort(ranks, kind="stable")
    found: list[list[int]] = []
    reached = 0
    for i in range(len(order)):
        j = max(j for j in range(i, len(order)) if ranks[order[j]] - ranks[order[i]] < critical_difference)
        if j > i and j + 1 > reached:
            found.append(order[i : j + 1].tolist())
            reached = j + 1
    return found
