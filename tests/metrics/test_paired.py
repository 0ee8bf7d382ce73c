"""Paired tests compared with SciPy and other calculations, and their error rates."""

from itertools import product
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.stats import binomtest, bootstrap, false_discovery_control, t, ttest_1samp

from cxlp.metrics.average_precision import mean_average_precision
from cxlp.metrics.paired import exchange_signs, holm, over_runs, paired_accuracy, paired_precision, resampled
from cxlp.utils.errors import CxlpError


def answers(both: int, ours: int, theirs: int, neither: int) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Return a run of two systems from the numbers of images that both, one or none has right; (1, n) each."""
    counts = both, ours, theirs, neither
    return np.repeat([[True, True, False, False]], counts, axis=1), np.repeat(
        [[True, False, True, False]], counts, axis=1
    )


@pytest.mark.parametrize(("ours", "theirs"), [(0, 0), (1, 0), (12, 5), (5, 12), (40, 40), (300, 250)])
def test_one_run_is_tested_by_mcnemar_exactly(ours: int, theirs: int) -> None:
    mine, other = answers(100, ours, theirs, 10)
    found = paired_accuracy(mine, other, np.arange(mine.shape[1]))
    expected = binomtest(ours, ours + theirs).pvalue if ours + theirs else 1.0
    assert found.p == pytest.approx(expected) and found.by == "McNemar, exact"
    assert found.difference == pytest.approx((ours - theirs) / (110 + ours + theirs))
    assert found.low <= found.difference <= found.high


def test_the_interval_equals_a_published_example() -> None:
    # Airway hyper-responsiveness before and after transplantation, in Fagerland, Lydersen and Laake (Stat. Med.
    # 2014): Bonett and Price's interval for 1, 1, 7, 12 children is -0.508 to -0.013.
    mine, other = answers(1, 1, 7, 12)
    found = paired_accuracy(mine, other, np.arange(21))
    assert (found.low, found.high) == pytest.approx((-0.508, -0.013), abs=6e-4)
    assert found.difference == pytest.approx(-6 / 21)
    assert found.p == pytest.approx(0.0703, abs=5e-5)  # McNemar's exact test, from the same paper


def test_signs_are_exchanged_in_all_ways() -> None:
    rng = np.random.default_rng(0)
    for sums in (rng.integers(-3, 4, 11), np.array([5, -1]), np.zeros(3, dtype=np.int64), np.array([2, 2, 2])):
        all_sums = [abs(int(np.dot(signs, sums))) for signs in product((-1, 1), repeat=len(sums))]
        assert exchange_signs(sums) == pytest.approx(np.mean([s >= abs(sums.sum()) for s in all_sums]))


def test_images_of_a_group_go_together() -> None:
    """Five copies of each image have no more information than one."""
    mine, other = answers(60, 12, 4, 10)
    once = paired_accuracy(mine, other, np.arange(86))
    groups = np.repeat(np.arange(86), 5)
    more = paired_accuracy(np.repeat(mine, 5, axis=1), np.repeat(other, 5, axis=1), groups)
    assert more.p == pytest.approx(once.p) and more.difference == pytest.approx(once.difference)
    assert "by group" in more.by
    assert (more.low, more.high) == pytest.approx((once.low, once.high))
    apart = paired_accuracy(np.repeat(mine, 5, axis=1), np.repeat(other, 5, axis=1), np.arange(430))
    assert apart.p < 0.001 < 0.05 < once.p


def scored(rng: np.random.Generator, labels: NDArray[Any], noise: float, shared: NDArray[Any]) -> NDArray[Any]:
    return np.asarray(labels + shared + noise * rng.normal(size=labels.shape))


def test_average_precision_is_resampled_in_pairs_as_scipy_does() -> None:
    rng = np.random.default_rng(1)
    labels = np.where(rng.random((150, 3)) < 0.3, 1, -1)
    shared = 2 * rng.normal(size=labels.shape)
    ours, theirs = scored(rng, labels, 0.5, shared), scored(rng, labels, 1.5, shared)
    found = paired_precision(ours[None], theirs[None], labels, np.arange(150))

    def difference(rows: NDArray[Any]) -> float:
        picked = rows.astype(int)
        one, other = (mean_average_precision(s[picked], labels[picked], "uninterpolated") for s in (ours, theirs))
        return float(one - other)

    drawn = bootstrap((np.arange(150),), difference, vectorized=False, n_resamples=800, random_state=2, method="basic")
    assert found.difference == pytest.approx(difference(np.arange(150)))
    spread = np.std(drawn.bootstrap_distribution)
    assert (found.high - found.low) / 3.92 == pytest.approx(spread, rel=0.1)
    assert found.low <= found.difference <= found.high and found.by == "paired bootstrap"
    same = paired_precision(ours[None], ours[None], labels, np.arange(150))
    assert same[:4] == (0, 0, 0, 1)
    # groups of duplicated images count like single ones
    twice = paired_precision(
        np.tile(ours, (2, 1))[None], np.tile(theirs, (2, 1))[None], np.tile(labels, (2, 1)), np.tile(np.arange(150), 2)
    )
    assert twice[:4] == pytest.approx(found[:4], abs=1e-9)


def test_data_without_positives_are_refused() -> None:
    scores = np.zeros((1, 4, 2))
    with pytest.raises(CxlpError, match="no class has positives"):
        paired_precision(scores, scores, -np.ones((4, 2)), np.arange(4))


def test_runs_and_images_are_random_samples() -> None:
    differences = np.array([0.01, 0.04, 0.02])
    # If images add no variance, it is the t-test over runs; if runs add none, that over images.
    alone = over_runs(differences, np.zeros((3, 3)), 500)
    plain = ttest_1samp(differences, 0)
    interval = plain.confidence_interval(0.95)
    assert alone.p == pytest.approx(plain.pvalue)
    assert (alone.low, alone.high) == pytest.approx((interval.low, interval.high))
    alike = over_runs(np.array([0.02, 0.02, 0.02]), np.full((3, 3), 0.0001), 500)
    assert (alike.high - alike.low) / 2 == pytest.approx(1.96 * 0.01, rel=0.01)
    # Hillis (2007): s^2 / R + c, and its square over that of the first part, R - 1 times
    found = over_runs(differences, np.full((3, 3), 0.0001), 500)
    between = np.var(differences, ddof=1) / 3
    variance = between + 0.0001
    freedom = variance**2 / (between**2 / 2)
    assert (found.high - found.low) / 2 == pytest.approx(t.ppf(0.975, freedom) * variance**0.5)
    assert found.p == pytest.approx(2 * t.sf(np.mean(differences) / variance**0.5, freedom))
    assert found.by == "3 runs x images, t"


def test_runs_on_a_single_group_of_images_have_a_p_value() -> None:
    right = np.random.default_rng(0).random((2, 3, 50)) < 0.7
    found = paired_accuracy(right[0], right[1], np.zeros(50, np.int64))
    assert 0 < found.p <= 1 and -1 <= found.low <= found.difference <= found.high <= 1


def test_the_covariance_of_runs_comes_from_images() -> None:
    """Compared with the analysis of variance of runs x images, which is equal for a mean (Clark 1973, quasi F)."""
    rng = np.random.default_rng(3)
    hard = rng.normal(size=400)
    right = hard + 0.5 * rng.normal(size=(4, 400)) + 0.3 * rng.normal(size=(4, 1)) > -0.8
    other = hard + 0.5 * rng.normal(size=(4, 400)) + 0.3 * rng.normal(size=(4, 1)) > -0.7
    found = paired_accuracy(right, other, np.arange(400))
    d = right.astype(float) - other
    row, column, mean = d.mean(axis=1, keepdims=True), d.mean(axis=0, keepdims=True), d.mean()
    runs = 400 * ((row - mean) ** 2).sum() / 3
    images = 4 * ((column - mean) ** 2).sum() / 399
    rest = ((d - row - column + mean) ** 2).sum() / (3 * 399)
    variance = (runs + max(images - rest, 0)) / 1600
    freedom = variance**2 / ((runs / 1600) ** 2 / 3)
    assert found.difference == pytest.approx(mean)
    assert (found.high - found.low) / 2 == pytest.approx(t.ppf(0.975, freedom) * variance**0.5, rel=0.03)


def test_identical_runs_count_as_one() -> None:
    mine, other = answers(60, 12, 4, 10)
    one = paired_accuracy(mine, other, np.arange(86))
    assert paired_accuracy(np.repeat(mine, 3, axis=0), np.repeat(other, 3, axis=0), np.arange(86)) == one


def test_splits_are_corrected_for_shared_training_images() -> None:
    differences = np.array([0.02, 0.05, 0.01, 0.03, 0.04])
    plain = ttest_1samp(differences, 0)
    found = resampled(differences, test=100, train=400)
    # Nadeau and Bengio's factor: the plain t, times the root of (1 / R) / (1 / R + 1 / 4)
    assert found.p == pytest.approx(2 * t.sf(plain.statistic * (0.2 / 0.45) ** 0.5, 4))
    assert resampled(differences, test=1, train=10**9).p >= plain.pvalue
    assert 0 < resampled(np.array([0.01, 0.01]), 100, 400).p < 0.5  # values are rounded to whole images


@pytest.mark.parametrize("values", [[0.01, 0.04, 0.03, 0.005], [0.2], [0.6, 0.7], [0.02, 0.02, 0.02], []])
def test_holm_rejects_step_by_step(values: list[float]) -> None:
    adjusted = holm(values)
    # by its definition: at each level, go through the ascending values and stop at the first that is too large
    for level in (0.01, 0.03, 0.05, 0.1, 0.5, 0.99):
        rejected = set()
        for k, place in enumerate(sorted(range(len(values)), key=values.__getitem__)):
            if values[place] > level / (len(values) - k):
                break
            rejected.add(place)
        assert rejected == {k for k, p in enumerate(adjusted) if p <= level + 1e-12}
    if values:  # larger than Benjamini and Hochberg's, which allow more errors
        assert (np.array(adjusted) >= false_discovery_control(values) - 1e-12).all()


def drawn(
    rng: np.random.Generator, runs: int, images: int, seeds: float, shift: float = 0.0
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Two equally good systems, except for a shift: images are hard for both, for one, or for single runs."""
    hard = rng.normal(size=images)

    def system(shift: float) -> NDArray[np.bool_]:
        own = 0.5 * rng.normal(size=images) + seeds * rng.normal(size=(runs, 1)) + 0.3 * rng.normal(size=(runs, images))
        return np.asarray(hard + own + shift > -0.8)

    return system(shift), system(0.0)


