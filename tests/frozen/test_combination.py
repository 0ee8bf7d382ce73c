"""Sums of kernels compared with concatenated rows."""

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from cxlp.frozen import combination
from cxlp.frozen.classifier import choose_cost_and_scale, split
from cxlp.frozen.combination import Kernels
from cxlp.frozen.config import FrozenConfig
from cxlp.frozen.gram import gram_matrix
from cxlp.frozen.store import FeatureType, RowStore, open_rows
from cxlp.frozen.svm import KernelSolver
from cxlp.utils.errors import CxlpError
from cxlp.utils.labels import as_targets

CPU = torch.device("cpu")
CLASSES = ("wren", "robin", "crow")
CONFIG = FrozenConfig(c="auto", c_candidates=(0.01, 1.0, 100.0), folds=4)


def stored(path: Path, rows: Tensor, kind: FeatureType = "float32") -> RowStore:
    store = open_rows(path, rows.shape[0], rows.shape[1], kind)
    store.write(torch.arange(len(rows)), rows)
    return store


def images(count: int, several: bool = False, seed: int = 0) -> tuple[dict[str, Tensor], Tensor]:
    """Return unit-length rows of three heads, none of which distinguishes all classes, and labels."""
    random = torch.Generator().manual_seed(seed)
    classes = torch.arange(count) % 3
    rows = {
        name: F.normalize(
            torch.randn(count, 40, generator=random) + 1.2 * F.one_hot((classes == k).long(), 2).float() @ direction
        )
        for k, name in enumerate("abc")
        for direction in [torch.randn(2, 40, generator=torch.Generator().manual_seed(k))]
    }
    return rows, 2 * F.one_hot(classes, 3) - 1 if several else classes


@pytest.mark.parametrize("several", [False, True])
@pytest.mark.parametrize("names", [("a", "b"), ("c", "a", "b")])
def test_a_sum_is_the_concatenation(tmp_path: Path, several: bool, names: tuple[str, ...]) -> None:
    rows, labels = images(60, several)
    new, _ = images(30, several, seed=1)
    kernels = Kernels({name: stored(tmp_path / name, rows[name]) for name in rows}, labels, CLASSES, CONFIG, CPU)
    found = kernels.evaluate(names)
    # one head whose vectors are the concatenated ones
    joined = stored(tmp_path / "joined", torch.cat([rows[name] for name in names], dim=1))
    targets, fold = as_targets(labels, 3).numpy(), split(labels, 4)
    solver = KernelSolver(joined, gram_matrix(joined, CPU).numpy(), targets, fold, CPU, 1)
    report = choose_cost_and_scale(solver, labels, "auto", CONFIG.c_candidates, 4)
    assert found.names == names and found.c == report["C"]
    assert found.quality == pytest.approx(report["cv_mAP" if several else "cv_accuracy"])
    assert found.scale == pytest.approx(report["logit_scale"], rel=1e-5)
    weights, intercepts = solver.weights(found.c)
    expected = torch.cat([new[name] for name in names], dim=1) @ weights.T + intercepts.float()
    tests = {name: stored(tmp_path / f"{name}-test", new[name]) for name in names}
    scores = kernels.scores(found, tests)
    torch.testing.assert_close(scores, found.scale * expected, rtol=1e-3, atol=1e-4)
    assert found.quality >= max(kernels.evaluate([name]).quality for name in names)  # each distinguishes only one class


def test_each_kernel_has_the_same_weight_at_any_vector_length(tmp_path: Path) -> None:
    rows, labels = images(60)
    new, _ = images(30, seed=1)
    found = []
    for factor in (1.0, 300.0):
        folder = tmp_path / str(factor)
        folder.mkdir()
        grown = [{**some, "b": factor * some["b"]} for some in (rows, new)]
        stores = [{name: stored(folder / f"{k}{name}", some[name]) for name in some} for k, some in enumerate(grown)]
        kernels = Kernels(stores[0], labels, CLASSES, CONFIG, CPU)
        found.append((kernels.evaluate(("a", "b")), kernels.scores(kernels.evaluate(("a", "b")), stores[1])))
    assert found[0][0].quality == found[1][0].quality
    torch.testing.assert_close(found[0][1], found[1][1], rtol=1e-3, atol=1e-4)


def test_packed_signs_can_be_combined(tmp_path: Path) -> None:
    rows, labels = images(60)
    signs = F.normalize(rows["b"].sign())
    packed = {"a": stored(tmp_path / "a", rows["a"]), "b": stored(tmp_path / "b", signs, "sign")}
    plain = {"a": packed["a"], "b": stored(tmp_path / "plain", signs)}
    one, other = (Kernels(stores, labels, CLASSES, CONFIG, CPU) for stores in (packed, plain))
    found = one.evaluate(("a", "b"))
    assert found.quality == other.evaluate(("a", "b")).quality
    torch.testing.assert_close(one.scores(found, packed), other.scores(found, plain), rtol=1e-3, atol=1e-4)


def test_kernels_that_exceed_the_memory_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows, labels = images(60)
    monkeypatch.setattr(combination, "free_memory", lambda: 300_000_000)
    stores = {name: stored(tmp_path / name, rows[name]) for name in rows}
    assert Kernels(stores, labels, CLASSES, CONFIG, CPU).evaluate(("a", "b")).quality > 0.5
    monkeypatch.setattr(combination, "free_memory", lambda: 100_000_000)
    with pytest.raises(
        CxlpError, match=r"kernels of 3 systems and 60 training images need 0\.3 GB of memory, .* 0\.1 GB"
    ):
        Kernels(stores, labels, CLASSES, CONFIG, CPU)


def test_labels_that_cannot_be_cross_validated_are_refused(tmp_path: Path) -> None:
    rows, _ = images(60)
    stores = {name: stored(tmp_path / name, rows[name]) for name in "ab"}
    lone = torch.cat([torch.zeros(1), torch.ones(30), 2 * torch.ones(29)]).long()
    with pytest.raises(CxlpError, match="'wren' has 1"):
        Kernels(stores, lone, CLASSES, CONFIG, CPU)
    broken = {**stores, "b": stored(tmp_path / "broken", torch.full((60, 3), np.nan))}
    with pytest.raises(CxlpError, match="pooled features are NaN"):
        Kernels(broken, torch.arange(60) % 3, CLASSES, CONFIG, CPU)
