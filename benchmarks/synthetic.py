"""Synthetic features to fit SVMs on: signed square root and unit length, as pooled features have; classes overlap.

They are made in blocks and lie on disk. Contestants work in processes of their own, so that the peak memory of each
is its own; pages that the system caches of the file count for none.
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
BLOCK = 200  # rows made at a time


@dataclass(frozen=True)
class Problem:
    """What is solved, and how it is made."""

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
        """Number of held-out samples."""
        return 20 * self.classes


def labels(problem: Problem, rows: int) -> Tensor:
    """Classes in turn."""
    return torch.arange(rows) % problem.classes


def make(problem: Problem, first: int, count: int, stream: int) -> Tensor:
    """Make rows ``first`` to ``first + count`` of a stream (0: training, 1: held out): ``(count, dim)``."""
    random = torch.Generator().manual_seed(7)
    shared = 0.5 * torch.randn(problem.dim, generator=random)  # pooled features of all images look alike
    own = torch.randn(problem.classes, problem.dim, generator=random)
    # With n / classes images to learn a class from, this many standard deviations lie between classes.
    strength = (problem.separation / (problem.dim * problem.n / problem.classes) ** 0.5) ** 0.5
    random.manual_seed(1000 + 2 * first + stream)
    noise = torch.randn(count, problem.dim, generator=random)
    x = noise.add_(shared).add_(own[torch.arange(first, first + count) % problem.classes], alpha=strength)
    x = x.sign() * x.abs().sqrt()
    return torch.nn.functional.normalize(x)


def generate(problem: Problem) -> None:
    """Write the training rows to disk."""
    torch.set_num_threads(problem.threads)
    store = features(problem)
    for first in range(0, problem.n, BLOCK):
        count = min(BLOCK, problem.n - first)
        store.write(torch.arange(first, first + count), make(problem, first, count, 0))
    store.sync()
    store.close()


def features(problem: Problem) -> RowStore:
    """The file of the rows."""
    kind: FeatureType = "float16" if problem.half else "float32"
    return open_rows(problem.folder / "features.bin", problem.n, problem.dim, kind)


def targets(problem: Problem) -> NDArray[np.int8]:
    """+1 for the class of a row, -1 for the others: ``(classes, n)``."""
    found: NDArray[np.int8] = as_targets(labels(problem, problem.n), problem.classes).numpy()
    return found


def write(out: Path | None, problem: Problem, results: dict[str, dict[str, float]]) -> None:
    """Write after each step: an hour's numbers should survive a crash of the next step."""
    if out:
        sizes = {key: value for key, value in asdict(problem).items() if key != "folder"}
        out.write_text(json.dumps({"problem": sizes, "machine": machine(), **results}, indent=1))


def say(text: str) -> None:
    """Tell the one who waits."""
    print(text, file=sys.stderr, flush=True)