@pytest.mark.parametrize(
    ("runs", "seeds", "most"),
    # With two runs, the variance between them is hardly known: if it is the only one, error rates are 8 to 11 %.
    [(1, 0.0, 0.05), (3, 0.0, 0.05), (3, 0.05, 0.06), (2, 0.2, 0.13), (5, 0.2, 0.07)],
)
def test_the_false_positive_rate_is_five_percent(runs: int, seeds: float, most: float) -> None:
    rng = np.random.default_rng(4)
    groups = np.arange(120)
    found = [paired_accuracy(*drawn(rng, runs, 120, seeds), groups) for _ in range(600)]
    wrong = float(np.mean([test.p < 0.05 for test in found]))
    assert wrong <= most + 0.02  # two standard errors
    assert np.mean([test.low <= 0 <= test.high for test in found]) >= 0.95 - (most - 0.05) - 0.02


def test_one_run_each_does_not_account_for_other_runs() -> None:
    """The reason for several seeds: the same test errs far more often if runs differ by their seeds."""
    rng = np.random.default_rng(5)
    groups = np.arange(240)
    wrong = {
        runs: np.mean([paired_accuracy(*drawn(rng, runs, 240, 0.2), groups).p < 0.05 for _ in range(200)])
        for runs in (1, 5)
    }
    assert wrong[1] > 0.3 and wrong[5] < 0.1


