"""SVMs of MIT-67's size: libsvm on the Gram matrix (as in the paper), primal, and scikit-learn's LinearSVC.

    python benchmarks/svm.py                       # 5,360 x 128,000, 67 classes; 3 GB of disk
    python benchmarks/svm.py --linearsvc           # with LinearSVC: up to 20 GB of memory, over an hour
    python benchmarks/svm.py --n 600 --dim 4000 --classes 10 --linearsvc

The features are those of synthetic.py. svm_growth.py measures the primal solver at several sizes.
"""

import argparse
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from measuring import in_fresh_process, machine, peak_bytes
from rich.console import Console
from rich.table import Table
from synthetic import BLOCK, Array, Problem, features, generate, labels, make, say, targets, write

from cxlp.frozen.gram import combine_rows, gram_matrix
from cxlp.frozen.primal import PrimalSolver
from cxlp.frozen.solvers import BUDGET
from cxlp.frozen.svm import solve

CPU = torch.device("cpu")


def kernel(problem: Problem) -> dict[str, float]:
    """Measure the Gram matrix, one SVM per class, and the weight vectors."""
    torch.set_num_threads(problem.threads)
    store = features(problem)
    times = [time.perf_counter()]
    gram = gram_matrix(store, CPU).numpy()
    times.append(time.perf_counter())
    say(f"Gram matrix: {times[-1] - times[-2]:.1f} s")
    solution = solve(gram, targets(problem), problem.c, problem.threads)
    times.append(time.perf_counter())
    say(f"{problem.classes} SVMs: {times[-1] - times[-2]:.1f} s")
    weights = combine_rows(store, torch.from_numpy(solution.coefficients), CPU)
    times.append(time.perf_counter())
    say(f"weight vectors: {times[-1] - times[-2]:.1f} s")
    peak = peak_bytes()
    _keep(problem, "kernel", weights.numpy(), solution.intercepts)
    gram_s, svm_s, combine_s = np.diff(times).tolist()
    return {"gram_s": gram_s, "svm_s": svm_s, "combine_s": combine_s, "total_s": times[-1] - times[0], "bytes": peak}


def primal(problem: Problem) -> dict[str, float]:
    """Measure the primal solver, Newton's method on blocks of rows."""
    torch.set_num_threads(problem.threads)
    start = time.perf_counter()
    solver = PrimalSolver(features(problem), targets(problem), None, CPU, BUDGET)
    weights, intercepts = solver.weights(problem.c)
    total = time.perf_counter() - start
    say(f"primal: {total:.1f} s, {solver.passes} passes over the rows")
    peak = peak_bytes()
    _keep(problem, "primal", weights.numpy(), intercepts.numpy())
    return {"total_s": total, "passes": solver.passes, "bytes": peak}


