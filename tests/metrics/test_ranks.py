"""Mean ranks over cells, compared with SciPy and with the worked example of Demsar (JMLR 2006)."""

import math

import numpy as np
import pytest
from scipy import stats

from cxlp.metrics.ranks import cliques, rank_systems, signed_rank

#: Ranks of C4.5 and its three variants (m, cf, m + cf) on 14 data sets, table 6 of the paper.
DEMSAR = np.array(
    [
        [4, 3, 2, 1], [1, 2, 3, 4], [4, 1, 2, 3], [4, 1, 3, 2], [4, 2, 3, 1], [1, 2.5, 4, 2.5], [3, 2, 4, 1],
        [2.5, 2.5, 4, 1], [4, 3, 2, 1], [2.5, 2.5, 2.5, 2.5], [4, 2.5, 1, 2.5], [3, 2, 4, 1], [4, 1, 2, 3],
        [3, 1, 4, 2],
    ]
)  # fmt: skip


def drawn(cells: int, systems: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(80, 5, (cells, systems)) + np.arange(systems)


def test_the_published_example() -> None:
    found = rank_systems(-DEMSAR)
    assert np.round(found.ranks, 3).tolist() == [3.143, 2.0, 2.893, 1.964]
    # The paper's chi^2 and F do not correct for ties: four ties of 2 (6 each), and one of 4 (60).
    correction = 1 - (3 * 6 + 60) / (14 * (4**3 - 4))
    chi2 = found.friedman * correction
    assert chi2 == pytest.approx(9.28, abs=0.005)
    assert 13 * chi2 / (14 * 3 - chi2) == pytest.approx(3.69, abs=0.005)
    assert found.critical_difference == pytest.approx(2.569 * math.sqrt(4 * 5 / (6 * 14)), abs=1e-3)  # 1.25
    # "m + cf" and "m" against "C4.5": 1.18 and 1.14, below 1.25: no difference is significant by Nemenyi's test.
    assert cliques(found.ranks, found.critical_difference) == [[3, 1, 2, 0]]


@pytest.mark.parametrize("digits", [6, 0])  # without and with ties
@pytest.mark.parametrize(("cells", "systems"), [(6, 3), (14, 4), (30, 9)])
def test_friedman_is_scipys(cells: int, systems: int, digits: int) -> None:
    values = drawn(cells, systems).round(digits)
    found = rank_systems(values)
    statistic, p = stats.friedmanchisquare(*values.T)
    assert (found.friedman, found.p) == pytest.approx((statistic, p))
    np.testing.assert_allclose(found.ranks, np.mean([stats.rankdata(-row) for row in values], axis=0))
    f = (cells - 1) * statistic / (cells * (systems - 1) - statistic)
    assert found.iman_davenport == pytest.approx(f)
    assert found.p_iman_davenport == pytest.approx(stats.f.sf(f, systems - 1, (systems - 1) * (cells - 1)))


@pytest.mark.parametrize("cells", [4, 6, 12])
def test_signed_ranks_are_scipys(cells: int) -> None:
    differences = np.random.default_rng(cells).normal(0.4, 1, cells)
    expected = stats.wilcoxon(differences, method="exact")
    assert signed_rank(differences) == pytest.approx(expected.pvalue)
    tied = np.array([1.0, -1.0, 2.0, 2.0, 3.0, 2.0, -1.0, 5.0])
    all_signs = stats.wilcoxon(tied, method=stats.PermutationMethod(n_resamples=10**6))
    assert signed_rank(tied) == pytest.approx(all_signs.pvalue)
    assert signed_rank(np.append(tied, [0.0, 0.0])) == signed_rank(tied)
    assert signed_rank(np.zeros(5)) == 1
    assert signed_rank(np.ones(6)) == pytest.approx(2 / 2**6)


def test_pairs_are_corrected_by_holm() -> None:
    values = drawn(10, 3, seed=2)
    raw = {
        (i, j): float(stats.wilcoxon(values[:, i] - values[:, j], method="exact").pvalue)
        for i, j in ((0, 1), (0, 2), (1, 2))
    }
    order = sorted(raw, key=lambda pair: raw[pair])
    reached = 0.0
    pairs = rank_systems(values).pairs
    for place, (i, j) in enumerate(order):
        reached = max(reached, min(1.0, (3 - place) * raw[i, j]))
        assert pairs[i, j] == pairs[j, i] == pytest.approx(reached)
    assert pairs.diagonal().tolist() == [1, 1, 1]


def test_the_quantiles_are_those_of_the_papers_table() -> None:
    for systems, q in ((2, 1.960), (3, 2.343), (5, 2.728), (10, 3.164)):
        found = rank_systems(drawn(20, systems)).critical_difference
        assert found == pytest.approx(q * math.sqrt(systems * (systems + 1) / (6 * 20)), rel=1e-3)


def test_systems_that_are_alike_or_always_in_one_order() -> None:
    alike = rank_systems(np.full((5, 3), 80.0))
    assert (alike.friedman, alike.p, alike.ranks.tolist()) == (0, 1, [2, 2, 2]) and (alike.pairs == 1).all()
    ordered = rank_systems(np.arange(3) + 10.0 * np.arange(5)[:, None])
    assert ordered.ranks.tolist() == [3, 2, 1] and ordered.friedman == pytest.approx(10)
    assert ordered.iman_davenport == math.inf and ordered.p_iman_davenport == 0


def test_bars_join_what_is_not_told_apart() -> None:
    assert cliques(np.array([4.0, 1.0, 2.0, 3.0]), 1.5) == [[1, 2], [2, 3], [3, 0]]
    assert cliques(np.array([4.0, 1.0, 1.2, 3.5]), 1.5) == [[1, 2], [3, 0]]
    assert cliques(np.array([1.0, 4.0]), 1.5) == []
    assert cliques(np.array([1.0, 2.0, 3.0]), 3.0) == [[0, 1, 2]]
