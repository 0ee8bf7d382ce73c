"""Synthetic features for SVMs: like pooled features, with signed square root and unit length. Classes overlap.

The features are generated in blocks and stored on disk. Each solver runs in a new process, so that its peak memory can
be measured; the system's page cache is not counted.
"""

import json
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from measuring import machine
from numpy.typing import NDArray
from torch import Tensor

from cxlp.frozen.store import FeatureType, RowStore, open_rows
from cxlp.utils.labels import as_targets

Array = NDArray[np.floating[Any]]
BLOCK = 200  # rows that are generated at a time


@dataclass(frozen=True)
class Problem:
    """The sizes of the problem, the parameters of its features, and the options of the solvers."""

    n: int
    dim: int
    classes: int
    c: float
    threads: int
    folder: Path
    half: bool = False
    separation: float = 3.0
    intercept_scaling: float = 3.0
    max_iter: int = 20_000
    tol: float = 1e-4

    @property
    def held_out(self) -> int:
        """Number of held-out rows."""
        return 20 * self.classes


def labels(problem: Problem, rows: int) -> Tensor:
    """Return the class indices of the rows, which cycle through the classes."""
    return torch.arange(rows) % problem.classes


def make(problem: Problem, first: int, count: int, stream: int) -> Tensor:
    """Generate rows ``first`` to ``first + count`` of a stream (0: training, 1: held out): ``(count, dim)``."""
    random = torch.Generator().manual_seed(7)
    shared = 0.5 * torch.randn(problem.dim, generator=random)  # pooled features of all images look alike
    own = torch.randn(problem.classes, problem.dim, generator=random)
    # With class means estimated from n / classes rows, scores of classes are this many standard deviations apart.
    strength = (problem.separation / (problem.dim * problem.n / problem.classes) ** 0.5) ** 0.5
    random.manual_seed(1000 + 2 * first + stream)
    noise = torch.randn(count, problem.dim, generator=random)
    x = noise.add_(shared).add_(own[torch.arange(first, first + count) % problem.classes], alpha=strength)
    x = x.sign() * x.abs().sqrt()
    return torch.nn.functional.normalize(x)


def generate(problem: Problem) -> None:
    """Generate the training rows, and write them to disk."""
    torch.set_num_threads(problem.threads)
    store = features(problem)
    for first in range(0, problem.n, BLOCK):
        count = min(BLOCK, problem.n - first)
        store.write(torch.arange(first, first + count), make(problem, first, count, 0))
    store.sync()
    store.close()


def features(problem: Problem) -> RowStore:
    """Open the file of the training rows."""
    kind: FeatureType = "float16" if problem.half else "float32"
    return open_rows(problem.folder / "features.bin", problem.n, problem.dim, kind)


def targets(problem: Problem) -> NDArray[np.int8]:
    """Return the targets ``(classes, n)``: +1 for the class of a row, -1 for the others."""
    found: NDArray[np.int8] = as_targets(labels(problem, problem.n), problem.classes).numpy()
    return found


def write(out: Path | None, problem: Problem, results: dict[str, dict[str, float]]) -> None:
    """Write the results so far, so that a crash of the next step does not lose them."""
    if out:
        sizes = {key: value for key, value in asdict(problem).items() if key != "folder"}
        out.write_text(json.dumps({"problem": sizes, "machine": machine(), **results}, indent=1))


def say(text: str) -> None:
    """Print progress on stderr."""
    print(text, file=sys.stderr, flush=True)
