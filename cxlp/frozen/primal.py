"""One-vs-rest linear SVMs in the primal, for any number of rows: linear time in n and bounded memory."""

import math
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cxlp.frozen.checks import check_lengths
from cxlp.frozen.classifier import Array
from cxlp.frozen.folds import FoldClassifiers
from cxlp.frozen.newton import TOLERANCE, Solution, minimise
from cxlp.frozen.rows import BLOCK, Rows, mean_row
from cxlp.frozen.store import RowStore
from cxlp.utils.distributed import all_sum, rank, world_size
from cxlp.utils.errors import CxlpError
from cxlp.utils.progress import track

#: The search starts from solutions for every 8th, 64th, ... row, as long as at least 4096 rows remain.
_FEWEST, _THINNING = 4096, 8
#: A large C is reached by a path of increasing C. ``_EASY``: product of C and the mean squared row length up to which
#: no path is needed; ``_RUNG``: largest ratio of successive C; ``_ROUGHLY``: tolerance of all but the final C.
_EASY, _RUNG, _ROUGHLY = 10.0, 3.2, 0.1
_HARDEST = 1e8  # largest such product: beyond it, rounding errors of scores in float32 exceed the solution


def primal_bytes(
    n: int, dim: int, classes: int, folds: int, budget: int, candidates: int = 1, cross: bool = False
) -> int:
    """Return the bytes of memory that a :class:`PrimalSolver` needs on each rank.

    They are the budget, or the memory of a single SVM if that is larger; the weights and held-out scores, with their
    copies; and the blocks of rows.

    Args:
        n: Number of rows.
        dim: Dimension of the rows, D.
        classes: Number of SVMs on all rows.
        folds: Number of folds of the cross-validation.
        budget: Bytes for the vectors of a group of SVMs.
        candidates: Number of cross-validated C.
        cross: Whether the weights of the folds' SVMs are returned, too.
    """
    one = _per_svm(n, dim)
    group = max(one, min(budget, classes * max(1, folds) * one))
    weights = 8 * classes * dim * (2 + (folds if cross else 0))
    return group + weights + (32 + 4 * candidates) * classes * n + 3 * BLOCK


