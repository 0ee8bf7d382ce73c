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

_ROWS = 512  # rows scored at a time


@dataclass(frozen=True, repr=False)
class DualSolution:
    """Dual coefficients of SVMs: ``score_k(x) = sum_i coefficients[k, i] <x_i, x> + intercepts[k]``.

    Attributes:
        coefficients: ``(classes, n)``, alpha times label, zero except at the support vectors.
        intercepts: ``(classes,)``.
    """

    coefficients: Array
    intercepts: Array

    def __repr__(self) -> str:
        svms, rows = self.coefficients.shape
        support = int((self.coefficients != 0).any(axis=0).sum())
        return f"DualSolution({svms:,} SVMs on {rows:,} rows, {support:,} of them support vectors)"


def solve(gram: Array, targets: NDArray[np.int8], c: float, threads: int) -> DualSolution:
    """Fit SVMs, each on its own subset of rows: ``min 1/2 |w|^2 + C sum_i hinge(y_i (w x_i + b))``.

    The ranks share the SVMs. The Gram matrix is not copied for a subset: libsvm ignores rows of weight zero.

    Args:
        gram: ``(n, n)``, C-contiguous float64, the only layout that libsvm reads, and without a copy.
        targets: ``(k, n)``: 1 positive, -1 negative, 0 ignored. An SVM whose rows all have the same sign scores every
            image with that sign.
        c: Cost C.
        threads: Number of simultaneous fits; libsvm releases Python's global interpreter lock.

    Returns:
        The solution, the same on each rank.
    """
    k, n = targets.shape
    coefficients, intercepts = np.zeros((k, n)), np.zeros(k)

    def fit(i: int) -> None:
        rows = np.flatnonzero(targets[i])
        signs = np.unique(targets[i, rows])
        if len(signs) < 2:  # possible in a fold: there is nothing to separate, so the score is constant
            intercepts[i] = signs.sum()
            return
        # A small tolerance costs little, and runs that differ by rounding return the same weights.
        svm = SVC(kernel="precomputed", C=c, tol=1e-6, cache_size=64)
        with config_context(assume_finite=True):  # per thread; avoids a check of n^2 numbers in each fit
            svm.fit(gram, np.where(targets[i] > 0, 1, -1), sample_weight=None if len(rows) == n else targets[i] != 0)
        coefficients[i, rows[svm.support_]] = svm.dual_coef_[0]  # support_ contains indices among the rows kept
        intercepts[i] = svm.intercept_[0]

    with ThreadPoolExecutor(max(1, threads)) as pool:
        list(pool.map(fit, range(rank(), k, world_size())))
    all_sum(torch.from_numpy(coefficients))
    all_sum(torch.from_numpy(intercepts))
    return DualSolution(coefficients, intercepts)


def kernel_bytes(n: int, dim: int, classes: int, folds: int, candidates: int = 1, cross: bool = False) -> int:
    """Return the bytes of memory that the Gram matrix and its SVMs need on each rank.

    Args:
        n: Number of rows.
        dim: Dimension of the rows, D.
        classes: Number of SVMs on all rows.
        folds: Number of folds of the cross-validation.
        candidates: Number of cross-validated C.
        cross: Whether the weights of the folds' SVMs are returned, too.
    """
    dual = (10 * (folds + 1) + 32 + 8 * candidates) * classes * n  # float64 coefficients and scores, targets
    weights = 8 * classes * dim * (2 + (folds if cross else 0))
    return 8 * n * n + dual + weights + (256 << 20)  # the last term is a block of columns


class FoldScores:
    """Cross-validates SVMs on a Gram matrix.

    Args:
        gram: ``(n, n)``, see :func:`solve`.
        targets: ``(classes, n)`` in {-1, 0, 1}.
        fold: ``(n,)``, the fold of each row, or ``None`` without cross-validation.
        threads: Number of simultaneous fits.
    """

    def __init__(self, gram: Array, targets: NDArray[np.int8], fold: NDArray[np.int64] | None, threads: int) -> None:
        self.gram, self.targets, self.fold, self.threads = gram, targets, fold, threads
        self._kept: tuple[float, DualSolution] | None = None  # C and solution of the last cross-validation

    def held_out(self, costs: Sequence[float]) -> dict[float, Array]:
        """Score each row with the SVMs fitted without its fold: ``(n, classes)`` for each cost C."""
        return {c: self._scores(self._solve_folds(c)) for c in costs}

    def _solve_folds(self, c: float) -> DualSolution:
        """Fit the SVMs of all folds in one call, in the order of the folds, which keeps all threads busy."""
        if self._kept is None or self._kept[0] != c:
            assert self.fold is not None
            others = self.fold != np.arange(self.fold.max() + 1)[:, None]  # (folds, n)
            targets = (others[:, None] * self.targets).reshape(-1, len(self.fold))
            self._kept = None  # free the memory before the next solution needs as much
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
    """Fits the SVMs of all classes, and those of a cross-validation, on the Gram matrix of a store.

    Args:
        store: The rows, ``(n, D)``.
        gram: Gram matrix of the rows, see :func:`solve`.
        targets: ``(classes, n)`` in {-1, 0, 1}.
        fold: ``(n,)``, the fold of each row, or ``None`` without cross-validation.
        device: Device of the returned weights.
        threads: Number of simultaneous fits.
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
        """Fit to all rows, and return weights ``(classes, D)`` float32 and intercepts ``(classes,)`` float64."""
        return self._combined(solve(self.gram, self.targets, c, self.threads))

    def fold_classifiers(self, c: float) -> FoldClassifiers:
        """Return the SVMs of the cross-validation with a cost C."""
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
