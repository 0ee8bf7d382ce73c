"""SVMs at full size: on the Gram matrix by libsvm (the paper's), in the primal, and by scikit-learn's LinearSVC.

    python benchmarks/svm.py                       # the size of MIT-67: 5,360 x 128,000, 67 classes; 3 GB of disk
    python benchmarks/svm.py --linearsvc           # LinearSVC, too: up to 20 GB of memory, an hour and more
    python benchmarks/svm.py --n 600 --dim 4000 --classes 10 --linearsvc
    python benchmarks/svm.py --grow 10000 20000 40000 80000 --dim 16384 --classes 100   # the primal solver's growth

Synthetic features: signed square root and unit length, as pooled features have, with classes that
overlap. They are made in blocks and lie on disk. Each contestant works in a process of its own,
so that its peak memory is its own; pages that the system caches of the file count for neither.
"""

import argparse
import json
import sys
import tempfile
import time
import warnings
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from measuring import in_fresh_process, machine, peak_bytes
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table
from torch import Tensor

from cxlp.frozen.classifier import quality, split
from cxlp.frozen.gram import combine_rows, gram_matrix
from cxlp.frozen.primal import PrimalSolver
from cxlp.frozen.solvers import BUDGET
from cxlp.frozen.store import FeatureType, RowStore, open_rows
from cxlp.frozen.svm import solve
from cxlp.utils.labels import as_targets

Array = NDArray[np.floating[Any]]
BLOCK = 200  # rows made at a time
CPU = torch.device("cpu")


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
    store = _store(problem)
    for first in range(0, problem.n, BLOCK):
        count = min(BLOCK, problem.n - first)
        store.write(torch.arange(first, first + count), make(problem, first, count, 0))
    store.sync()
    store.close()


def kernel(problem: Problem) -> dict[str, float]:
    """Gram matrix, one SVM per class, weight vectors."""
    torch.set_num_threads(problem.threads)
    store = _store(problem)
    times = [time.perf_counter()]
    gram = gram_matrix(store, CPU).numpy()
    times.append(time.perf_counter())
    _say(f"Gram matrix: {times[-1] - times[-2]:.1f} s")
    solution = solve(gram, _targets(problem), problem.c, problem.threads)
    times.append(time.perf_counter())
    _say(f"{problem.classes} SVMs: {times[-1] - times[-2]:.1f} s")
    weights = combine_rows(store, torch.from_numpy(solution.coefficients), CPU)
    times.append(time.perf_counter())
    _say(f"weight vectors: {times[-1] - times[-2]:.1f} s")
    peak = peak_bytes()
    _keep(problem, "kernel", weights.numpy(), solution.intercepts)
    gram_s, svm_s, combine_s = np.diff(times).tolist()
    return {"gram_s": gram_s, "svm_s": svm_s, "combine_s": combine_s, "total_s": times[-1] - times[0], "bytes": peak}


def primal(problem: Problem) -> dict[str, float]:
    """Newton's method on blocks of rows."""
    torch.set_num_threads(problem.threads)
    start = time.perf_counter()
    solver = PrimalSolver(_store(problem), _targets(problem), None, CPU, BUDGET)
    weights, intercepts = solver.weights(problem.c)
    total = time.perf_counter() - start
    _say(f"primal: {total:.1f} s, {solver.passes} passes over the rows")
    peak = peak_bytes()
    _keep(problem, "primal", weights.numpy(), intercepts.numpy())
    return {"total_s": total, "passes": solver.passes, "bytes": peak}


def grow(problem: Problem, folds: int) -> dict[str, float]:
    """The primal solver with its cross-validation, as a run has it."""
    torch.set_num_threads(problem.threads)
    truth = labels(problem, problem.n)
    times = [time.perf_counter()]
    solver = PrimalSolver(_store(problem), _targets(problem), split(truth, folds), CPU, BUDGET)
    solver.weights(problem.c)
    passes = [solver.passes]
    times.append(time.perf_counter())
    _say(f"n = {problem.n}: {times[-1] - times[-2]:.1f} s, {passes[0]} passes")
    scores = solver.held_out([problem.c])[problem.c]
    times.append(time.perf_counter())
    passes.append(solver.passes - passes[0])
    solve_s, folds_s = np.diff(times).tolist()
    accuracy = quality(scores, truth)
    return {
        "solve_s": solve_s,
        "solve_passes": passes[0],
        "folds_s": folds_s,
        "folds_passes": passes[1],
        "cv_accuracy": accuracy,
        "bytes": peak_bytes(),
    }


