"""One-vs-rest SVMs on a Gram matrix, compared with scikit-learn on the features."""

import tracemalloc
from dataclasses import dataclass
from typing import cast

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.special import expit, log_softmax
from sklearn.metrics import average_precision_score
from sklearn.model_selection import StratifiedKFold
from sklearn.svm import SVC, LinearSVC

from cxlp.frozen.classifier import Array, choose_cost_and_scale, fit_logit_scale, quality, split
from cxlp.frozen.store import RowStore
from cxlp.frozen.svm import KernelSolver, solve
from cxlp.utils.labels import as_targets

CLASSES = 4


@dataclass
class Problem:
    """Return unit-length features of overlapping classes."""

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


def solver(
    data: Problem, folds: int, targets: NDArray[np.int8] | None = None, labels: torch.Tensor | None = None
) -> KernelSolver:
    labels = torch.from_numpy(data.labels) if labels is None else labels
    own = data.targets if targets is None else targets
    unread = cast(RowStore, None)  # scores are computed from the Gram matrix
    return KernelSolver(unread, data.gram, own, split(labels, folds), torch.device("cpu"), 2)


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
        # the constraints of the dual problem
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


def test_ignored_rows_have_no_effect(data: Problem) -> None:
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
    assert np.abs(kept.coefficients - solution.coefficients).max() > 0.1  # and the option matters


@pytest.mark.parametrize("threads", [2, 5])
def test_threads_do_not_change_the_result(data: Problem, threads: int) -> None:
    one, many = solve(data.gram, data.targets, 10.0, 1), solve(data.gram, data.targets, 10.0, threads)
    assert np.array_equal(one.coefficients, many.coefficients)
    assert np.array_equal(one.intercepts, many.intercepts)


def test_held_out_scores_are_a_cross_validation(data: Problem) -> None:
    scores = solver(data, 4).held_out([10.0])[10.0]
    expected = np.zeros_like(scores)
    for train, test in StratifiedKFold(4, shuffle=True, random_state=0).split(data.x, data.labels):
        for k in range(CLASSES):
            reference = SVC(kernel="linear", C=10.0, tol=1e-6).fit(data.x[train], data.labels[train] == k)
            expected[test, k] = reference.decision_function(data.x[test])
    np.testing.assert_allclose(scores, expected, atol=5e-3)
    # Held-out scores differ from those of training rows.
    solution = solve(data.gram, data.targets, 10.0, threads=1)
    seen = data.gram @ solution.coefficients.T + solution.intercepts
    correct = [(s.argmax(axis=1) == data.labels).mean() for s in (seen, scores)]
    assert correct[0] > correct[1] + 0.05


def test_the_better_c_is_chosen(data: Problem) -> None:
    candidates = (1e-3, 0.1, 10.0)
    report = choose_cost_and_scale(solver(data, 4), torch.from_numpy(data.labels), "auto", candidates, 4)
    accuracy = [report[f"cv_accuracy_C{c:g}"] for c in candidates]
    for c, found in zip(candidates, accuracy, strict=True):
        scores = solver(data, 4).held_out([c])[c]
        assert found == (scores.argmax(axis=1) == data.labels).mean()
    assert len(set(accuracy)) > 1
    assert report["cv_accuracy"] == report[f"cv_accuracy_C{report['C']:g}"] == max(accuracy)


@pytest.mark.parametrize("candidates", [(100.0, 1.0, 10.0), (1.0, 10.0, 100.0)])
def test_ties_keep_the_smallest_c(
    data: Problem, monkeypatch: pytest.MonkeyPatch, candidates: tuple[float, ...]
) -> None:
    perfect, wrong = np.eye(CLASSES)[data.labels], -np.eye(CLASSES)[data.labels]
    own = solver(data, 2)
    monkeypatch.setattr(own, "held_out", lambda costs: {c: wrong if c == 1.0 else perfect for c in costs})
    report = choose_cost_and_scale(own, torch.from_numpy(data.labels), "auto", candidates, 2)
    assert report["C"] == 10.0
    assert [report[f"cv_accuracy_C{c}"] for c in (1, 10, 100)] == [0.0, 1.0, 1.0]


