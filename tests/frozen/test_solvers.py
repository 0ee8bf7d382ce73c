"""The choice of a solver, and errors that are raised before the pass."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from cxlp.frozen import newton, solvers
from cxlp.frozen.config import FrozenConfig
from cxlp.frozen.fit import FrozenFit
from cxlp.frozen.primal import primal_bytes
from cxlp.frozen.solvers import SolverName, plan
from cxlp.frozen.svm import kernel_bytes
from cxlp.utils.errors import CxlpError
from cxlp.utils.profiling import PhaseTimes
from tests.frozen.test_fit import ALL_VECTORS, CLASSES, cross, run_fit, small_images, small_network

CPU = torch.device("cpu")


def free(monkeypatch: pytest.MonkeyPatch, size: float | None, ranks: int = 1) -> None:
    monkeypatch.setattr(solvers, "free_memory", lambda: None if size is None else int(size))
    monkeypatch.setattr(solvers, "local_world_size", lambda: ranks)


@pytest.mark.parametrize(
    ("solver", "parts", "ranks", "primal"),
    [
        ("auto", 4.1, 1, False),
        ("auto", 3.9, 1, True),
        ("auto", 4.1, 2, True),  # two processes share the memory
        ("kernel", 1.1, 1, False),
        ("primal", 100.0, 1, True),
    ],
)
def test_auto_takes_the_kernel_while_it_needs_a_quarter_of_the_free_memory(
    monkeypatch: pytest.MonkeyPatch, solver: SolverName, parts: float, ranks: int, primal: bool
) -> None:
    needed = kernel_bytes(40_000, 16_384, 100, 5)
    assert 8 * 40_000**2 < needed < 1.1 * 8 * 40_000**2
    free(monkeypatch, parts * needed, ranks)
    found = plan(solver, 40_000, 16_384, 100, 5, CPU)
    assert found.primal == primal
    assert found.budget <= parts * needed / 4
    assert "40000 images" in found.why and "13.5 GB with solver kernel" in found.why


@pytest.mark.parametrize("spare", [0, 1 << 30])
def test_rows_are_kept_on_a_gpu_in_half_of_what_the_solver_leaves_free(
    monkeypatch: pytest.MonkeyPatch, spare: int
) -> None:
    needed = primal_bytes(40_000, 16_384, 100, 5, solvers.BUDGET)
    free(monkeypatch, 100e9)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (needed + spare, 80 << 30))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 0)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 0)
    monkeypatch.setattr(solvers, "primal_bytes", lambda *sizes: needed)
    assert plan("primal", 40_000, 16_384, 100, 5, torch.device("cuda")).keep == spare // 2
    assert plan("primal", 40_000, 16_384, 100, 5, CPU).keep == 0


def test_small_sets_take_the_kernel_if_memory_is_unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    free(monkeypatch, None)
    assert not plan("auto", 5_000, 16_384, 100, 5, CPU).primal
    assert plan("auto", 100_000, 16_384, 100, 5, CPU).primal


@pytest.mark.parametrize(
    ("solver", "size", "said"),
    [
        (
            "kernel",
            10e9,
            r"need 13\.5 GB with solver kernel, .*; 10\.0 GB are free.*: choose model\.frozen\.solver",
        ),
        (
            "kernel",
            1e8,
            "for each process: make the features smaller by the heads' pca_dim or sketch",
        ),
        ("primal", 1e8, r"0\.1 GB are free, for each process: make the features smaller"),
        ("auto", 1e8, "make the features smaller"),
        ("auto", 0, r"; 0\.0 GB are free"),
    ],
)
def test_problems_that_do_not_fit_in_memory_are_refused(
    monkeypatch: pytest.MonkeyPatch, solver: SolverName, size: float, said: str
) -> None:
    free(monkeypatch, size)
    with pytest.raises(CxlpError, match=said):
        plan(solver, 40_000, 16_384, 100, 5, CPU)


def test_a_solver_is_refused_before_the_pass(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    free(monkeypatch, 1e6)
    with pytest.raises(CxlpError, match=r"SVMs of 21 images, 3 classes and 768 features need"):
        FrozenFit(small_network(), FrozenConfig(), 21, tmp_path / "fit", PhaseTimes())
    assert not (tmp_path / "fit").exists()


@pytest.mark.parametrize("multi_label", [False, True])
def test_a_fit_with_the_primal_solver(tmp_path: Path, capsys: pytest.CaptureFixture[str], multi_label: bool) -> None:
    images, labels = small_images()
    if multi_label:
        labels = 2 * torch.nn.functional.one_hot(labels, len(CLASSES)) - 1
        labels[::5, 1] = 0
    scores = {}
    both: tuple[SolverName, ...] = ("kernel", "primal")
    for solver in both:
        network = small_network(multi_label=multi_label)
        config = FrozenConfig(pca_vectors=ALL_VECTORS, folds=3, solver=solver)
        report = run_fit(network, tmp_path, config, data=(images, labels))
        assert report["primal"] == (solver == "primal")
        with torch.no_grad():
            scores[solver] = network(images) / report["logit_scale"]
        said = capsys.readouterr().err
        assert said.count(f"solver: {solver}. SVMs of 21 images, 3 classes") == 1
    torch.testing.assert_close(scores["primal"], scores["kernel"], rtol=0, atol=0.5)
    assert bool((scores["primal"].sign() == scores["kernel"].sign()).all())


def test_folds_and_settled_choices_with_the_primal_solver(tmp_path: Path) -> None:
    images, labels = small_images()

    def fit(**options: object) -> FrozenFit:
        found = FrozenFit(
            small_network(cross()),
            FrozenConfig(folds=3, solver="primal"),
            len(images),
            tmp_path / "fit",
            PhaseTimes(),
            progress=False,
            **options,  # type: ignore[arg-type]
        )
        found.observe(images, labels, torch.arange(len(images)))
        return found

    first = fit(cross=True)
    report = first.finish()
    assert list(first.times) == ["PCA", "pooling", "SVM"]
    folds = first.fold_classifiers
    assert folds is not None and folds.weight.shape == (3, 3, 768)
    with torch.no_grad():
        features = first.network.features(images)
    held_out = folds(features, torch.arange(len(images))).argmax(dim=1)
    assert float((held_out == labels).float().mean()) == pytest.approx(report["cv_accuracy"])
    again = fit(settled=(report["C"], report["logit_scale"]))
    assert again.finish() == {"C": report["C"], "logit_scale": report["logit_scale"], "primal": 1.0, "unsolved": 0.0}
    with torch.no_grad():
        torch.testing.assert_close(again.network(images), first.network(images), rtol=0, atol=1e-3)


def test_a_warning_tells_how_many_svms_are_not_solved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(newton, "_MOST_STEPS", 1)
    with pytest.warns(UserWarning, match="^12 SVMs, .* not solved") as said:
        report = run_fit(small_network(), tmp_path, FrozenConfig(folds=3, solver="primal"), data=small_images())
    assert report["unsolved"] == 12
    assert sum("not solved" in str(warning.message) for warning in said) == 1


PEAK = """
import sys, tempfile, torch
from pathlib import Path
from cxlp.frozen import primal, svm
from cxlp.frozen.classifier import choose_cost_and_scale, split
from cxlp.frozen.gram import gram_matrix
from cxlp.frozen.store import open_rows
from cxlp.utils.labels import as_targets

