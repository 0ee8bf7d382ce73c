"""A head's PCA fitted to a loader: the same numbers as in the frozen mode, without a network or a Trainer."""

import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch import distributed as dist
from torch.multiprocessing.spawn import spawn
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

import cxlp
from cxlp.frozen.config import FrozenConfig
from cxlp.frozen.fit import FrozenFit
from cxlp.utils.errors import CxlpError
from cxlp.utils.profiling import PhaseTimes
from tests.networks import SMALL, build

CLASSES = ("gull", "tern", "wren")


def data(images: int = 19) -> TensorDataset:
    generator = torch.Generator().manual_seed(0)
    pictures = (255 * torch.rand(images, 3, 32, 32, generator=generator)).to(torch.uint8)
    return TensorDataset(pictures, torch.arange(images) % len(CLASSES))


def backbone() -> cxlp.Backbone:
    torch.manual_seed(0)
    return build(backbone=SMALL, classes=CLASSES).backbone


def head(**options: Any) -> cxlp.CrossLayerPooling:
    return cxlp.CrossLayerPooling(pca_dim=5, size=1, **options)


def weights(fitted: cxlp.Head) -> list[Tensor]:
    return [value.clone() for _, value in sorted(fitted.state_dict().items())]


def by_frozen_mode(folder: Path, made: cxlp.Head, vectors: int) -> list[Tensor]:
    network = cxlp.Network(backbone(), made, CLASSES).eval()
    images, labels = data().tensors
    fit = FrozenFit(network, FrozenConfig(pca_vectors=vectors), len(images), folder, PhaseTimes(), progress=False)
    with network.backbone.held():  # as in the task
        for positions in torch.arange(len(images)).chunk(5):
            fit.observe(images[positions], labels[positions], positions)
    fit.finish()
    return weights(made)


@pytest.mark.parametrize(
    ("options", "vectors"),
    [
        ({}, 100_000),
        ({}, 40),
        ({"guide_dim": 6}, 50),
        ({"views": cxlp.Views("flip")}, 60),
        ({"size": 3, "padding": "same"}, 100_000),
    ],
    ids=["all", "some", "guide", "views", "3x3"],
)
def test_the_result_equals_the_frozen_mode(tmp_path: Path, options: dict[str, Any], vectors: int) -> None:
    made = cxlp.CrossLayerPooling(**{"pca_dim": 5, **options})
    cut = backbone().train()
    modes = [module.training for module in cut.modules()]
    torch.manual_seed(1)  # values that a frozen fit sets are not random
    assert made.fit_pca(DataLoader(data(), batch_size=4), cut, vectors=vectors) is made
    assert [module.training for module in cut.modules()] == modes
    torch.manual_seed(1)
    expected = by_frozen_mode(tmp_path, cxlp.CrossLayerPooling(**{"pca_dim": 5, **options}), vectors)
    for found, one in zip(weights(made), expected, strict=True):
        assert torch.equal(found, one)


def test_any_module_maps_and_batches(tmp_path: Path) -> None:
    cut = backbone().eval()
    with torch.no_grad():
        maps = [cut(images) for images, _ in DataLoader(data(), batch_size=4)]
    expected = weights(head().fit_pca(DataLoader(data(), batch_size=4), cut))

    class Plain(nn.Module):
        def forward(self, images: Tensor) -> dict[str, Tensor]:
            low, high = cut(images)
            return {"low": low, "high": high}

    batches = [{"image": images} for images, _ in DataLoader(data(), batch_size=4)]
    for found in (
        head().fit_pca(DataLoader(data(), batch_size=4), Plain()),
        head().fit_pca(DataLoader(data().tensors[0], batch_size=4), lambda images: list(cut(images))),  # type: ignore[arg-type]
        head().fit_pca(batches, cut, images=19),
        head().fit_pca(iter(maps), images=19),
        head().fit_pca(([*each, "more"] for each in maps), images=19),
        head().connect(*(m.shape[1:] for m in maps[0])).fit_pca(maps, images=19),
    ):
        for own, other in zip(
            weights(found), expected, strict=True
        ):  # the pass of a Backbone is folded, which rounds differently
            torch.testing.assert_close(own, other, rtol=1e-3, atol=1e-4)
    covariance = cxlp.CovariancePooling(pca_dim=3).fit_pca((high for _, high in maps), images=19)
    vectors = torch.cat([high for _, high in maps]).flatten(2).transpose(1, 2).flatten(0, 1)
    assert covariance.projection is not None
    projected = (vectors - vectors.mean(0)) @ covariance.projection.weight[:, :, 0, 0].T
    assert projected.mT.cov().fill_diagonal_(0).abs().max() < 1e-4


def test_memory_holds_one_batch() -> None:
    alive: list[weakref.ref[Tensor]] = []

    def stream() -> Iterator[list[Tensor]]:
        for _ in range(6):
            maps = [torch.rand(4, 8, 6, 6), torch.rand(4, 6, 6, 6)]
            alive.append(weakref.ref(maps[0]))
            yield maps
            del maps
            assert sum(each() is not None for each in alive) <= 2  # this epoch, and the one before

    head().fit_pca(stream(), images=24)


@pytest.mark.parametrize(
    ("made", "batches", "options", "said"),
    [
        (head(), [], {"images": 3}, "loader .*no batches"),
        (head(), iter([torch.rand(1)]), {}, r"fit_pca\(\.\.\., images=N\)"),
        (head(), [torch.rand(2, 8, 3, 3)], {"images": 2}, r"takes 2 maps .* loader .*\[\(2, 8, 3, 3\)\]"),
        (cxlp.AveragePooling(), [torch.rand(2, 8, 3, 3)], {"images": 2}, "has no projection to fit"),
        (cxlp.FisherVector(), [torch.rand(2, 8, 3, 3)], {"images": 2}, "fits more than a PCA"),
        (cxlp.TrainedGuidePooling(), [torch.rand(2, 8, 3, 3)], {"images": 2}, "fits more than a PCA"),
        (head(), [[torch.rand(1, 8, 2, 2)] * 2], {"images": 1}, "PCA to 5 dimensions needs more than 5 local features"),
        (head(), [[torch.full((9, 8, 2, 2), torch.nan)] * 2], {"images": 9}, "are NaN, infinite"),
    ],
)
def test_wrong_arguments(made: cxlp.Head, batches: Any, options: dict[str, Any], said: str) -> None:
    with pytest.raises(CxlpError, match=said):
        made.fit_pca(batches, **options)


def _work(index: int, folder: Path) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=index, world_size=2)
    images = data()
    loader = DataLoader(images, batch_size=4, sampler=DistributedSampler(images, shuffle=False))
    fitted = head().fit_pca(loader, backbone(), vectors=60)
    torch.save(weights(fitted), folder / f"{index}.pt")
    dist.destroy_process_group()


def test_two_processes_agree_with_one(tmp_path: Path) -> None:
    spawn(_work, (tmp_path,), nprocs=2)  # type: ignore[no-untyped-call]
    one, other = (torch.load(tmp_path / f"{index}.pt") for index in range(2))
    assert all(map(torch.equal, one, other))
    expected = weights(head().fit_pca(DataLoader(data(), batch_size=4), backbone(), vectors=60))
    for found, each in zip(one, expected, strict=True):
        torch.testing.assert_close(found, each, rtol=1e-3, atol=1e-3)