def test_rows_without_weight_are_left_out_of_the_matrix_itself(data: Problem) -> None:
    """Like scikit-learn's libsvm: bitwise equal to a copy without the held-out rows, which are not read."""
    targets = data.targets.copy()
    targets[:, ::3] = 0
    rows = np.flatnonzero(targets[0])
    gram = data.gram.copy()
    gram[::3] = gram[:, ::3] = np.nan
    found = solve(gram, targets, 10.0, threads=2)
    copied = solve(np.ascontiguousarray(data.gram[np.ix_(rows, rows)]), targets[:, rows], 10.0, threads=2)
    assert np.array_equal(found.coefficients[:, rows], copied.coefficients)
    assert np.array_equal(found.intercepts, copied.intercepts)
    assert not found.coefficients[:, ::3].any()
    assert found.coefficients.any()


def test_folds_copy_no_gram_matrix(data: Problem) -> None:
    """No memory of the matrix's size is allocated while folds are fitted and scored."""
    large = problem(n=1600, d=5)
    own = solver(large, 4)
    tracemalloc.start()
    own.held_out([0.01])
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 0.4 * large.gram.nbytes  # a copy of three folds would be 0.56


@pytest.mark.parametrize("scale", [0.5, 4.0, 30.0])
def test_the_scale_of_synthetic_margins_is_recovered(scale: float) -> None:
    random = np.random.default_rng(0)
    margins = random.normal(size=(20_000, 5)) / np.sqrt(scale)
    # Labels are drawn from softmax(scale * margins) by the Gumbel trick, so the scale is known.
    labels = (scale * margins + random.gumbel(size=margins.shape)).argmax(axis=1)
    assert fit_logit_scale(margins, torch.from_numpy(labels)) == pytest.approx(scale, rel=0.05)


def test_the_scale_improves_the_likelihood_of_held_out_margins(data: Problem) -> None:
    scores = solver(data, 4).held_out([10.0])[10.0]
    scale = fit_logit_scale(scores, torch.from_numpy(data.labels))

    def loss(factor: float, doubt: float = 0.0) -> float:
        targets = (1 - doubt) * np.eye(CLASSES)[data.labels] + doubt / CLASSES
        return float(-(targets * log_softmax(factor * scores, axis=1)).sum(axis=1).mean())

    assert loss(scale) < loss(1.0)
    doubt = CLASSES / (len(scores) + CLASSES)
    assert loss(scale, doubt) <= min(loss(0.99 * scale, doubt), loss(1.01 * scale, doubt))


def test_the_scale_is_finite_for_separable_classes() -> None:
    labels = np.arange(30) % 3
    # One uncertain image per class among 33: the best softmax has the probability 1 - 3/33 + 1/33.
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
    """Return three labels per row, some unspecified: the class is 0, the class is odd, the class is 3."""
    labels = np.stack([data.labels == 0, data.labels % 2 == 1, data.labels == 3], axis=1) * 2 - 1
    labels[np.random.default_rng(1).random(labels.shape) < 0.2] = 0
    return torch.from_numpy(labels.astype(np.int64))


@pytest.mark.parametrize("sign", [1, -1])
def test_an_svm_with_targets_of_one_sign_scores_that_sign(data: Problem, sign: int) -> None:
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
    own = solver(data, 4, as_targets(labels, 3).numpy(), labels)
    report = choose_cost_and_scale(own, labels, "auto", (1e-4, 10.0), 4)
    assert report["C"] == max((1e-4, 10.0), key=lambda c: report[f"cv_mAP_C{c:g}"])
    assert 0 < report["cv_mAP_C0.0001"] < 1


@pytest.mark.parametrize("scale", [0.5, 4.0])
def test_the_scale_of_sigmoids_is_recovered_from_specified_labels(scale: float) -> None:
    random = np.random.default_rng(0)
    margins = random.normal(size=(20_000, 3)) / np.sqrt(scale)
    labels = np.where(random.random(margins.shape) < expit(scale * margins), 1, -1)
    ignored = random.random(labels.shape) < 0.3
    margins[ignored] *= -100  # ignored entries must not matter
    labels[ignored] = 0
    assert fit_logit_scale(margins, torch.from_numpy(labels)) == pytest.approx(scale, rel=0.05)