def test_the_power_grows_with_the_number_of_images() -> None:
    rng = np.random.default_rng(6)
    power = [
        np.mean([paired_accuracy(*drawn(rng, 3, images, 0.0, 0.2), np.arange(images)).p < 0.05 for _ in range(200)])
        for images in (240, 2000)
    ]
    assert power[0] < 0.7 and power[1] > 0.95


def test_the_false_positive_rate_for_average_precision_is_five_percent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cxlp.metrics.paired.RESAMPLES", 150)  # a fast one
    rng = np.random.default_rng(7)
    wrong = []
    for _ in range(150):
        labels = np.where(rng.random((120, 3)) < 0.3, 1, -1)
        shared = rng.normal(size=labels.shape)
        ours, theirs = (scored(rng, labels, 1.0, shared)[None] for _ in range(2))
        wrong.append(paired_precision(ours, theirs, labels, np.arange(120)).p < 0.05)
    assert np.mean(wrong) <= 0.09


def test_average_precision_of_several_runs_accounts_for_runs() -> None:
    rng = np.random.default_rng(8)
    labels = np.where(rng.random((200, 3)) < 0.3, 1, -1)
    shared = rng.normal(size=labels.shape)
    ours = np.stack([scored(rng, labels, 0.5, shared) for _ in range(3)])
    theirs = np.stack([scored(rng, labels, 1.5, shared) for _ in range(3)])
    found = paired_precision(ours, theirs, labels, np.arange(200))
    singly = [
        paired_precision(one[None], two[None], labels, np.arange(200)) for one, two in zip(ours, theirs, strict=True)
    ]
    assert found.difference == pytest.approx(np.mean([one.difference for one in singly]))
    assert found.by == "3 runs x images, t" and found.p < 0.01
    assert (
        paired_precision(ours[:1].repeat(3, axis=0), theirs[:1].repeat(3, axis=0), labels, np.arange(200)) == singly[0]
    )