def linear_svc(problem: Problem) -> dict[str, float]:
    """LinearSVC on the features in memory."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.svm import LinearSVC

    torch.set_num_threads(problem.threads)
    store = _store(problem)
    start = time.perf_counter()
    # float64 at once: LinearSVC would make such a copy of anything else.
    x = np.empty((problem.n, problem.dim))
    for first, stop in store.blocks():
        x[first:stop] = store.read(first, stop).numpy()
    read = time.perf_counter()
    _say(f"LinearSVC: {x.nbytes / 1e9:.1f} GB read in {read - start:.1f} s, now fitting {problem.classes} classes")
    svc = LinearSVC(
        loss="hinge",
        dual=True,
        C=problem.c,
        # It regularises the intercept, divided by this: the larger, the closer to the SVM, and the slower.
        intercept_scaling=problem.intercept_scaling,
        tol=problem.tol,
        max_iter=problem.max_iter,
        random_state=0,
    )
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", ConvergenceWarning)
        svc.fit(x, labels(problem, problem.n).numpy())
    end = time.perf_counter()
    failed = any(issubclass(w.category, ConvergenceWarning) for w in caught)
    _say(f"LinearSVC: {end - read:.1f} s" + (f", NOT converged in {problem.max_iter} iterations" if failed else ""))
    peak = peak_bytes()
    _keep(problem, "LinearSVC", svc.coef_, svc.intercept_)
    return {"read_s": read - start, "total_s": end - start, "bytes": peak, "converged": float(not failed)}


def compare(problem: Problem, names: list[str]) -> dict[str, float]:
    """Score held-out samples by each contestant's weights; their primal objectives on the training rows."""
    torch.set_num_threads(problem.threads)
    models = {name: np.load(problem.folder / f"{name}.npz") for name in names}
    truth = labels(problem, problem.held_out).numpy()
    scores: dict[str, list[Any]] = {name: [] for name in names}
    for first in range(0, problem.held_out, BLOCK):
        block = make(problem, first, min(BLOCK, problem.held_out - first), 1).numpy()
        for name, model in models.items():
            scores[name].append(block @ model["weights"].T.astype(np.float32) + model["intercepts"])
    predictions = {name: np.concatenate(s).argmax(axis=1) for name, s in scores.items()}
    found = {f"accuracy {name}": float((p == truth).mean()) for name, p in predictions.items()}
    store, targets = _store(problem), _targets(problem)
    for name, model in models.items():
        hinge = 0.0
        for first, stop in store.blocks():
            margins = store.read(first, stop).numpy() @ model["weights"].T.astype(np.float32) + model["intercepts"]
            hinge += float(np.maximum(0, 1 - targets[:, first:stop].T * margins).sum())
        found[f"objective {name}"] = float((model["weights"] ** 2).sum()) / 2 + problem.c * hinge
    for name in names:
        found[f"as the kernel {name}"] = float((predictions[name] == predictions["kernel"]).mean())
    return found


#: What is compared, in order.
CONTESTANTS = {"kernel": kernel, "primal": primal, "LinearSVC": linear_svc}


def show(results: dict[str, dict[str, float]], problem: Problem, console: Console) -> None:
    """Print the table."""
    mine, found = results["kernel"], results["compare"]
    table = Table(
        title=f"{problem.n} x {problem.dim} features, {problem.classes} classes, C = {problem.c:g}",
        caption=f"kernel: Gram matrix {mine['gram_s']:.1f} s, SVMs {mine['svm_s']:.1f} s, "
        f"weight vectors {mine['combine_s']:.1f} s; primal: {results['primal']['passes']:.0f} passes over the rows; "
        f"LinearSVC: with reading the features\nobjective: sum over classes of 1/2 |w|^2 + C sum hinge; predictions: "
        f"the same as the kernel's, of {problem.held_out} held-out rows\n{problem.threads} threads, {machine()}",
    )
    table.add_column("")
    for column in ("time s", "x", "peak memory MB", "x", "held-out accuracy", "same predictions", "objective"):
        table.add_column(column, justify="right")
    for name in CONTESTANTS:
        if name in results:
            own = results[name]
            table.add_row(
                name if own.get("converged", 1.0) else f"{name} (not converged)",
                f"{own['total_s']:.2f}",
                f"{own['total_s'] / mine['total_s']:.2f}",
                f"{own['bytes'] / 1e6:.0f}",
                f"{own['bytes'] / mine['bytes']:.2f}",
                f"{100 * found[f'accuracy {name}']:.2f} %",
                f"{100 * found[f'as the kernel {name}']:.2f} %",
                f"{found[f'objective {name}']:.2f}",
            )
    console.print(table)


