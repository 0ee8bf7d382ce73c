"""Two processes compared with one: collectives, and the frozen fit that ranks share.

The two processes are started once, do all the work, and write their results to files.
"""

import time
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from torch import Tensor
from torch import distributed as dist
from torch.multiprocessing.spawn import spawn

from cxlp.frozen import fit as fit_module
from cxlp.frozen.cache import Entry, ScoredRows
from cxlp.frozen.classifier import split
from cxlp.frozen.config import FrozenConfig
from cxlp.frozen.fit import FrozenFit
from cxlp.frozen.gram import combine_rows, gram_matrix, score_rows
from cxlp.frozen.primal import PrimalSolver
from cxlp.frozen.store import RowStore, check_shared
from cxlp.frozen.svm import KernelSolver, solve
from cxlp.heads import AveragePooling, FisherVector, Head, TrainedGuidePooling
from cxlp.heads.pca import Moments
from cxlp.utils import distributed
from cxlp.utils.distributed import (
    all_sum,
    ask_rank_zero,
    barrier,
    from_rank_zero,
    gather_objects,
    is_distributed,
    local_world_size,
    on_rank_zero,
    rank,
    usable_cores,
    world_size,
)
from cxlp.utils.errors import CxlpError
from cxlp.utils.labels import as_targets
from cxlp.utils.processes import STOPPED
from cxlp.utils.profiling import PhaseTimes
from tests.frozen.test_fit import assert_same_weights, cross, small_images, small_network, weights

CPU = torch.device("cpu")
RANKS = 2
ROWS, DIM, CLASSES = 35, 50, 3
HEADS: dict[str, list[Head]] = {
    "with PCA": [cross()],
    "without PCA": [cross(pca_dim=None)],
    "low-rank and compact": [cross(guide_dim=4, sketch=12)],
    "several, one with a codebook": [cross(), AveragePooling(), FisherVector(pca_dim=4, atoms=2)],
    "trained guide": [TrainedGuidePooling(pca_dim=4, channels=3)],
}
TIMEOUT = 240


def rows() -> tuple[Tensor, Tensor]:
    """Return unit-length rows of three classes, and the classes."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(ROWS) % CLASSES
    x = torch.randn(CLASSES, DIM, generator=generator)[labels] + 2 * torch.randn(ROWS, DIM, generator=generator)
    return torch.nn.functional.normalize(x), labels


def vectors() -> Tensor:
    """Return vectors with a large mean and clear principal axes, whose halves differ."""
    x = 100 + torch.randn(101, 6, generator=torch.Generator().manual_seed(1)) * 2 ** torch.arange(6)
    x[50:] += 5
    return x


#: The results of :func:`solved`.
SOLVED = (
    "gram",
    "coefficients",
    "intercepts",
    "weights",
    "held out",
    "primal weights",
    "primal intercepts",
    "primal held out",
    "primal fold weights",
    "absent on one rank",
    "scores",
)


def solved(folder: Path) -> dict[str, Tensor]:
    """Compute Gram matrix, SVMs and weight vectors of the rows; each rank writes its share of them."""
    x, labels = rows()
    store = RowStore(folder / "rows.bin", ROWS, DIM)
    mine = torch.arange(rank(), ROWS, world_size())
    store.write(mine, x[mine])
    store.sync()
    barrier()
    gram = gram_matrix(store, CPU, block_bytes=4 * ROWS * 7)
    targets = as_targets(labels, CLASSES).numpy()
    solution = solve(gram.numpy(), targets, 10.0, threads=1)
    coefficients = torch.from_numpy(solution.coefficients)
    fold = split(labels, 5)
    kernel = KernelSolver(store, gram.numpy(), targets, fold, CPU, 1)
    primal = PrimalSolver(store, targets, fold, CPU, 1 << 30, tolerance=1e-5)
    primal_weights, primal_intercepts = primal.weights(10.0)
    targets[0, : ROWS // 2] = 0  # no row of the first class on the first rank
    absent = PrimalSolver(store, targets, None, CPU, 1 << 30, tolerance=1e-5).weights(10.0)
    return {
        "gram": gram,
        "coefficients": coefficients,
        "intercepts": torch.from_numpy(solution.intercepts),
        "weights": combine_rows(store, coefficients, CPU, block_bytes=4 * DIM * 4),
        "held out": torch.from_numpy(kernel.held_out([10.0])[10.0]),
        "primal weights": primal_weights,
        "primal intercepts": primal_intercepts,
        "primal held out": torch.from_numpy(primal.held_out([10.0])[10.0]),
        "primal fold weights": primal.fold_classifiers(10.0).weight,
        "absent on one rank": absent[0],
        "scores": score_rows(store, primal_weights, primal_intercepts, CPU, block_bytes=4 * DIM * 4),
    }


def fitted(folder: Path, heads: str, share: slice) -> dict[str, Any]:
    """Do the whole fit, with this process's share of the images."""
    network = small_network(HEADS[heads])
    images, labels = small_images()
    fit = FrozenFit(network, FrozenConfig(), len(images), folder, PhaseTimes())
    for positions in torch.arange(len(images))[share].chunk(2):
        fit.observe(images[positions], labels[positions], positions)
    report = fit.finish()
    barrier()
    return {"report": report, "weights": weights(network), "left": folder.exists()}


