"""Which solver fits the SVMs, and whether it fits into memory."""

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
#: More than these bytes for vectors make the primal solver hardly faster.
BUDGET = 1 << 30


@dataclass(frozen=True)
class Plan:
    """The solver that a fit takes.

    Attributes:
        primal: Whether it is the primal one.
        budget: Bytes of the primal one's vectors.
        keep: Bytes of rows that it may keep on a GPU: half of what it leaves free.
        why: Both solvers' memory and that which is free, in words.
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
    """Choose: ``auto`` takes the kernel while its matrix and folds need a quarter of the free memory at most.

    Args:
        solver: Which one is asked for.
        n: Training images.
        dim: D, their features.
        classes: Names.
        folds: Folds of the cross-validation.
        device: Where rows are multiplied.
        candidates: How many C are cross-validated.
        cross: Whether the weights of the folds' SVMs are wanted, too.

    Raises:
        CxlpError: On all ranks, which call it together, if one of them has too little memory.
    """
    known = free_memory()
    here = (8 << 30 if known is None else known) // local_world_size()
    if device.type == "cuda":  # both matrix and vectors are there, too
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)  # torch keeps it for tensors
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
    """Make the solver of a plan; all ranks together.

    Args:
        plan: See :func:`plan`.
        store: The features, ``(n, D)``.
        targets: ``(classes, n)`` in {-1, 0, 1}.
        fold: ``(n,)``, which fold each image is in; ``None``: there are none.
        device: Where to compute.
        times: Gets the time of the Gram matrix.
        progress: Whether rank 0 shows bars.

    Raises:
        CxlpError: If features are not finite.
    """
    if plan.primal:
        return PrimalSolver(store, targets, fold, device, plan.budget, plan.keep, progress)
    with times.measure("Gram matrix"):
        gram = gram_matrix(store, device, progress=progress).numpy()
    check_lengths(gram.diagonal())
    return KernelSolver(store, gram, targets, fold, device, max(1, usable_cores() // local_world_size()))


def tell_unsolved(solver: Solver) -> dict[str, float]:
    """Warn of SVMs that a solver has not brought to its tolerance; ``unsolved`` counts those of the primal one."""
    if not isinstance(solver, PrimalSolver):
        return {}  # libsvm goes on until it is done
    if solver.unsolved and rank() == 0:
        warnings.warn(
            f"{solver.unsolved} SVMs, those of the cross-validation included, were not solved to the tolerance: a "
            "smaller C (model.frozen.c) or features of unit length make them easier, and model.frozen.solver: kernel "
            "solves them where its matrix fits into memory",
            stacklevel=2,
        )
    return {"unsolved": float(solver.unsolved)}


def solver_of(report: Mapping[str, float]) -> SolverName:
    """The solver that a fit took, by its report."""
    return "primal" if report["primal"] else "kernel"
