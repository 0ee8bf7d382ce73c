"""Growth of the primal SVMs' time and memory with the number of images; a Gram matrix grows quadratically.

    python benchmarks/svm_growth.py                                   # 5,000, 10,000 and 20,000 rows: 14 minutes
    python benchmarks/svm_growth.py 20000 40000 80000 --device cuda

The features are those of synthetic.py, in float16.
"""

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from measuring import in_fresh_process, machine, peak_bytes
from rich.console import Console
from rich.table import Table
from synthetic import Problem, features, generate, labels, say, targets, write

from cxlp.frozen.classifier import quality, split
from cxlp.frozen.primal import PrimalSolver
from cxlp.frozen.solvers import plan


def grow(problem: Problem, folds: int, device: torch.device) -> dict[str, float]:
    """Measure the primal solver and its cross-validation, with the settings of a run."""
    torch.set_num_threads(problem.threads)
    truth = labels(problem, problem.n)
    times = [time.perf_counter()]
    store, known = features(problem), targets(problem)
    planned = plan("primal", store.rows, store.dim, len(known), folds, device)
    solver = PrimalSolver(store, known, split(truth, folds), device, planned.budget, planned.keep)
    solver.weights(problem.c)
    passes = [solver.passes]
    times.append(time.perf_counter())
    say(f"n = {problem.n}: {times[-1] - times[-2]:.1f} s, {passes[0]} passes")
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
        "device_bytes": torch.cuda.max_memory_allocated(device) if device.type == "cuda" else 0,
    }


def show(results: dict[str, dict[str, float]], problem: Problem, device: torch.device, console: Console) -> None:
    """Print the table."""
    gpu = torch.cuda.get_device_name(device) if device.type == "cuda" else None
    table = Table(
        title=f"primal solver, {problem.dim} features in float16, {problem.classes} classes, C = {problem.c:g}",
        caption=f"folds: the SVMs of the cross-validation\n{problem.threads} threads, {machine()}"
        + (f", {gpu}" if gpu else ""),
    )
    for column in (
        "rows",
        "SVMs s",
        "passes",
        "folds s",
        "passes",
        "peak memory MB",
        *(["GPU memory MB"] if gpu else []),
        "cv accuracy",
    ):
        table.add_column(column, justify="right")
    for n, own in results.items():
        table.add_row(
            n,
            f"{own['solve_s']:.1f}",
            f"{own['solve_passes']:.0f}",
            f"{own['folds_s']:.1f}",
            f"{own['folds_passes']:.0f}",
            f"{own['bytes'] / 1e6:.0f}",
            *([f"{own['device_bytes'] / 1e6:.0f}"] if gpu else []),
            f"{100 * own['cv_accuracy']:.2f} %",
        )
    console.print(table)


def main() -> None:
    """Parse the options, solve, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "rows", type=int, nargs="*", default=[5000, 10_000, 20_000], help="numbers of training rows (5000 10000 20000)"
    )
    parser.add_argument("--dim", type=int, default=16_384, help="features per row (16384)")
    parser.add_argument("--classes", type=int, default=100, help="number of classes (100)")
    parser.add_argument("--c", type=float, default=10.0, help="cost C (10)")
    parser.add_argument("--folds", type=int, default=5, help="folds of the cross-validation (5)")
    parser.add_argument("--threads", type=int, default=2, help="number of processor threads (2)")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--folder", type=Path, help="folder for the temporary features (the system's default)")
    parser.add_argument("--out", type=Path, help="write all numbers to this JSON file")
    options = parser.parse_args()
    device = torch.device(options.device)
    results: dict[str, dict[str, float]] = {}
    for n in options.rows:
        with tempfile.TemporaryDirectory(dir=options.folder) as temporary:
            sizes = (n, options.dim, options.classes, options.c, options.threads)
            problem = Problem(*sizes, folder=Path(temporary), half=True)
            in_fresh_process(generate, problem)
            results[str(n)] = in_fresh_process(grow, problem, options.folds, device)
            write(options.out, problem, results)
    show(results, problem, device, Console(width=None if Console().is_terminal else 120))


if __name__ == "__main__":
    main()
