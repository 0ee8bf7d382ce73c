"""SVMs by Newton's method on blocks of rows, compared with a plain minimisation and with libsvm."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.optimize import minimize
from sklearn.model_selection import StratifiedKFold
from torch import Tensor

from cxlp.frozen import newton, primal
from cxlp.frozen.classifier import choose_cost_and_scale, quality, split
from cxlp.frozen.newton import Solution, minimise
from cxlp.frozen.primal import PrimalSolver
from cxlp.frozen.rows import Rows, mean_row
from cxlp.frozen.store import RowStore, open_rows
from cxlp.frozen.svm import KernelSolver
from cxlp.utils.errors import CxlpError
from cxlp.utils.labels import as_targets
from tests.frozen.test_svm import CLASSES, Problem, problem

CPU = torch.device("cpu")
PLENTY = 1 << 30
C = 10.0


@pytest.fixture(scope="module")
def data() -> Problem:
    """Return rows with a large common mean, like pooled features."""
    found = problem(n=81, d=20)
    x = found.x + 3 * np.ones(20) / np.sqrt(20)
    return Problem(x, found.labels, x @ x.T, found.targets)


@pytest.fixture
def store(data: Problem, tmp_path: Path) -> RowStore:
    return stored(data.x, tmp_path)


def stored(x: NDArray[np.floating[Any]], folder: Path) -> RowStore:
    store = open_rows(folder / "rows.bin", *x.shape)
    store.write(torch.arange(len(x)), torch.from_numpy(x).float())
    return store


def rows_of(store: RowStore, **options: int) -> Rows:
    return Rows(store, CPU, mean_row(store, CPU)[0], **options)


def solve(rows: Rows, targets: NDArray[np.int8], c: float = C, start: Solution | None = None) -> Solution:
    return minimise(rows, torch.from_numpy(targets), c, start, tolerance=1e-5)


def objective(v: NDArray[np.float64], x: NDArray[np.float64], y: NDArray[np.int8], c: float) -> tuple[float, Tensor]:
    """Minimise the formula of the docstring by autograd in float64; v is w and b."""
    vector = torch.from_numpy(v).requires_grad_()
    rows, signs = torch.from_numpy(x)[y != 0], torch.from_numpy(y[y != 0]).double()
    z, h = signs * (rows @ vector[:-1] + vector[-1]), newton.CORNER
    corner = torch.where((1 - z).abs() <= h, (1 + h - z) ** 2 / (4 * h), torch.where(z < 1, 1 - z, 0))
    value = vector[:-1].square().sum() / 2 + c * corner.sum()
    value.backward()  # type: ignore[no-untyped-call]
    assert vector.grad is not None
    return value.item(), vector.grad


@pytest.mark.parametrize("c", [0.1, 10.0])
@pytest.mark.parametrize("ignored", [0.0, 0.3])
def test_the_solution_minimises_the_objective(data: Problem, store: RowStore, c: float, ignored: float) -> None:
    targets = data.targets.copy()
    targets[np.random.default_rng(1).random(targets.shape) < ignored] = 0
    rows = rows_of(store)
    found = solve(rows, targets, c)
    x = data.x - rows.mean.double().numpy()
    for k, y in enumerate(targets):
        best = minimize(objective, np.zeros(21), (x, y, c), jac=True, options={"gtol": 1e-9, "maxiter": 5000})
        ours = np.append(found.weights[k].double().numpy(), found.intercepts[k].double().numpy())
        assert objective(ours, x, y, c)[0] == pytest.approx(best.fun, rel=1e-6)
        np.testing.assert_allclose(found.weights[k], best.x[:-1], atol=2e-3 * np.abs(best.x).max())
        np.testing.assert_allclose(found.scores[k], x @ ours[:-1] + ours[-1], atol=1e-4)


def slope_of_slope(f: Tensor, y: Tensor) -> Tensor:
    f = f.clone().requires_grad_()
    newton._slope(f, y).sum().backward()  # type: ignore[no-untyped-call]
    assert f.grad is not None
    return f.grad


def test_gradients_of_the_loss_are_its_derivatives() -> None:
    f = torch.linspace(-3, 3, 301, dtype=torch.float64)[None] + 1e-3  # not at a kink of the loss
    for sign in (1, -1, 0):
        y = torch.full((1, 301), sign, dtype=torch.int8)
        moved = slope_of_slope(f, y)
        torch.testing.assert_close(moved, newton._curvature(f, y))
        z, h = sign * f, newton.CORNER
        loss = (1 + h - z).clamp(0, 2 * h) ** 2 / (4 * h) + (1 - h - z).clamp_min(0)
        slope = torch.gradient(loss[0] * abs(sign), spacing=0.02)[0]
        torch.testing.assert_close(newton._slope(f, y)[0, 1:-1], slope[1:-1], rtol=0, atol=0.02)


def test_a_narrow_smoothing_approaches_libsvm(data: Problem, store: RowStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(newton, "CORNER", 0.01)
    weights, intercepts = KernelSolver(store, data.gram, data.targets, None, CPU, 1).weights(C)
    ours, own = PrimalSolver(store, data.targets, None, CPU, PLENTY, tolerance=1e-4).weights(C)
    x = torch.from_numpy(data.x).float()
    torch.testing.assert_close(x @ ours.T + own.float(), x @ weights.T + intercepts.float(), rtol=0, atol=0.03)


@pytest.mark.parametrize("folds", [0, 4])
def test_held_out_scores_are_a_cross_validation(data: Problem, store: RowStore, folds: int) -> None:
    labels = torch.from_numpy(data.labels)
    solver = PrimalSolver(store, data.targets, split(labels, folds), CPU, PLENTY, tolerance=1e-5)
    if not folds:
        with pytest.warns(UserWarning, match="fewer than two"):
            assert choose_cost_and_scale(solver, labels, C, [], folds) == {"C": C, "logit_scale": 1.0}
        return
    scores = solver.held_out([C])[C]
    expected = np.zeros_like(scores)
    for train, test in StratifiedKFold(folds, shuffle=True, random_state=0).split(data.x, data.labels):
        kept = np.zeros_like(data.targets)
        kept[:, train] = data.targets[:, train]
        expected[test] = solve(solver.rows, kept).scores.T[test]
    np.testing.assert_allclose(scores, expected, atol=0.05)
    assert np.abs(scores - solve(solver.rows, data.targets).scores.T.numpy()).max() > 0.3  # held-out rows are not used
    classifiers = solver.fold_classifiers(C)
    again = classifiers(torch.from_numpy(data.x).float(), torch.arange(len(data.x)))
    np.testing.assert_allclose(again, scores, atol=1e-3)


def test_c_is_chosen_as_by_the_kernel_solver(data: Problem, store: RowStore) -> None:
    labels = torch.from_numpy(data.labels)
    fold = split(labels, 4)
    reports = [
        choose_cost_and_scale(solver, labels, "auto", (100.0, 0.1, 1.0), 4)
        for solver in (
            PrimalSolver(store, data.targets, fold, CPU, PLENTY, tolerance=1e-4),
            KernelSolver(store, data.gram, data.targets, fold, CPU, 1),
        )
    ]
    assert reports[0]["C"] == reports[1]["C"]
    for key, value in reports[1].items():
        assert reports[0][key] == pytest.approx(value, abs=0.04, rel=0.2), key


def test_a_tiny_budget_gives_the_same_result(data: Problem, store: RowStore) -> None:
    fold = split(torch.from_numpy(data.labels), 3)
    large = PrimalSolver(store, data.targets, fold, CPU, PLENTY, tolerance=1e-4)
    small = PrimalSolver(store, data.targets, fold, CPU, 1, tolerance=1e-4)
    small.rows = rows_of(store, block_bytes=4 * 20 * 7)  # blocks of 7 rows
    for one, other in zip(small.weights(C), large.weights(C), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=2e-3)
    np.testing.assert_allclose(small.held_out([C])[C], large.held_out([C])[C], atol=0.02)
    assert small.passes > 2 * large.passes  # each SVM on its own


@pytest.mark.parametrize("sign", [1, -1, 0])
def test_an_svm_with_targets_of_one_sign_scores_that_sign(data: Problem, store: RowStore, sign: int) -> None:
    targets = data.targets.copy()
    targets[2] = sign
    weights, intercepts = PrimalSolver(store, targets, None, CPU, PLENTY).weights(C)
    assert not weights[2].any() and intercepts[2] == sign
    assert weights[1].any()


def test_the_solver_stops_on_separable_and_equal_rows(tmp_path: Path) -> None:
    x = np.repeat(np.eye(CLASSES), 5, axis=0)
    targets = as_targets(torch.arange(CLASSES).repeat_interleave(5), CLASSES).numpy()
    found = solve(rows_of(stored(x, tmp_path)), targets, 1000.0)
    assert (found.scores.numpy() * targets > 0.7).all()
    same = solve(rows_of(stored(np.ones_like(x), tmp_path)), targets)
    assert not same.weights.any()
    assert (same.scores < 0).all()  # most rows are of other classes


def test_a_start_does_not_change_the_solution(data: Problem, store: RowStore) -> None:
    rows = rows_of(store)
    cold = solve(rows, data.targets)
    warm = solve(rows, data.targets, start=solve(rows, data.targets, c=1.0))
    torch.testing.assert_close(warm.weights, cold.weights, rtol=0, atol=2e-3)
    assert solve(rows, data.targets, start=cold).passes < cold.passes / 4


@pytest.mark.parametrize("fold", [None, 3])
def test_large_problems_start_on_a_part_of_the_rows(
    data: Problem, store: RowStore, monkeypatch: pytest.MonkeyPatch, fold: int | None
) -> None:
    seen: list[tuple[int, float]] = []

    def watched(rows: Rows, targets: Tensor, c: float, *others: Any) -> Solution:
        seen.append((len(rows.places), c))
        return minimise(rows, targets, c, *others)

    folds = split(torch.from_numpy(data.labels), fold or 0)
    cold = PrimalSolver(store, data.targets, folds, CPU, PLENTY, tolerance=1e-3)
    monkeypatch.setattr(primal, "minimise", watched)
    monkeypatch.setattr(primal, "_FEWEST", 10)
    thinned = PrimalSolver(store, data.targets, folds, CPU, PLENTY, tolerance=1e-3)
    found = [thinned.weights(C)[0].numpy() if fold is None else thinned.held_out([C])[C]]
    assert seen[0][0] == 11 and (11, 8 * C) in seen and seen[-1] == (81, C)
    assert [rows for rows, _ in seen] == sorted(rows for rows, _ in seen)
    monkeypatch.setattr(primal, "_FEWEST", 4096)
    found.append(cold.weights(C)[0].numpy() if fold is None else cold.held_out([C])[C])
    np.testing.assert_allclose(found[0], found[1], rtol=0, atol=0.01 * np.abs(found[1]).max())


@pytest.fixture(scope="module")
def noise() -> Problem:
    """Random labels of rows with more features than there are rows."""
    random = np.random.default_rng(0)
    x = random.normal(size=(300, 1500)) + random.normal(size=1500)
    x = (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32).astype(np.float64)
    labels = random.integers(0, 4, 300)
    return Problem(x, labels, x @ x.T, as_targets(torch.from_numpy(labels), 4).numpy())


def test_the_cross_validation_does_not_depend_on_held_out_rows(noise: Problem, tmp_path: Path) -> None:
    labels, costs = torch.from_numpy(noise.labels), (1.0, 10.0, 100.0, 1000.0)
    fold = split(labels, 5)
    store = stored(noise.x, tmp_path)
    solver = PrimalSolver(store, noise.targets, fold, CPU, PLENTY)
    solver.weights(10.0)  # earlier solutions must not matter
    found = solver.held_out(costs)
    expected = KernelSolver(store, noise.gram, noise.targets, fold, CPU, 1).held_out(costs)
    features, places = torch.from_numpy(noise.x).float(), torch.arange(300)
    assert solver.unsolved == 0
    for c in costs:
        told = quality(found[c], labels)
        assert abs(told - 0.25) < 3 * (0.25 * 0.75 / 300) ** 0.5
        assert told == pytest.approx(quality(expected[c], labels), abs=0.04)
        alone = solver.held_out([c])[c]  # without a smaller C before it
        classifiers = solver.fold_classifiers(c)(features, places).numpy()
        assert np.corrcoef(found[c].ravel(), expected[c].ravel())[0, 1] > 0.95
        np.testing.assert_allclose(classifiers, alone, atol=0.01)
        np.testing.assert_allclose(alone, found[c], atol=0.1)


@pytest.mark.parametrize(
    ("c", "length"), [(0.1, 1.0), (1.0, 1.0), (10.0, 1.0), (100.0, 1.0), (1000.0, 1.0), (10.0, 100.0)]
)
def test_c_means_what_it_means_to_libsvm(tmp_path: Path, c: float, length: float) -> None:
    """On separable rows, weights hardly grow with C."""
    random = np.random.default_rng(3)
    labels = np.arange(1200) % 4
    x = 0.3 * random.normal(size=(4, 400))[labels] + random.normal(size=(1200, 400)) + random.normal(size=400)
    x *= length / np.linalg.norm(x, axis=1, keepdims=True)
    train = x[:200].astype(np.float32).astype(np.float64)
    targets = as_targets(torch.from_numpy(labels[:200]), 4).numpy()
    store = stored(train, tmp_path)
    solver = PrimalSolver(store, targets, None, CPU, PLENTY)
    kernel = KernelSolver(store, train @ train.T, targets, None, CPU, 1)
    found = [
        (x[200:] @ w.double().numpy().T + b.numpy()).argmax(axis=1) for w, b in (solver.weights(c), kernel.weights(c))
    ]
    accuracy = [(of == labels[200:]).mean() for of in found]
    assert (
        solver.unsolved == 0 or length > 1
    )  # rows this long reach the limit of float32: the result is right, or an error is raised
    assert (found[0] == found[1]).mean() >= (0.98 if c >= 10 else 0.95)
    assert accuracy[0] > accuracy[1] - 0.01


def test_unsolved_svms_are_counted(data: Problem, store: RowStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(newton, "_MOST_STEPS", 2)
    fold = split(torch.from_numpy(data.labels), 3)
    solver = PrimalSolver(store, data.targets, fold, CPU, PLENTY)
    solver.weights(C)
    assert solver.unsolved == CLASSES
    solver.held_out([C])
    assert solver.unsolved == 4 * CLASSES


def test_products_equal_float32(data: Problem, store: RowStore, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = set()

    class Watched(Rows):
        def blocks(self) -> Iterator[tuple[slice, Tensor]]:
            for part, block in super().blocks():
                yield part, block.as_subclass(Spy)

    class Spy(Tensor):
        @classmethod
        def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            found = super().__torch_function__(func, types, args, kwargs or {})  # type: ignore[no-untyped-call]
            if isinstance(found, Tensor):
                seen.add(found.dtype)
            return found

    minimise(Watched(store, CPU, mean_row(store, CPU)[0]), torch.from_numpy(data.targets), C)
    assert seen == {torch.float32, torch.float64}


def test_rows_too_long_for_float32_are_refused(data: Problem, tmp_path: Path) -> None:
    store = stored(1e12 * data.x, tmp_path)
    with pytest.raises(CxlpError, match=r"features of length .*e\+11 with C = 10 .*model\.frozen\.solver: kernel"):
        PrimalSolver(store, data.targets, None, CPU, PLENTY).weights(C)
    store = stored(1e18 * data.x, tmp_path)
    with pytest.raises(CxlpError, match="left the range of float32"):
        minimise(rows_of(store), torch.from_numpy(data.targets), 1e10)


def test_packed_signs_and_half_precision(data: Problem, tmp_path: Path) -> None:
    x = torch.from_numpy(np.sign(data.x - data.x.mean(axis=0))).float() / 20**0.5
    expected = PrimalSolver(stored(x.double().numpy(), tmp_path), data.targets, None, CPU, PLENTY).weights(C)
    packed = open_rows(tmp_path / "signs.bin", len(x), 20, "sign")
    half = open_rows(tmp_path / "half.bin", len(x), 20, "float16")
    for store, atol in ((packed, 1e-3), (half, 0.05)):
        store.write(torch.arange(len(x)), x)
        for one, other in zip(PrimalSolver(store, data.targets, None, CPU, PLENTY).weights(C), expected, strict=True):
            torch.testing.assert_close(one, other, rtol=0, atol=atol)


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e25])
def test_rows_that_are_not_finite_are_named(data: Problem, tmp_path: Path, value: float) -> None:
    x = data.x.copy()
    x[7, 3] = value
    with pytest.raises(CxlpError, match=r"too large to be squared for training image 7"):
        PrimalSolver(stored(x, tmp_path), data.targets, None, CPU, PLENTY)


def test_kept_rows_are_read_once_and_stay_the_same(store: RowStore, monkeypatch: pytest.MonkeyPatch) -> None:
    size = 4 * store.rows * store.dim
    reads: list[tuple[int, int]] = []
    read = type(store).read

    def counted(store: RowStore, start: int, stop: int) -> Tensor:
        reads.append((start, stop))
        return read(store, start, stop)

    monkeypatch.setattr(type(store), "read", counted)
    for keep, passes_that_read in ((size, 1), (size - 1, 3)):
        rows = rows_of(store, block_bytes=40 * store.dim, keep_bytes=keep)
        reads.clear()
        passes = [list(rows.blocks()) for _ in range(3)]
        assert len(reads) == passes_that_read * len(passes[0]) and len(passes[0]) > 1
        for later in passes[1:]:
            for (part, block), (same, again) in zip(passes[0], later, strict=True):
                assert part == same and torch.equal(block, again)


def test_squared_lengths_of_half_precision_rows_equal_float32(tmp_path: Path) -> None:
    x = torch.full((3, 100), 300.0)
    x[1] = 1e-4
    half = open_rows(tmp_path / "half", 3, 100, "float16")
    half.write(torch.arange(3), x)
    _, squares = mean_row(half, CPU)
    torch.testing.assert_close(squares, x.half().double().square().sum(dim=1), rtol=1e-5, atol=0.0)