def show_growth(results: dict[str, dict[str, float]], problem: Problem, console: Console) -> None:
    """Print the table of growth."""
    table = Table(
        title=f"primal solver, {problem.dim} features in float16, {problem.classes} classes, C = {problem.c:g}",
        caption=f"folds: the SVMs of a cross-validation\n{problem.threads} threads, {machine()}",
    )
    for column in ("rows", "SVMs s", "passes", "folds s", "passes", "peak memory MB", "cv accuracy"):
        table.add_column(column, justify="right")
    for n, own in results.items():
        table.add_row(
            n,
            f"{own['solve_s']:.1f}",
            f"{own['solve_passes']:.0f}",
            f"{own['folds_s']:.1f}",
            f"{own['folds_passes']:.0f}",
            f"{own['bytes'] / 1e6:.0f}",
            f"{100 * own['cv_accuracy']:.2f} %",
        )
    console.print(table)


def main() -> None:
    """Parse options, run the contestants, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--n", type=int, default=5360, help="training rows (5360)")
    parser.add_argument("--dim", type=int, default=128_000, help="features of a row (128000)")
    parser.add_argument("--classes", type=int, default=67, help="classes (67)")
    parser.add_argument("--c", type=float, default=10.0, help="cost C (10)")
    parser.add_argument("--threads", type=int, default=2, help="processor threads (2)")
    parser.add_argument("--separation", type=float, default=Problem.separation, help="larger: easier classes")
    parser.add_argument("--intercept-scaling", type=float, default=Problem.intercept_scaling, help="of LinearSVC")
    parser.add_argument("--max-iter", type=int, default=Problem.max_iter, help="of LinearSVC")
    parser.add_argument("--tol", type=float, default=Problem.tol, help="of LinearSVC")
    parser.add_argument("--linearsvc", action="store_true", help="scikit-learn's LinearSVC, too")
    parser.add_argument("--grow", type=int, nargs="+", metavar="N", help="the primal solver alone, for each N")
    parser.add_argument("--folds", type=int, default=5, help="of the cross-validation with --grow (5)")
    parser.add_argument("--folder", type=Path, help="where the features lie meanwhile (the system's temporary folder)")
    parser.add_argument("--out", type=Path, help="write all numbers to this JSON file")
    options = vars(parser.parse_args())
    linearsvc, folder, out = options.pop("linearsvc"), options.pop("folder"), options.pop("out")
    sizes, folds = options.pop("grow"), options.pop("folds")
    console = Console(width=None if Console().is_terminal else 120)
    results: dict[str, dict[str, float]] = {}
    for n in sizes or []:
        with tempfile.TemporaryDirectory(dir=folder) as temporary:
            problem = Problem(**{**options, "n": n}, folder=Path(temporary), half=True)
            in_fresh_process(generate, problem)
            results[str(n)] = in_fresh_process(grow, problem, folds)
            _write(out, problem, results)
    if sizes:
        show_growth(results, problem, console)
        return
    with tempfile.TemporaryDirectory(dir=folder) as temporary:
        problem = Problem(**options, folder=Path(temporary))
        _say(f"making {4e-9 * problem.n * problem.dim:.2f} GB of features in {temporary}")
        in_fresh_process(generate, problem)
        contestants = [name for name in CONTESTANTS if linearsvc or name != "LinearSVC"]
        for name in contestants:
            results[name] = in_fresh_process(CONTESTANTS[name], problem)
            _write(out, problem, results)
        results["compare"] = in_fresh_process(compare, problem, contestants)
        _write(out, problem, results)
    show(results, problem, console)


def _store(problem: Problem) -> RowStore:
    kind: FeatureType = "float16" if problem.half else "float32"
    return open_rows(problem.folder / "features.bin", problem.n, problem.dim, kind)


def _targets(problem: Problem) -> NDArray[np.int8]:
    targets: NDArray[np.int8] = as_targets(labels(problem, problem.n), problem.classes).numpy()
    return targets


def _keep(problem: Problem, name: str, weights: Array, intercepts: Array) -> None:
    # two classes: LinearSVC gives the second one's row only
    if len(weights) == 1:
        weights, intercepts = np.concatenate([-weights, weights]), np.concatenate([-intercepts, intercepts])
    np.savez(problem.folder / f"{name}.npz", weights=weights, intercepts=intercepts)


def _write(out: Path | None, problem: Problem, results: dict[str, dict[str, float]]) -> None:
    """Write after each step: an hour's numbers should survive a crash of the next step."""
    if out:
        sizes = {key: value for key, value in asdict(problem).items() if key != "folder"}
        out.write_text(json.dumps({"problem": sizes, "machine": machine(), **results}, indent=1))


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
