"""One-vs-rest SVMs on a Gram matrix, against scikit-learn on the features themselves."""

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.special import expit, log_softmax
from sklearn.metrics import average_precision_score
from sklearn.model_selection import StratifiedKFold
from sklearn.svm import SVC, LinearSVC

from cxlp.frozen import svm
from cxlp.frozen.svm import Array, HeldOut, choose_c, cross_validate, fit_logit_scale, quality, solve
from cxlp.utils.labels import as_targets

CLASSES = 4


@dataclass
class Problem:
    """Unit-length features of overlapping classes."""

    x: Array
    labels: NDArray[np.int64]
    gram: Array
    targets: NDArray[np.int8]


def problem(n: int = 80, d: int = 30, spread: float = 1.6, seed: int = 0) -> Problem:
    random = np.random.default_rng(seed)
    labels = np.arange(n) % CLASSES
    x = random.normal(size=(CLASSES, d))[labels] + spread * random.normal(size=(n, d))
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    return Problem(x, labels, x @ x.T, as_targets(torch.from_numpy(labels), CLASSES).numpy())


@pytest.fixture(scope="module")
def data() -> Problem:
    return problem()


@pytest.mark.parametrize("c", [0.5, 10.0])
def test_each_class_is_the_svm_of_scikit_learn(data: Problem, c: float) -> None:
    solution = solve(data.gram, data.targets, c, threads=1)
    weights = solution.coefficients @ data.x
    for k in range(CLASSES):
        reference = SVC(kernel="linear", C=c, tol=1e-6).fit(data.x, data.labels == k)
        np.testing.assert_allclose(weights[k], reference.coef_[0], atol=2e-3 * np.abs(reference.coef_).max())
        np.testing.assert_allclose(solution.intercepts[k], reference.intercept_[0], atol=2e-3)
        # the constraints of the dual
        assert abs(solution.coefficients[k].sum()) < 1e-9
        assert np.abs(solution.coefficients[k]).max() <= c + 1e-9
        assert (solution.coefficients[k] * data.targets[k] >= 0).all()


def test_predictions_are_those_of_linearsvc() -> None:
    whole, n = problem(400), 80
    x, labels, fresh = whole.x[:n], whole.labels[:n], whole.x[n:]
    solution = solve(x @ x.T, whole.targets[:, :n], 10.0, threads=1)
    ours = fresh @ (solution.coefficients @ x).T + solution.intercepts
    # LinearSVC regularises its intercept; a large scale of the constant column makes that negligible.
    reference = LinearSVC(loss="hinge", C=10.0, intercept_scaling=30.0, tol=1e-6, max_iter=500_000, random_state=0)
    theirs = reference.fit(x, labels).decision_function(fresh)
    assert len(np.unique(ours.argmax(axis=1))) == CLASSES
    assert (ours.argmax(axis=1) == theirs.argmax(axis=1)).mean() > 0.99
    np.testing.assert_allclose(ours, theirs, atol=0.02)


def test_ignored_rows_take_no_part(data: Problem) -> None:
    targets = data.targets.copy()
    random = np.random.default_rng(1)
    targets[random.random(targets.shape) < 0.3] = 0
    ignored = targets == 0
    solution = solve(data.gram, targets, 10.0, threads=1)
    assert (solution.coefficients[ignored] == 0).all()
    for k in range(CLASSES):
        rows = np.flatnonzero(targets[k])
        assert 0 < len(rows) < len(data.x)
        reference = SVC(kernel="linear", C=10.0, tol=1e-6).fit(data.x[rows], targets[k, rows])
        scores = data.gram @ solution.coefficients[k] + solution.intercepts[k]
        np.testing.assert_allclose(scores, reference.decision_function(data.x), atol=5e-3)
    kept = solve(data.gram, data.targets, 10.0, threads=1)
    assert np.abs(kept.coefficients - solution.coefficients).max() > 0.1  # and it matters


@pytest.mark.parametrize("threads", [2, 5])
def test_threads_do_not_change_the_result(data: Problem, threads: int) -> None:
    one, many = solve(data.gram, data.targets, 10.0, 1), solve(data.gram, data.targets, 10.0, threads)
    assert np.array_equal(one.coefficients, many.coefficients)
    assert np.array_equal(one.intercepts, many.intercepts)


def test_held_out_scores_are_a_cross_validation(data: Problem) -> None:
    scores = cross_validate(data.gram, data.targets, data.labels, 10.0, folds=4, threads=2).scores
    expected = np.zeros_like(scores)
    for train, test in StratifiedKFold(4, shuffle=True, random_state=0).split(data.x, data.labels):
        for k in range(CLASSES):
            reference = SVC(kernel="linear", C=10.0, tol=1e-6).fit(data.x[train], data.labels[train] == k)
            expected[test, k] = reference.decision_function(data.x[test])
    np.testing.assert_allclose(scores, expected, atol=5e-3)
    # Held out is not the same as seen.
    solution = solve(data.gram, data.targets, 10.0, threads=1)
    seen = data.gram @ solution.coefficients.T + solution.intercepts
    correct = [(s.argmax(axis=1) == data.labels).mean() for s in (seen, scores)]
    assert correct[0] > correct[1] + 0.05


def test_choose_c_takes_the_better_one(data: Problem) -> None:
    candidates = (1e-3, 0.1, 10.0)
    best, accuracy = choose_c(data.gram, data.targets, torch.from_numpy(data.labels), candidates, folds=4, threads=1)
    for c in candidates:
        scores = cross_validate(data.gram, data.targets, data.labels, c, folds=4, threads=1).scores
        assert accuracy[c] == (scores.argmax(axis=1) == data.labels).mean()
    assert len(set(accuracy.values())) > 1
    assert accuracy[best] == max(accuracy.values())


