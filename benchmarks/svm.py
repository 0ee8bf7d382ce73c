"""SVMs at full size: on the Gram matrix by libsvm (the paper's), in the primal, and by scikit-learn's LinearSVC.

    python benchmarks/svm.py                       # the size of MIT-67: 5,360 x 128,000, 67 classes; 3 GB of disk
    python benchmarks/svm.py --linearsvc           # LinearSVC, too: up to 20 GB of memory, an hour and more
    python benchmarks/svm.py --n 600 --dim 4000 --classes 10 --linearsvc

On the features of synthetic.py. svm_growth.py has the primal solver at several sizes.
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
    """Gram matrix, one SVM per class, weight vectors."""
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
    """Newton's method on blocks of rows."""
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
    """LinearSVC on the features in memory."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.svm import LinearSVC

    torch.set_num_threads(problem.threads)
    store = features(problem)
    start = time.perf_counter()
    # float64 at once: LinearSVC would make such a copy of anything else.
    x = np.empty((problem.n, problem.dim))
    for first, stop in store.blocks():
        x[first:stop] = store.read(first, stop).numpy()
    read = time.perf_counter()
    say(f"LinearSVC: {x.nbytes / 1e9:.1f} GB read in {read - start:.1f} s, now fitting {problem.classes} classes")
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
    say(f"LinearSVC: {end - read:.1f} s" + (f", NOT converged in {problem.max_iter} iterations" if failed else ""))
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
    parser.add_argument("--folder", type=Path, help="where the features lie meanwhile (the system's temporary folder)")
    parser.add_argument("--out", type=Path, help="write all numbers to this JSON file")
    options = vars(parser.parse_args())
    linearsvc, folder, out = options.pop("linearsvc"), options.pop("folder"), options.pop("out")
    console = Console(width=None if Console().is_terminal else 120)
    results: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory(dir=folder) as temporary:
        problem = Problem(**options, folder=Path(temporary))
        say(f"making {4e-9 * problem.n * problem.dim:.2f} GB of features in {temporary}")
        in_fresh_process(generate, problem)
        contestants = [name for name in CONTESTANTS if linearsvc or name != "LinearSVC"]
        for name in contestants:
            results[name] = in_fresh_process(CONTESTANTS[name], problem)
            write(out, problem, results)
        results["compare"] = in_fresh_process(compare, problem, contestants)
        write(out, problem, results)
    show(results, problem, console)


def _keep(problem: Problem, name: str, weights: Array, intercepts: Array) -> None:
    # two classes: LinearSVC gives the second one's row only
    if len(weights) == 1:
        weights, intercepts = np.concatenate([-weights, weights]), np.concatenate([-intercepts, intercepts])
    np.savez(problem.folder / f"{name}.npz", weights=weights, intercepts=intercepts)


if __name__ == "__main__":
    main()