def linear_svc(problem: Problem) -> dict[str, float]:
    """Measure LinearSVC on the features in memory."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.svm import LinearSVC

    torch.set_num_threads(problem.threads)
    store = features(problem)
    start = time.perf_counter()
    # float64, because LinearSVC would copy any other type to it.
    x = np.empty((problem.n, problem.dim))
    for first, stop in store.blocks():
        x[first:stop] = store.read(first, stop).numpy()
    read = time.perf_counter()
    say(f"LinearSVC: {x.nbytes / 1e9:.1f} GB read in {read - start:.1f} s, now fitting {problem.classes} classes")
    svc = LinearSVC(
        loss="hinge",
        dual=True,
        C=problem.c,
        # LinearSVC regularises the intercept divided by this value. A larger value is closer to the SVM, but slower.
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
    say(f"LinearSVC: {end - read:.1f} s" + (f", NOT converged in {problem.max_iter} iterations" if failed else ""))
    peak = peak_bytes()
    _keep(problem, "LinearSVC", svc.coef_, svc.intercept_)
    return {"read_s": read - start, "total_s": end - start, "bytes": peak, "converged": float(not failed)}


def compare(problem: Problem, names: list[str]) -> dict[str, float]:
    """Compute accuracy and agreement on held-out rows, and the primal objective on training rows, for each solver."""
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
    store, signs = features(problem), targets(problem)
    for name, model in models.items():
        hinge = 0.0
        for first, stop in store.blocks():
            margins = store.read(first, stop).numpy() @ model["weights"].T.astype(np.float32) + model["intercepts"]
            hinge += float(np.maximum(0, 1 - signs[:, first:stop].T * margins).sum())
        found[f"objective {name}"] = float((model["weights"] ** 2).sum()) / 2 + problem.c * hinge
    for name in names:
        found[f"as the kernel {name}"] = float((predictions[name] == predictions["kernel"]).mean())
    return found


#: The solvers, in the order of the table.
SOLVERS = {"kernel": kernel, "primal": primal, "LinearSVC": linear_svc}


def show(results: dict[str, dict[str, float]], problem: Problem, console: Console) -> None:
    """Print the table."""
    mine, found = results["kernel"], results["compare"]
    table = Table(
        title=f"{problem.n} x {problem.dim} features, {problem.classes} classes, C = {problem.c:g}",
        caption=f"kernel: Gram matrix {mine['gram_s']:.1f} s, SVMs {mine['svm_s']:.1f} s, "
        f"weight vectors {mine['combine_s']:.1f} s; primal: {results['primal']['passes']:.0f} passes over the rows; "
        f"LinearSVC: includes reading the features\nobjective: sum over classes of 1/2 |w|^2 + C sum hinge; same "
        f"predictions: agreement with kernel on {problem.held_out} held-out rows\n{problem.threads} threads, "
        f"{machine()}",
    )
    table.add_column("")
    for column in ("time s", "x", "peak memory MB", "x", "held-out accuracy", "same predictions", "objective"):
        table.add_column(column, justify="right")
    for name in SOLVERS:
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


def main() -> None:
    """Parse the options, run the solvers, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--n", type=int, default=5360, help="training rows (5360)")
    parser.add_argument("--dim", type=int, default=128_000, help="features per row (128000)")
    parser.add_argument("--classes", type=int, default=67, help="number of classes (67)")
    parser.add_argument("--c", type=float, default=10.0, help="cost C (10)")
    parser.add_argument("--threads", type=int, default=2, help="number of processor threads (2)")
    parser.add_argument("--separation", type=float, default=Problem.separation, help="larger: easier classes")
    parser.add_argument("--intercept-scaling", type=float, default=Problem.intercept_scaling, help="LinearSVC's option")
    parser.add_argument("--max-iter", type=int, default=Problem.max_iter, help="LinearSVC's option")
    parser.add_argument("--tol", type=float, default=Problem.tol, help="LinearSVC's option")
    parser.add_argument("--linearsvc", action="store_true", help="also run scikit-learn's LinearSVC")
    parser.add_argument("--folder", type=Path, help="folder for the temporary features (the system's default)")
    parser.add_argument("--out", type=Path, help="write all numbers to this JSON file")
    options = vars(parser.parse_args())
    linearsvc, folder, out = options.pop("linearsvc"), options.pop("folder"), options.pop("out")
    console = Console(width=None if Console().is_terminal else 120)
    results: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory(dir=folder) as temporary:
        problem = Problem(**options, folder=Path(temporary))
        say(f"generating {4e-9 * problem.n * problem.dim:.2f} GB of features in {temporary}")
        in_fresh_process(generate, problem)
        solvers = [name for name in SOLVERS if linearsvc or name != "LinearSVC"]
        for name in solvers:
            results[name] = in_fresh_process(SOLVERS[name], problem)
            write(out, problem, results)
        results["compare"] = in_fresh_process(compare, problem, solvers)
        write(out, problem, results)
    show(results, problem, console)


def _keep(problem: Problem, name: str, weights: Array, intercepts: Array) -> None:
    # For two classes, LinearSVC returns the row of the second class only.
    if len(weights) == 1:
        weights, intercepts = np.concatenate([-weights, weights]), np.concatenate([-intercepts, intercepts])
    np.savez(problem.folder / f"{name}.npz", weights=weights, intercepts=intercepts)


if __name__ == "__main__":
    main()
