"""One-vs-rest linear SVMs of any number of rows: time linear in n, memory of a fixed budget."""

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from cxlp.frozen.checks import check_lengths
from cxlp.frozen.classifier import Array
from cxlp.frozen.folds import FoldClassifiers
from cxlp.frozen.newton import BLOCK, TOLERANCE, Rows, Solution, mean_row, minimise
from cxlp.frozen.store import RowStore
from cxlp.utils.distributed import all_sum, rank, world_size

#: Solutions of every 8th, 64th ... row, while these are as many, are where the search begins.
_FEWEST, _THINNING = 4096, 8


def primal_bytes(n: int, dim: int, classes: int, folds: int, budget: int) -> int:
    """Memory that a :class:`PrimalSolver` takes on each rank, in bytes: its budget, or what a single SVM needs.

    Besides: all SVMs' weights, targets, and held-out scores; with its blocks of rows.
    """
    one = _per_svm(n, dim)
    return max(one, min(budget, classes * (folds + 1) * one)) + 2 * 4 * classes * dim + 13 * classes * n + 3 * BLOCK


def _per_svm(n: int, dim: int) -> int:
    """Bytes of an SVM while it is fitted, of a rank: about eight vectors of its weights, and of its scores."""
    return 32 * dim + 32 * -(-n // world_size())


class PrimalSolver:
    """The SVMs of all classes, and those that leave a fold of the rows out, by :func:`~cxlp.frozen.newton.minimise`.

    SVMs are fitted in groups that fit into the budget; each group reads the rows some dozens of times.

    Args:
        store: The rows, ``(n, D)``.
        targets: ``(classes, n)`` in {-1, 0, 1}.
        fold: ``(n,)``, which fold each row is in; ``None``: there are none.
        device: Where to compute.
        budget: Bytes of the vectors of a group.
        progress: Whether rank 0 shows bars of groups.
        tolerance: See :func:`~cxlp.frozen.newton.minimise`; SVMs that are compared and scored by, or begun with,
            have ten times as much.

    Attributes:
        passes: How often a row was multiplied by vectors, groups together.

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
        progress: bool = False,
        tolerance: float = TOLERANCE,
    ) -> None:
        self.tolerance = tolerance
        self.progress = progress and rank() == 0
        self.store, self.device = store, device
        self.mean, squares = mean_row(store, device)
        check_lengths(squares.numpy())
        self.rows = Rows(store, device, self.mean)
        self.targets = torch.from_numpy(targets)[:, self.rows.places]
        self.fold = None if fold is None else torch.from_numpy(fold)
        self._group = max(1, budget // _per_svm(store.rows, store.dim))
        self._whole: dict[float, tuple[Tensor, Tensor]] = {}  # the last solution on all rows, in centred terms
        self.passes = 1

    def weights(self, c: float) -> tuple[Tensor, Tensor]:
        """Fit to all rows: weights ``(classes, D)`` float32, intercepts ``(classes,)`` float64."""
        weights, intercepts = self._fit_all(c)
        return weights, self._uncentred(weights, intercepts)

    def held_out(self, costs: Sequence[float]) -> dict[float, Array]:
        """Score each row by the SVMs that leave its fold out: ``(n, classes)`` for each cost C."""
        found = {c: np.zeros((self.store.rows, len(self.targets))) for c in sorted(costs)}
        for classes, folds, solved in self._fit_folds(sorted(costs)):
            for c, solution in solved:
                assert self.fold is not None
                own = self.fold[self.rows.places] == folds[:, None]  # (k, m)
                svm, row = own.nonzero(as_tuple=True)
                scores = solution.scores.cpu()[svm, row].double().numpy()
                found[c][self.rows.places[row].numpy(), classes[svm].numpy()] = scores
        for scores in found.values():
            all_sum(torch.from_numpy(scores))
        return found

    def fold_classifiers(self, c: float) -> FoldClassifiers:
        """Weights of the SVMs that :meth:`held_out` scores by; they are fitted anew, since many take much memory."""
        assert self.fold is not None
        shape = int(self.fold.max()) + 1, len(self.targets)
        weights = torch.zeros(*shape, self.store.dim, device=self.device)
        intercepts = torch.zeros(*shape, device=self.device)
        for classes, folds, solved in self._fit_folds([c]):
            for _, solution in solved:
                weights[folds, classes] = solution.weights
                intercepts[folds, classes] = self._uncentred(solution.weights, solution.intercepts).float()
        return FoldClassifiers(weights, intercepts, self.fold.to(self.device))

    def _fit_folds(self, costs: Sequence[float]) -> Iterator[tuple[Tensor, Tensor, Iterator[tuple[float, Solution]]]]:
        """Go through groups of SVMs: their classes, the folds that they leave out, and solutions by C."""
        assert self.fold is not None
        weights, intercepts = self._fit_all(costs[0])
        pairs = torch.cartesian_prod(torch.arange(int(self.fold.max()) + 1), torch.arange(len(self.targets)))
        for part in tqdm(torch.split(pairs, self._group), desc="SVMs of folds", disable=not self.progress, leave=False):
            folds, classes = part.unbind(dim=1)
            targets = self.targets[classes] * (self.fold[self.rows.places] != folds[:, None]).to(torch.int8)
            start = Solution(weights[classes], intercepts[classes], torch.empty(0), 0)
            yield classes, folds, self._path(targets, costs, start)

    def _path(self, targets: Tensor, costs: Sequence[float], start: Solution) -> Iterator[tuple[float, Solution]]:
        """Solve for one C after the other, each from the one before."""
        for c in costs:
            start = minimise(self.rows, targets, c, start, 10 * self.tolerance)
            self.passes += start.passes
            yield c, start

    def _fit_all(self, c: float) -> tuple[Tensor, Tensor]:
        """Fit to all rows, from the solution for another C, or from that of some of the rows."""
        if c not in self._whole:
            known = next(iter(self._whole.values()), None)
            parts = []
            groups = torch.split(torch.arange(len(self.targets)), self._group)
            for classes in tqdm(groups, desc="SVMs", disable=not self.progress, leave=False):
                start = None if known is None else Solution(known[0][classes], known[1][classes], torch.empty(0), 0)
                parts.append(self._fit_classes(classes, c, start))
            self._whole = {c: (torch.cat([p.weights for p in parts]), torch.cat([p.intercepts for p in parts]))}
        return self._whole[c]

    def _fit_classes(self, classes: Tensor, c: float, start: Solution | None) -> Solution:
        every = 1
        while start is None and self.store.rows // (every * _THINNING) >= _FEWEST:
            every *= _THINNING
        while every > 1:
            some = Rows(self.store, self.device, self.mean, every)
            start = minimise(some, self.targets[classes, ::every], c * every, start, 10 * self.tolerance)
            every //= _THINNING
        solution = minimise(self.rows, self.targets[classes], c, start, self.tolerance)
        self.passes += solution.passes
        return solution

    def _uncentred(self, weights: Tensor, intercepts: Tensor) -> Tensor:
        """Intercepts for rows that are not centred, float64."""
        mean = self.mean.double()
        return intercepts.double() - torch.stack([w.double() @ mean for w in weights])