@pytest.mark.parametrize("candidates", [(100.0, 1.0, 10.0), (1.0, 10.0, 100.0)])
def test_ties_keep_the_smallest_c(
    data: Problem, monkeypatch: pytest.MonkeyPatch, candidates: tuple[float, ...]
) -> None:
    perfect, wrong = np.eye(CLASSES)[data.labels], -np.eye(CLASSES)[data.labels]
    monkeypatch.setattr(svm, "cross_validate", lambda g, t, y, c, *rest: HeldOut(wrong if c == 1.0 else perfect, y, ()))
    best, accuracy = choose_c(data.gram, data.targets, torch.from_numpy(data.labels), candidates, folds=2, threads=1)
    assert best == 10.0
    assert accuracy == {1.0: 0.0, 10.0: 1.0, 100.0: 1.0}


@pytest.mark.parametrize("scale", [0.5, 4.0, 30.0])
def test_the_scale_of_synthetic_margins_is_recovered(scale: float) -> None:
    random = np.random.default_rng(0)
    margins = random.normal(size=(20_000, 5)) / np.sqrt(scale)
    # Labels drawn from softmax(scale * margins), by the Gumbel trick: the scale is then the truth.
    labels = (scale * margins + random.gumbel(size=margins.shape)).argmax(axis=1)
    assert fit_logit_scale(margins, torch.from_numpy(labels)) == pytest.approx(scale, rel=0.05)


def test_the_scale_improves_the_likelihood_of_held_out_margins(data: Problem) -> None:
    scores = cross_validate(data.gram, data.targets, data.labels, 10.0, folds=4, threads=1).scores
    scale = fit_logit_scale(scores, torch.from_numpy(data.labels))

    def loss(factor: float, doubt: float = 0.0) -> float:
        targets = (1 - doubt) * np.eye(CLASSES)[data.labels] + doubt / CLASSES
        return float(-(targets * log_softmax(factor * scores, axis=1)).sum(axis=1).mean())

    assert loss(scale) < loss(1.0)
    doubt = CLASSES / (len(scores) + CLASSES)
    assert loss(scale, doubt) <= min(loss(0.99 * scale, doubt), loss(1.01 * scale, doubt))


def test_the_scale_does_not_run_away_where_classes_are_separable() -> None:
    labels = np.arange(30) % 3
    # One uncertain image per class among 33: the best softmax gives the label 1 - 3/33 + 1/33.
    p = 1 - 2 / 33
    assert fit_logit_scale(2.0 * np.eye(3)[labels], torch.from_numpy(labels)) == pytest.approx(
        np.log(2 * p / (1 - p)) / 2.0, rel=1e-3
    )


def test_the_scale_is_bounded() -> None:
    labels = np.arange(30) % 3
    assert fit_logit_scale(0.01 * np.eye(3)[labels], torch.from_numpy(labels)) == pytest.approx(100.0, rel=0.01)
    assert fit_logit_scale(-0.05 * np.eye(3)[labels], torch.from_numpy(labels)) == pytest.approx(
        0.1, rel=0.01
    )  # worse than chance


def multi_label(data: Problem) -> torch.Tensor:
    """Three labels per row, some unspecified: the class is 0, the class is odd, the class is 3."""
    labels = np.stack([data.labels == 0, data.labels % 2 == 1, data.labels == 3], axis=1) * 2 - 1
    labels[np.random.default_rng(1).random(labels.shape) < 0.2] = 0
    return torch.from_numpy(labels.astype(np.int64))


@pytest.mark.parametrize("sign", [1, -1])
def test_a_class_of_one_sign_scores_by_that_sign(data: Problem, sign: int) -> None:
    targets = data.targets.copy()
    targets[2] = sign
    solution = solve(data.gram, targets, 10.0, threads=1)
    assert not solution.coefficients[2].any()
    assert solution.intercepts[2] == sign
    assert solution.coefficients[1].any()


def test_quality_is_the_mean_average_precision_where_images_have_several_labels(data: Problem) -> None:
    labels = multi_label(data)
    scores = np.random.default_rng(0).normal(size=labels.shape) + 0.5 * labels.numpy()
    expected = [average_precision_score(y[y != 0], s[y != 0]) for s, y in zip(scores.T, labels.T.numpy(), strict=True)]
    assert quality(scores, labels) == pytest.approx(np.mean(expected))
    best, found = choose_c(data.gram, as_targets(labels, 3).numpy(), labels, (1e-4, 10.0), folds=4, threads=1)
    assert best == max(found, key=lambda c: found[c])
    assert 0 < found[1e-4] < 1


@pytest.mark.parametrize("scale", [0.5, 4.0])
def test_the_scale_of_sigmoids_is_recovered_from_what_is_specified(scale: float) -> None:
    random = np.random.default_rng(0)
    margins = random.normal(size=(20_000, 3)) / np.sqrt(scale)
    labels = np.where(random.random(margins.shape) < expit(scale * margins), 1, -1)
    ignored = random.random(labels.shape) < 0.3
    margins[ignored] *= -100  # what is ignored must not matter
    labels[ignored] = 0
    assert fit_logit_scale(margins, torch.from_numpy(labels)) == pytest.approx(scale, rel=0.05)