#: Work of rank 0 that fails.
FAILURES = ("work", "space", "key", "rename", "folder")


def failure(name: str, folder: Path) -> str:
    """Return the error that this rank raises if rank 0 fails."""

    def fail(*_: Any) -> Any:
        raise CxlpError(f"no {name}")

    def nothing() -> dict[str, Any]:
        return {}

    try:
        if name == "work":
            on_rank_zero(fail)
        elif name == "space":
            with mock.patch.object(fit_module, "check_space", fail):
                FrozenFit(small_network(HEADS["without PCA"]), FrozenConfig(), 21, folder, PhaseTimes())
        elif name == "key":
            Entry(folder, fail)
        elif name == "rename":
            entry = Entry(folder, nothing)
            on_rank_zero(lambda: entry.folder.mkdir(parents=True))
            scored = ScoredRows(entry, "test", 2, 3, "float32")
            scored.write(torch.tensor([rank()]), torch.ones(1, 3))
            barrier()
            with mock.patch.object(Path, "rename", fail):
                scored.close(keep=True)
        else:
            on_rank_zero(lambda: (folder / "file").touch())
            check_shared(folder / "file" / "below")
    except CxlpError as error:
        return str(error)
    return "nothing"


def work(index: int, folder: Path) -> None:
    """The work of each of the two processes."""
    torch.set_num_threads(1)
    rendezvous = f"file://{folder / 'rendezvous'}"  # a file instead of a port, which another process could take
    dist.init_process_group("gloo", init_method=rendezvous, rank=index, world_size=RANKS)
    found: dict[str, Any] = {"who": (is_distributed(), rank(), world_size()), "on this machine": local_world_size()}
    found["asked"] = ask_rank_zero(lambda: 2**60 + index)
    found["failures"] = {name: failure(name, folder / "failing") for name in FAILURES}
    tensor = torch.tensor([1.0, 10.0]) * (index + 1)
    returned = all_sum(tensor)
    found["all_sum"] = (tensor, returned is tensor)
    own = torch.tensor([index + 5])
    found["from_rank_zero"] = (from_rank_zero(own), own)
    found["gather_objects"] = gather_objects({"rank": index})
    # The late process arrives after 0.5 s, and no process leaves before.
    start = time.perf_counter()
    if index == 1:
        time.sleep(0.5)
    barrier()
    found["waited"] = time.perf_counter() - start
    moments, empty = Moments(6, CPU), Moments(6, CPU)
    moments.update(vectors()[:50] if index == 0 else vectors()[50:])
    if index == 0:
        empty.update(vectors())
    for name, m in (("moments", moments), ("moments of one rank", empty)):
        m.merge_ranks()
        found[name] = (m.count, m.mean, m.scatter, m.principal_axes(3)[0], m.principal_axes(3, centred=False)[0])
    found |= solved(folder)
    for heads in HEADS:
        found[heads] = fitted(folder / "fit", heads, slice(index, None, RANKS))
    found["one idle"] = fitted(folder / "fit", "with PCA", slice(None) if index == 0 else slice(0))
    torch.save(found, folder / f"rank{index}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """The results of the two processes."""
    folder = tmp_path_factory.mktemp("two_processes")
    context = spawn(work, (folder,), nprocs=RANKS, join=False)  # type: ignore[no-untyped-call]
    try:
        deadline = time.monotonic() + TIMEOUT
        while not context.join(timeout=5):  # raises an error if a process failed
            assert time.monotonic() < deadline, f"two processes did not finish within {TIMEOUT} s"
    finally:
        for process in context.processes:
            if process.is_alive():
                process.kill()
    return [torch.load(folder / f"rank{i}.pt", weights_only=False) for i in range(RANKS)]


def assert_same_bits(one: Any, other: Any) -> None:
    """Check that two ranks have bitwise equal numbers."""
    if isinstance(one, Tensor):
        assert torch.equal(one, other)
    elif isinstance(one, dict):
        assert one.keys() == other.keys()
        for key in one:
            assert_same_bits(one[key], other[key])
    else:
        assert one == other


def test_a_single_process_needs_no_group(tmp_path: Path) -> None:
    assert (is_distributed(), rank(), world_size()) == (False, 0, 1)
    tensor = torch.tensor([1.0, 2.0])
    assert all_sum(tensor) is tensor
    assert from_rank_zero(tensor) is tensor
    assert tensor.tolist() == [1, 2]
    assert gather_objects("mine") == ["mine"]
    barrier()
    assert usable_cores() >= 1


@pytest.mark.slow
def test_ranks_know_themselves(ranks: list[dict[str, Any]]) -> None:
    assert [r["who"] for r in ranks] == [(True, 0, 2), (True, 1, 2)]


@pytest.mark.slow
def test_all_sum_works_in_place_on_every_rank(ranks: list[dict[str, Any]]) -> None:
    for found in ranks:
        tensor, in_place = found["all_sum"]
        assert tensor.tolist() == [3, 30]
        assert in_place


@pytest.mark.slow
def test_from_rank_zero(ranks: list[dict[str, Any]]) -> None:
    for found in ranks:
        returned, in_place = found["from_rank_zero"]
        assert returned.tolist() == in_place.tolist() == [5]


@pytest.mark.slow
def test_rank_zero_computes_for_all_ranks(ranks: list[dict[str, Any]]) -> None:
    assert [found["asked"] for found in ranks] == [2**60, 2**60]


@pytest.mark.slow
@pytest.mark.parametrize("name", FAILURES)
def test_all_ranks_fail_if_rank_zero_fails(ranks: list[dict[str, Any]], name: str) -> None:
    first, second = (found["failures"][name] for found in ranks)
    assert ("cannot write " if name == "folder" else f"no {name}") in first
    assert second == STOPPED


@pytest.mark.slow
def test_ranks_of_one_machine_are_counted(ranks: list[dict[str, Any]]) -> None:
    assert [found["on this machine"] for found in ranks] == [2, 2]


def test_ranks_of_other_machines_are_not_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    monkeypatch.setattr(distributed, "gather_objects", lambda mine: [mine, "elsewhere", mine, "elsewhere", mine])
    assert local_world_size() == 3
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")  # torchrun's variable
    assert local_world_size() == 4


@pytest.mark.slow
def test_every_rank_gets_the_objects_of_all(ranks: list[dict[str, Any]]) -> None:
    assert [found["gather_objects"] for found in ranks] == [[{"rank": 0}, {"rank": 1}]] * 2


@pytest.mark.slow
def test_barrier_waits_for_the_last(ranks: list[dict[str, Any]]) -> None:
    assert all(found["waited"] > 0.4 for found in ranks)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["moments", "moments of one rank"])
def test_merged_moments_equal_one_process(ranks: list[dict[str, Any]], name: str) -> None:
    whole = Moments(6, CPU)
    whole.update(vectors())
    for count, mean, scatter, axes, uncentred in (found[name] for found in ranks):
        assert count == whole.count == 101
        torch.testing.assert_close(mean, whole.mean, rtol=1e-12, atol=0)
        torch.testing.assert_close(scatter, whole.scatter, rtol=1e-5, atol=1e-3)
        torch.testing.assert_close(axes, whole.principal_axes(3)[0], rtol=0, atol=1e-5)
        torch.testing.assert_close(uncentred, whole.principal_axes(3, centred=False)[0], rtol=0, atol=1e-5)
    for one, other in zip(ranks[0][name], ranks[1][name], strict=True):
        assert_same_bits(one, other)


@pytest.mark.slow
@pytest.mark.parametrize("name", SOLVED)
def test_shared_work_equals_one_process(ranks: list[dict[str, Any]], tmp_path: Path, name: str) -> None:
    alone = solved(tmp_path)[name]
    assert_same_bits(ranks[0][name], ranks[1][name])
    torch.testing.assert_close(
        ranks[0][name], alone, rtol=0, atol=1e-5 if name == "gram" else 1e-3 * max(1.0, alone.abs().max().item())
    )
    assert alone.abs().max() > 0.1


@pytest.mark.slow
@pytest.mark.parametrize("name", [*HEADS, "one idle"])
def test_the_fit_of_an_odd_number_of_images_equals_one_process(
    ranks: list[dict[str, Any]], tmp_path: Path, name: str
) -> None:
    alone = fitted(tmp_path / "fit", name if name in HEADS else "with PCA", slice(None))
    first, second = (found[name] for found in ranks)
    assert_same_bits(first, second)
    # Thirty steps of Adam amplify the rounding of one product.
    assert_same_weights(alone["weights"], first["weights"], atol=5e-3 if name == "trained guide" else 3e-4)
    assert first["report"]["cv_accuracy"] == alone["report"]["cv_accuracy"]
    assert not first["left"]  # the folder of maps and features is deleted


@pytest.mark.slow
def test_held_out_accuracy_is_counted_over_all_rows(ranks: list[dict[str, Any]]) -> None:
    scores, labels = ranks[0]["held out"].numpy(), rows()[1].numpy()
    assert (np.abs(scores).max(axis=1) > 0).all()  # each row is in a fold
    assert (scores.argmax(axis=1) == labels).mean() > 1 / CLASSES
