"""One-vs-rest linear SVMs on a precomputed Gram matrix, by libsvm."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn import config_context
from sklearn.svm import SVC
from torch import Tensor

from cxlp.frozen.classifier import Array
from cxlp.frozen.folds import FoldClassifiers
from cxlp.frozen.gram import combine_rows
from cxlp.frozen.store import RowStore
from cxlp.utils.distributed import all_sum, rank, world_size

_ROWS = 512  # scored at a time


@dataclass(frozen=True, repr=False)
class DualSolution:
    """SVMs in terms of training rows: ``score_k(x) = sum_i coefficients[k, i] <x_i, x> + intercepts[k]``.

    Attributes:
        coefficients: ``(classes, n)``, alpha times label, zero off the support vectors.
        intercepts: ``(classes,)``.
    """

    coefficients: Array
    intercepts: Array

    def __repr__(self) -> str:
        svms, rows = self.coefficients.shape
        support = int((self.coefficients != 0).any(axis=0).sum())
        return f"DualSolution({svms:,} SVMs on {rows:,} rows, {support:,} of them support vectors)"


def solve(gram: Array, targets: NDArray[np.int8], c: float, threads: int) -> DualSolution:
    """Fit SVMs, each on its own rows: ``min 1/2 |w|^2 + C sum_i hinge(y_i (w x_i + b))``.

    The ranks divide the SVMs among themselves. The Gram matrix is not copied: libsvm leaves rows of no weight out.

    Args:
        gram: ``(n, n)``, C-contiguous float64 (libsvm reads it without a copy, and reads nothing else).
        targets: ``(k, n)``: 1 positive, -1 negative, 0 ignored.
            An SVM whose rows are all of one sign scores each image by that sign.
        c: Cost C.
        threads: Fits at a time (libsvm releases the interpreter).

    Returns:
        The solution, the same on each rank.
    """
    k, n = targets.shape
    coefficients, intercepts = np.zeros((k, n)), np.zeros(k)

    def fit(i: int) -> None:
        rows = np.flatnonzero(targets[i])
        signs = np.unique(targets[i, rows])
        if len(signs) < 2:  # in a fold: nothing to tell apart, so always the same answer
            intercepts[i] = signs.sum()
            return
        # The tight tolerance costs little, and runs that differ by rounding end with the same weights.
        svm = SVC(kernel="precomputed", C=c, tol=1e-6, cache_size=64)
        with config_context(assume_finite=True):  # of this thread; n^2 numbers need not be looked at in each fit
            svm.fit(gram, np.where(targets[i] > 0, 1, -1), sample_weight=None if len(rows) == n else targets[i] != 0)
        coefficients[i, rows[svm.support_]] = svm.dual_coef_[0]  # support vectors are numbered among the rows kept
        intercepts[i] = svm.intercept_[0]

    with ThreadPoolExecutor(max(1, threads)) as pool:
        list(pool.map(fit, range(rank(), k, world_size())))
    all_sum(torch.from_numpy(coefficients))
    all_sum(torch.from_numpy(intercepts))
    return DualSolution(coefficients, intercepts)


def kernel_bytes(n: int, dim: int, classes: int, folds: int, candidates: int = 1, cross: bool = False) -> int:
    """Memory that the Gram matrix and the SVMs on it take on each rank, in bytes.

    Args:
        n: Rows.
        dim: D.
        classes: SVMs on all rows.
        folds: Of the cross-validation.
        candidates: How many C are cross-validated.
        cross: Whether the weights of the folds' SVMs are wanted, too.
    """
    dual = (10 * (folds + 1) + 32 + 8 * candidates) * classes * n  # float64 coefficients and scores, targets
    weights = 8 * classes * dim * (2 + (folds if cross else 0))
    return 8 * n * n + dual + weights + (256 << 20)  # and a block


class FoldScores:
    """The SVMs that leave a fold of the rows out, on a Gram matrix.

    Args:
        gram: ``(n, n)``, see :func:`solve`.
        targets: ``(classes, n)`` in {-1, 0, 1}.
        fold: ``(n,)``, which fold each row is in; ``None``: there are none.
        threads: Fits at a time.
    """

    def __init__(self, gram: Array, targets: NDArray[np.int8], fold: NDArray[np.int64] | None, threads: int) -> None:
        self.gram, self.targets, self.fold, self.threads = gram, targets, fold, threads
        self._kept: tuple[float, DualSolution] | None = None  # the last cross-validation

    def held_out(self, costs: Sequence[float]) -> dict[float, Array]:
        """Score each row by the SVMs that leave its fold out: ``(n, classes)`` for each cost C."""
        return {c: self._scores(self._solve_folds(c)) for c in costs}

    def _solve_folds(self, c: float) -> DualSolution:
        """Fit the SVMs of all folds together, fold by fold: as many threads as SVMs are busy until the end."""
        if self._kept is None or self._kept[0] != c:
            assert self.fold is not None
            others = self.fold != np.arange(self.fold.max() + 1)[:, None]  # (folds, n)
            targets = (others[:, None] * self.targets).reshape(-1, len(self.fold))
            self._kept = None  # free, before as much is made again
            self._kept = c, solve(self.gram, targets, c, self.threads)
        return self._kept[1]

    def _scores(self, found: DualSolution) -> Array:
        assert self.fold is not None
        n, classes = len(self.fold), len(self.targets)
        coefficients = found.coefficients.reshape(-1, classes, n)
        intercepts = found.intercepts.reshape(-1, classes)
        scores = np.empty((n, classes))
        for start in range(0, n, _ROWS):
            rows = slice(start, start + _ROWS)
            for fold in np.unique(self.fold[rows]):
                own = start + np.flatnonzero(self.fold[rows] == fold)
                scores[own] = self.gram[own] @ coefficients[fold].T + intercepts[fold]
        return scores


class KernelSolver(FoldScores):
    """The SVMs of all classes, and those that leave a fold of the rows out, on the Gram matrix of a store.

    Args:
        store: The rows, ``(n, D)``.
        gram: Their Gram matrix, see :func:`solve`.
        targets: ``(classes, n)`` in {-1, 0, 1}.
        fold: ``(n,)``, which fold each row is in; ``None``: there are none.
        device: Where weights are wanted.
        threads: Fits at a time.
    """

    def __init__(
        self,
        store: RowStore,
        gram: Array,
        targets: NDArray[np.int8],
        fold: NDArray[np.int64] | None,
        device: torch.device,
        threads: int,
    ) -> None:
        super().__init__(gram, targets, fold, threads)
        self.store, self.device = store, device

    def __repr__(self) -> str:
        return f"KernelSolver({len(self.targets):,} SVMs on {self.store.rows:,} rows of {self.store.dim:,} features)"

    def weights(self, c: float) -> tuple[Tensor, Tensor]:
        """Fit to all rows: weights ``(classes, D)`` float32, intercepts ``(classes,)`` float64."""
        return self._combined(solve(self.gram, self.targets, c, self.threads))

    def fold_classifiers(self, c: float) -> FoldClassifiers:
        """Weights of the SVMs of the cross-validation with a cost C."""
        weights, intercepts = self._combined(self._solve_folds(c))
        assert self.fold is not None
        shape = (-1, len(self.targets))
        return FoldClassifiers(
            weights.view(*intercepts.view(shape).shape, -1),
            intercepts.view(shape).to(self.device, torch.float32),
            torch.from_numpy(self.fold).to(self.device),
        )

    def _combined(self, found: DualSolution) -> tuple[Tensor, Tensor]:
        weights = combine_rows(self.store, torch.from_numpy(found.coefficients), self.device)
        return weights, torch.from_numpy(found.intercepts)