def status(field):
    (line,) = (line for line in open("/proc/self/status") if line.startswith(field + ":"))
    return 1024 * int(line.split()[1])

solver, n, dim, classes, budget, auto = sys.argv[1], *map(int, sys.argv[2:])
folds, cpu, costs = 3, torch.device("cpu"), (0.01, 0.03, 0.1)
labels = torch.arange(n) % classes
targets, fold = as_targets(labels, classes).numpy(), split(labels, folds)
with tempfile.TemporaryDirectory() as folder:
    store = open_rows(Path(folder) / "rows.bin", n, dim)
    for first in range(0, n, 50):
        rows = torch.nn.functional.normalize(torch.randn(50, dim))
        store.write(torch.arange(first, first + 50), rows)
    store.read(0, 1), torch.randn(64, 64) @ torch.randn(64, 64)
    open("/proc/self/clear_refs", "w").write("5")
    before = status("VmRSS")
    options = (3 if auto else 1, bool(auto))
    if solver == "primal":
        found = primal.PrimalSolver(store, targets, fold, cpu, budget)
        said = primal.primal_bytes(n, dim, classes, folds, budget, *options)
    else:
        found = svm.KernelSolver(store, gram_matrix(store, cpu, progress=False).numpy(), targets, fold, cpu, 1)
        said = svm.kernel_bytes(n, dim, classes, folds, *options)
    c = choose_cost_and_scale(found, labels, "auto" if auto else 0.1, costs, folds)["C"]
    kept = found.fold_classifiers(c).scaled(2.0) if auto else None
    weights = 2.0 * found.weights(c)[0]
    # Blocks of rows are as large as a problem is, up to a limit that this one does not reach.
    blocks = 3 * primal.BLOCK - 3 * 4 * n * dim if solver == "primal" else (256 << 20) - 4 * n * dim
    print(status("VmHWM") - before, said - max(0, blocks))
"""


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="peaks are Linux's")
@pytest.mark.parametrize(
    "problem",
    [
        ("primal", 100, 30_000, 10, 1 << 30, 0),
        ("primal", 100, 30_000, 10, 20 << 20, 1),
        ("primal", 3000, 16, 50, 1 << 30, 1),
        ("kernel", 2000, 500, 10, 0, 1),
    ],
)
def test_memory_use_is_close_to_the_estimate(problem: tuple[Any, ...]) -> None:
    environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", PEAK, *map(str, problem)]
    found = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    peak, said = map(int, found.stdout.split())
    assert 0.9 * peak < said + (16 << 20) < 2.5 * peak + (64 << 20)
