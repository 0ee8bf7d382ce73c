"""One-vs-rest linear SVMs of any number of rows: time linear in n, memory of a fixed budget."""

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

#: Solutions of every 8th, 64th ... row, while these are as many, are where the search begins.
_FEWEST, _THINNING = 4096, 8
#: Products of C and a row's squared length, up to which the search needs no smaller C before; ratio of C to the one
#: before; tolerance of all but the last.
_EASY, _RUNG, _ROUGHLY = 10.0, 3.2, 0.1
_HARDEST = 1e8  # such a product: rounding of scores in float32 is more than the solution


def primal_bytes(
    n: int, dim: int, classes: int, folds: int, budget: int, candidates: int = 1, cross: bool = False
) -> int:
    """Memory that a :class:`PrimalSolver` takes on each rank, in bytes: its budget, or what a single SVM needs.

    Besides: weights and held-out scores, with the copies that are made of them; its blocks of rows.

    Args:
        n: Rows.
        dim: D.
        classes: SVMs on all rows.
        folds: Of the cross-validation.
        budget: Bytes of the vectors of a group.
        candidates: How many C are cross-validated.
        cross: Whether the weights of the folds' SVMs are wanted, too.
    """
    one = _per_svm(n, dim)
    group = max(one, min(budget, classes * max(1, folds) * one))
    weights = 8 * classes * dim * (2 + (folds if cross else 0))
    return group + weights + (32 + 4 * candidates) * classes * n + 3 * BLOCK


def _per_svm(n: int, dim: int) -> int:
    """Bytes of an SVM while it is fitted, of a rank, as measured: about 12 vectors of its weights, 16 of its scores."""
    return 48 * dim + 64 * -(-n // world_size())


class PrimalSolver:
    """The SVMs of all classes, and those that leave a fold of the rows out, by :func:`~cxlp.frozen.newton.minimise`.

    SVMs are fitted in groups that fit into the budget; each group reads the rows some dozens of times.

    Args:
        store: The rows, ``(n, D)``.
        targets: ``(classes, n)`` in {-1, 0, 1}.
        fold: ``(n,)``, which fold each row is in; ``None``: there are none.
        device: Where to compute.
        budget: Bytes of the vectors of a group.
        keep: Bytes of rows that may be kept on the device, and a quarter of it of those of a thinned search.
        progress: Whether rank 0 shows bars of groups.
        tolerance: See :func:`~cxlp.frozen.newton.minimise`.

    Attributes:
        passes: How often a row was multiplied by vectors, groups together.
        unsolved: How many SVMs have not come as close as the tolerance asks for, those of folds included.

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
        self.size = max(float(squares.mean()) - float(self.mean.double().square().sum()), 1e-30) ** 0.5  # of a row
        self.passes, self.unsolved = 1, 0

    def __repr__(self) -> str:
        return f"PrimalSolver({len(self.targets):,} SVMs on {self.store.rows:,} rows of {self.store.dim:,} features)"

    def weights(self, c: float) -> tuple[Tensor, Tensor]:
        """Fit to all rows: weights ``(classes, D)`` float32, intercepts ``(classes,)`` float64."""
        weights = torch.empty(len(self.targets), self.store.dim, device=self.device)
        intercepts = torch.empty(len(self.targets), dtype=torch.float64, device=self.device)
        for classes in self._groups(torch.arange(len(self.targets)), "SVMs"):
            for _, solution in self._path(self.targets[classes], [c]):
                weights[classes], intercepts[classes] = solution.weights, self._uncentred(solution)
        return weights, intercepts

    def held_out(self, costs: Sequence[float]) -> dict[float, Array]:
        """Score each row by the SVMs that leave its fold out: ``(n, classes)``, float32, for each cost C."""
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
        """Weights of the SVMs that :meth:`held_out` scores by; they are fitted anew, since many take much memory."""
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
        """Fold of each row, ``(n,)``."""
        assert self.fold is not None
        return self.fold

    def _fit_folds(self, costs: Sequence[float]) -> Iterator[tuple[Tensor, Tensor, Iterator[tuple[float, Solution]]]]:
        """Go through groups of SVMs: their classes, the folds that they leave out, and solutions by C."""
        pairs = torch.cartesian_prod(torch.arange(int(self.folds.max()) + 1), torch.arange(len(self.targets)))
        for part in self._groups(pairs, "SVMs of folds"):
            folds, classes = part.unbind(dim=1)
            targets = self.targets[classes] * (self.folds[self.rows.places] != folds[:, None]).to(torch.int8)
            yield classes, folds, self._path(targets, costs)

    def _groups(self, svms: Tensor, name: str) -> Iterator[Tensor]:
        """Divide SVMs into groups that fit into the budget, with a bar."""
        groups = torch.split(svms, self._group)
        yield from track(groups, name, len(groups), "groups", hidden=not self.progress)

    def _path(self, targets: Tensor, costs: Sequence[float]) -> Iterator[tuple[float, Solution]]:
        """Solve for one C after the other, each from the one before.

        No search begins with what was fitted to other rows than its own: a fold's SVM must not have seen the rows that
        it leaves out.

        Args:
            targets: ``(k, m)``, of this rank's rows.
            costs: In ascending order.

        Raises:
            CxlpError: If a cost is too large for rows as long as these.
        """
        if costs[-1] * self.size**2 > _HARDEST:
            raise CxlpError(
                f"features of length {self.size:.1e} with C = {costs[-1]:g} are too large for the primal solver's "
                "float32: give the heads a normalisation of unit length, choose a smaller C, or "
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
        """Solve for each 8th, 64th ... of many rows, roughly, from the fewest up."""
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
        """Costs between two, exclusive, each some three times the one before: a large C is found fastest by them.

        Args:
            low: ``None``: nothing is solved yet, then the first one is that with which SVMs separate hardly anything.
            high: C.
        """
        begin = _EASY / self.size**2 if low is None else max(low, _EASY / self.size**2)
        steps = math.ceil(math.log(high / begin) / math.log(_RUNG)) if high > begin else 0
        rungs = [begin * (high / begin) ** (i / steps) for i in range(steps)]
        return rungs if low is None else rungs[1:] if begin == low else rungs

    def _uncentred(self, solution: Solution) -> Tensor:
        """Intercepts for rows that are not centred, float64."""
        mean = self.mean.double()
        return solution.intercepts.double() - torch.stack([w.double() @ mean for w in solution.weights])