def _per_svm(n: int, dim: int) -> int:
    """Return the measured bytes per rank of fitting an SVM: about 12 vectors of weights and 16 of scores."""
    return 48 * dim + 64 * -(-n // world_size())


class PrimalSolver:
    """Fits the SVMs of all classes, and those of a cross-validation, by :func:`~cxlp.frozen.newton.minimise`.

    SVMs are fitted in groups that fit into the budget. Each group reads the rows some dozens of times.

    Args:
        store: The rows, ``(n, D)``.
        targets: ``(classes, n)`` in {-1, 0, 1}.
        fold: ``(n,)``, the fold of each row, or ``None`` without cross-validation.
        device: Device for the computation.
        budget: Bytes for the vectors of a group of SVMs.
        keep: Bytes of rows that may stay on the device. The initial search on a part of the rows may keep a quarter.
        progress: Whether rank 0 shows progress bars.
        tolerance: See :func:`~cxlp.frozen.newton.minimise`.

    Attributes:
        passes: Number of passes over the rows, summed over the groups.
        unsolved: Number of SVMs that did not reach the tolerance, including those of the cross-validation.

    Raises:
        CxlpError: If features are not finite.
    """

    def __init__(
        self,
        store: RowStore,
        targets: NDArray[np.int8],
        fold: NDArray[np.int64] | None,
        device: torch.device,
        budget: int,
        keep: int = 0,
        progress: bool = False,
        tolerance: float = TOLERANCE,
    ) -> None:
        self.tolerance, self._keep = tolerance, keep
        self.progress = progress and rank() == 0
        self.store, self.device = store, device
        self.mean, squares = mean_row(store, device)
        check_lengths(squares.numpy())
        self.rows = Rows(store, device, self.mean, keep_bytes=keep)
        self.targets = torch.from_numpy(targets)[:, self.rows.places]
        self.fold = None if fold is None else torch.from_numpy(fold)
        self._group = max(1, budget // _per_svm(store.rows, store.dim))
        # Root mean square length of the centred rows.
        self.size = max(float(squares.mean()) - float(self.mean.double().square().sum()), 1e-30) ** 0.5
        self.passes, self.unsolved = 1, 0

    def __repr__(self) -> str:
        return f"PrimalSolver({len(self.targets):,} SVMs on {self.store.rows:,} rows of {self.store.dim:,} features)"

    def weights(self, c: float) -> tuple[Tensor, Tensor]:
        """Fit to all rows, and return weights ``(classes, D)`` float32 and intercepts ``(classes,)`` float64."""
        weights = torch.empty(len(self.targets), self.store.dim, device=self.device)
        intercepts = torch.empty(len(self.targets), dtype=torch.float64, device=self.device)
        for classes in self._groups(torch.arange(len(self.targets)), "SVMs"):
            for _, solution in self._path(self.targets[classes], [c]):
                weights[classes], intercepts[classes] = solution.weights, self._uncentred(solution)
        return weights, intercepts

    def held_out(self, costs: Sequence[float]) -> dict[float, Array]:
        """Score each row with the SVMs fitted without its fold: ``(n, classes)``, float32, for each cost C."""
        found = {c: np.zeros((self.store.rows, len(self.targets)), np.float32) for c in sorted(costs)}
        for classes, folds, solved in self._fit_folds(sorted(costs)):
            for c, solution in solved:
                for k, scores in enumerate(solution.scores):
                    own = self.folds[self.rows.places] == folds[k]
                    found[c][self.rows.places[own].numpy(), int(classes[k])] = scores.cpu()[own].numpy()
        for scores in found.values():
            all_sum(torch.from_numpy(scores))
        return found

    def fold_classifiers(self, c: float) -> FoldClassifiers:
        """Fit the SVMs of :meth:`held_out` again, which does not keep them to save memory, and return them."""
        shape = int(self.folds.max()) + 1, len(self.targets)
        weights = torch.zeros(*shape, self.store.dim, device=self.device)
        intercepts = torch.zeros(*shape, device=self.device)
        for classes, folds, solved in self._fit_folds([c]):
            for _, solution in solved:
                weights[folds, classes] = solution.weights
                intercepts[folds, classes] = self._uncentred(solution).float()
        return FoldClassifiers(weights, intercepts, self.folds.to(self.device))

    @property
    def folds(self) -> Tensor:
        """The fold of each row, ``(n,)``."""
        assert self.fold is not None
        return self.fold

    def _fit_folds(self, costs: Sequence[float]) -> Iterator[tuple[Tensor, Tensor, Iterator[tuple[float, Solution]]]]:
        """Yield for each group of SVMs their classes, the folds that they leave out, and their solutions by C."""
        pairs = torch.cartesian_prod(torch.arange(int(self.folds.max()) + 1), torch.arange(len(self.targets)))
        for part in self._groups(pairs, "SVMs of folds"):
            folds, classes = part.unbind(dim=1)
            targets = self.targets[classes] * (self.folds[self.rows.places] != folds[:, None]).to(torch.int8)
            yield classes, folds, self._path(targets, costs)

    def _groups(self, svms: Tensor, name: str) -> Iterator[Tensor]:
        """Yield groups of SVMs that fit into the budget, with a progress bar."""
        groups = torch.split(svms, self._group)
        yield from track(groups, name, len(groups), "groups", hidden=not self.progress)

    def _path(self, targets: Tensor, costs: Sequence[float]) -> Iterator[tuple[float, Solution]]:
        """Solve for each C in turn, starting from the solution for the previous C.

        A search never starts from a solution that was fitted to other rows: an SVM of a fold must not depend on the
        rows that it leaves out.

        Args:
            targets: ``(k, m)``, the targets of this rank's rows.
            costs: Costs C in ascending order.

        Raises:
            CxlpError: If a cost is too large for the length of the rows.
        """
        if costs[-1] * self.size**2 > _HARDEST:
            raise CxlpError(
                f"features of length {self.size:.1e} with C = {costs[-1]:g} are too large for the primal solver, which "
                "computes in float32: give the heads a normalisation to unit length (l2: true), choose a smaller C, or "
                "model.frozen.solver: kernel"
            )
        start, reached = self._fit_some(targets, costs[0]), costs[0]
        for c in costs:
            for rung in self._rungs(None if start is None else reached, c):
                start = minimise(self.rows, targets, rung, start, _ROUGHLY)
                self.passes += start.passes
            start, reached = minimise(self.rows, targets, c, start, self.tolerance), c
            self.passes += start.passes
            self.unsolved += start.unsolved
            yield c, start

    def _fit_some(self, targets: Tensor, c: float) -> Solution | None:
        """Solve with a large tolerance on growing parts of the rows, such as every 64th and then every 8th row."""
        every, start = 1, None
        while self.store.rows // (every * _THINNING) >= _FEWEST:
            every *= _THINNING
        while every > 1:
            some = Rows(self.store, self.device, self.mean, every, keep_bytes=self._keep // 4)
            thinned = targets[:, torch.isin(self.rows.places, some.places)]
            for rung in [*self._rungs(None if start is None else c * every, c * every), c * every]:
                start = minimise(some, thinned, rung, start, _ROUGHLY)
            every //= _THINNING
        return start

    def _rungs(self, low: float | None, high: float) -> list[float]:
        """Return costs between ``low`` and ``high``, about a factor of three apart: the fastest path to a large C.

        Args:
            low: The cost of the last solution. ``None`` if there is none: then the first cost is so small that the SVMs
                hardly separate the rows, and it is included.
            high: The cost C to reach.
        """
        begin = _EASY / self.size**2 if low is None else max(low, _EASY / self.size**2)
        steps = math.ceil(math.log(high / begin) / math.log(_RUNG)) if high > begin else 0
        rungs = [begin * (high / begin) ** (i / steps) for i in range(steps)]
        return rungs if low is None else rungs[1:] if begin == low else rungs

    def _uncentred(self, solution: Solution) -> Tensor:
        """Return the intercepts for rows that are not centred, float64."""
        mean = self.mean.double()
        return solution.intercepts.double() - torch.stack([w.double() @ mean for w in solution.weights])
