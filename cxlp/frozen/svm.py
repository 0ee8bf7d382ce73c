"""One-vs-rest linear SVMs on a precomputed Gram matrix, by libsvm."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar
from sklearn.model_selection import StratifiedKFold
from sklearn.svm import SVC
from torch import Tensor

from cxlp.metrics.average_precision import average_precision
from cxlp.utils.distributed import all_sum, rank, world_size
from cxlp.utils.labels import classification_loss, strata

Array = NDArray[np.float64]


@dataclass(frozen=True)
class DualSolution:
    """SVMs in terms of training rows: ``score_k(x) = sum_i coefficients[k, i] <x_i, x> + intercepts[k]``.

    Attributes:
        coefficients: ``(classes, n)``, alpha times label, zero off the support vectors.
        intercepts: ``(classes,)``.
    """

    coefficients: Array
    intercepts: Array


def solve(gram: Array, targets: NDArray[np.int8], c: float, threads: int, share: bool = True) -> DualSolution:
    """Fit one SVM per class: ``min 1/2 |w|^2 + C sum_i hinge(y_i (w x_i + b))``.

    Args:
        gram: ``(n, n)``, C-contiguous float64 (libsvm reads it without a copy).
        targets: ``(classes, n)``: 1 positive, -1 negative, 0 ignored; each class trains on its own rows.
            A class whose rows are all of one sign scores each image by that sign.
        c: Cost C.
        threads: Fits at a time (libsvm releases the interpreter).
        share: Whether the ranks divide the classes among themselves (else each solves all).

    Returns:
        The solution, the same on each rank.
    """
    classes, n = targets.shape
    coefficients, intercepts = np.zeros((classes, n)), np.zeros(classes)

    def fit(k: int) -> None:
        rows = np.flatnonzero(targets[k])
        signs = np.unique(targets[k, rows])
        if len(signs) < 2:  # in a fold: nothing to tell apart, so always the same answer
            intercepts[k] = signs.sum()
            return
        whole = len(rows) == n
        # The tight tolerance costs little, and runs that differ by rounding end with the same weights.
        svm = SVC(kernel="precomputed", C=c, tol=1e-6, cache_size=64)
        svm.fit(gram if whole else gram[np.ix_(rows, rows)], targets[k, rows])
        coefficients[k, rows[svm.support_]] = svm.dual_coef_[0]
        intercepts[k] = svm.intercept_[0]

    mine = range(rank(), classes, world_size()) if share else range(classes)
    with ThreadPoolExecutor(max(1, threads)) as pool:
        list(pool.map(fit, mine))
    if share:
        all_sum(torch.from_numpy(coefficients))
        all_sum(torch.from_numpy(intercepts))
    return DualSolution(coefficients, intercepts)


@dataclass(frozen=True)
class HeldOut:
    """SVMs that have not seen a fold of the training rows, and what they score there.

    Attributes:
        scores: ``(n, classes)``, of each row by the SVMs that leave its fold out.
        folds: ``(n,)``, which fold each row is in.
        solutions: By fold; the coefficients of its own rows are zero.
    """

    scores: Array
    folds: NDArray[np.int64]
    solutions: tuple[DualSolution, ...]


def cross_validate(
    gram: Array, targets: NDArray[np.int8], groups: NDArray[np.int64], c: float, folds: int, threads: int
) -> HeldOut:
    """Fit SVMs for each fold to all other ones (stratified k-fold cross-validation).

    Args:
        gram: ``(n, n)``.
        targets: ``(classes, n)`` in {-1, 0, 1}.
        groups: ``(n,)``, what the folds are stratified by.
        c: Cost C.
        folds: Number of folds, at most the size of the smallest group.
        threads: Fits at a time.

    Returns:
        The same on each rank.
    """
    classes, n = targets.shape
    scores, fold_of = np.zeros((n, classes)), np.zeros(n, dtype=np.int64)
    coefficients, intercepts = np.zeros((folds, classes, n)), np.zeros((folds, classes))
    splits = StratifiedKFold(folds, shuffle=True, random_state=0).split(groups, groups)
    for fold, (train, test) in enumerate(splits):
        fold_of[test] = fold
        if fold % world_size() != rank():  # the folds, not their classes, are dealt out: each copies its rows only
            continue
        solution = solve(np.ascontiguousarray(gram[np.ix_(train, train)]), targets[:, train], c, threads, share=False)
        scores[test] = gram[np.ix_(test, train)] @ solution.coefficients.T + solution.intercepts
        coefficients[fold][:, train], intercepts[fold] = solution.coefficients, solution.intercepts
    for found in (scores, coefficients, intercepts):
        all_sum(torch.from_numpy(found))
    return HeldOut(scores, fold_of, tuple(map(DualSolution, coefficients, intercepts)))


def quality(scores: Array, labels: Tensor) -> float:
    """What C is chosen by: accuracy, or with several labels per image the mean average precision.

    Args:
        scores: ``(n, classes)``.
        labels: ``(n,)`` or ``(n, classes)``, see :mod:`cxlp.utils.labels`.
    """
    if labels.ndim == 1:
        return float((scores.argmax(axis=1) == labels.numpy()).mean())
    return float(np.nanmean(average_precision(scores, labels, "uninterpolated")))


def choose_c(
    gram: Array, targets: NDArray[np.int8], labels: Tensor, candidates: Sequence[float], folds: int, threads: int
) -> tuple[float, dict[float, float]]:
    """Choose C by cross-validation on the training rows, see :func:`quality`; ties keep the smallest.

    Returns:
        The choice, and the quality of each candidate.
    """
    groups = strata(labels, folds).numpy()
    found = {c: quality(cross_validate(gram, targets, groups, c, folds, threads).scores, labels) for c in candidates}
    best = max(found.values())
    return min(c for c, value in found.items() if value == best), found


def fit_logit_scale(scores: Array, labels: Tensor) -> float:
    """Fit the one number that turns margins into logits: least cross-entropy of held-out scores.

    On the training rows themselves the scale would run away, since the SVMs separate them; on easy data
    it would do so on held-out rows, too. So each row's label counts as Platt (1999) has it, a little
    less than certain: the targets are those of n labels and one more image of each class that says nothing.

    Args:
        scores: ``(n, classes)`` held-out margins.
        labels: ``(n,)`` or ``(n, classes)``, see :mod:`cxlp.utils.labels`.

    Returns:
        The scale, between 0.1 and 100.
    """
    margins = torch.from_numpy(scores)
    answers = scores.shape[1] if labels.ndim == 1 else 2
    doubt = answers / (len(scores) + answers)

    def loss(log_scale: float) -> float:
        return float(classification_loss(np.exp(log_scale) * margins, labels, doubt))

    # tightly, so that runs that differ by rounding end with the same weights
    found = minimize_scalar(loss, bounds=np.log((0.1, 100.0)), method="bounded", options={"xatol": 1e-9})
    return float(np.exp(found.x))
