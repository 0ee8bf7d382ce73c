"""Choice of the SVM solver by its memory."""

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray

from cxlp.frozen.checks import check_lengths
from cxlp.frozen.classifier import Solver
from cxlp.frozen.gram import gram_matrix
from cxlp.frozen.primal import PrimalSolver, primal_bytes
from cxlp.frozen.store import RowStore
from cxlp.frozen.svm import KernelSolver, kernel_bytes
from cxlp.utils.distributed import gather_objects, local_world_size, rank, usable_cores
from cxlp.utils.errors import CxlpError
from cxlp.utils.memory import free_memory
from cxlp.utils.profiling import PhaseTimes

SolverName = Literal["auto", "kernel", "primal"]
#: Upper bound of the primal solver's vectors in bytes; more memory hardly makes it faster.
BUDGET = 1 << 30


@dataclass(frozen=True)
class Plan:
    """The choice of a solver.

    Attributes:
        primal: Whether to use the primal solver rather than the kernel.
        budget: Bytes for the primal solver's vectors.
        keep: Bytes of rows that the primal solver may keep on a GPU: half of the memory that it leaves free.
        why: The memory of both solvers and the free memory, as text.
    """

    primal: bool
    budget: int
    keep: int
    why: str


def plan(
    solver: SolverName,
    n: int,
    dim: int,
    classes: int,
    folds: int,
    device: torch.device,
    candidates: int = 1,
    cross: bool = False,
) -> Plan:
    """Choose the solver: ``auto`` is the kernel if it needs at most a quarter of the free memory.

    All ranks call this function together.

    Args:
        solver: The configured solver.
        n: Number of training images.
        dim: Dimension of their features, D.
        classes: Number of classes.
        folds: Number of folds of the cross-validation.
        device: Device for the products of rows.
        candidates: Number of cross-validated C.
        cross: Whether the weights of the folds' SVMs are returned, too.

    Raises:
        CxlpError: On all ranks, if one of them has too little memory.
    """
    known = free_memory()
    here = (8 << 30 if known is None else known) // local_world_size()
    if device.type == "cuda":  # matrix and vectors are also on the GPU
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)  # torch's cache
        here = min(here, torch.cuda.mem_get_info(device)[0] + unused)
    free = min(gather_objects(here))
    budget = min(BUDGET, free // 4)
    needs = {
        "kernel": kernel_bytes(n, dim, classes, folds, candidates, cross),
        "primal": primal_bytes(n, dim, classes, folds, budget, candidates, cross),
    }
    name = ("kernel" if needs["kernel"] <= free // 4 else "primal") if solver == "auto" else solver
    said = ", ".join(f"{need / 1e9:.1f} GB with solver {of}" for of, need in needs.items())
    why = f"SVMs of {n} images, {classes} classes and {dim} features need {said}; {free / 1e9:.1f} GB are free"
    if needs[name] > free:
        other = "" if name == "primal" or needs["primal"] > free else "choose model.frozen.solver: primal, or "
        raise CxlpError(
            f"{why}, for each process: {other}make the features smaller by the heads' pca_dim or sketch, or free "
            "some memory"
        )
    keep = (free - needs["primal"]) // 2 if device.type == "cuda" else 0
    return Plan(name == "primal", budget, max(0, keep), why)


def make_solver(
    plan: Plan,
    store: RowStore,
    targets: NDArray[np.int8],
    fold: NDArray[np.int64] | None,
    device: torch.device,
    times: PhaseTimes,
    progress: bool,
) -> Solver:
    """Create the solver of a plan; all ranks call this function together.

    Args:
        plan: See :func:`plan`.
        store: The features, ``(n, D)``.
        targets: ``(classes, n)`` in {-1, 0, 1}.
        fold: ``(n,)``, the fold of each image, or ``None`` without cross-validation.
        device: Device for the computation.
        times: Collects the time of the Gram matrix.
        progress: Whether rank 0 shows progress bars.

    Raises:
        CxlpError: If features are not finite.
    """
    if plan.primal:
        return PrimalSolver(store, targets, fold, device, plan.budget, plan.keep, progress)
    with times.measure("Gram matrix"):
        gram = gram_matrix(store, device, progress=progress).numpy()
    check_lengths(gram.diagonal())
    return KernelSolver(store, gram, targets, fold, device, max(1, usable_cores() // local_world_size()))


def warn_if_unsolved(solver: Solver) -> dict[str, float]:
    """Warn of SVMs that did not reach the tolerance; for the primal solver, return their number as ``unsolved``."""
    if not isinstance(solver, PrimalSolver):
        return {}  # libsvm has no limit of iterations
    if solver.unsolved and rank() == 0:
        warnings.warn(
            f"{solver.unsolved} SVMs, including those of the cross-validation, were not solved to the tolerance: "
            "choose a smaller C (model.frozen.c), features of unit length, or model.frozen.solver: kernel if its "
            "matrix fits into memory",
            stacklevel=2,
        )
    return {"unsolved": float(solver.unsolved)}


def solver_of(report: Mapping[str, float]) -> SolverName:
    """Return the solver that a fit used, according to its report."""
    return "primal" if report["primal"] else "kernel"
