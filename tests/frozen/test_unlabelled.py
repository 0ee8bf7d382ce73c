"""Fits without labels: the projections of a frozen fit, and scikit-learn's principal components."""

from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.decomposition import PCA
from torch import Tensor

from cxlp.frozen.config import FrozenConfig
from cxlp.frozen.fit import FrozenFit
from cxlp.frozen.store import RowStore
from cxlp.frozen.unlabelled import fit_heads, principal_components
from cxlp.heads import AveragePooling, FisherVector, Head, TrainedGuidePooling
from cxlp.utils.errors import CxlpError
from cxlp.utils.profiling import PhaseTimes
from tests.tasks.small import IMAGES, LABELS, network

CPU = torch.device("cpu")


def batches(size: int = 4) -> list[Tensor]:
    return list(torch.split(IMAGES, size))


def test_the_projection_equals_a_frozen_fit(tmp_path: Path) -> None:
    one, other = network().eval(), network().eval()
    held: set[int] = set()
    hook = one.backbone.register_forward_hook(lambda module, _a, _o: held.add(len(module._holds)))
    fit_heads(one, batches(5), len(IMAGES), tmp_path)
    hook.remove()
    assert held == {1} and not one.backbone._holds
    fit = FrozenFit(other, FrozenConfig(), len(IMAGES), tmp_path / "features", PhaseTimes(), progress=False)
    fit.observe(IMAGES, LABELS, torch.arange(len(IMAGES)))
    fit.finish()
    with torch.no_grad():
        torch.testing.assert_close(one.features(IMAGES), other.features(IMAGES), rtol=1e-3, atol=1e-4)
    assert not list(tmp_path.rglob("*.bin"))


@pytest.mark.parametrize("head", [FisherVector(pca_dim=4, atoms=2), AveragePooling()], ids=["codebook", "nothing"])
def test_heads_with_a_codebook_and_with_nothing_to_fit(head: Head, tmp_path: Path) -> None:
    net = network(head).eval()
    fit_heads(net, batches(), len(IMAGES), tmp_path)
    assert all(head.is_fitted for head in net.each_head())
    assert bool(net.features(IMAGES).isfinite().all()) and not list(tmp_path.iterdir())


def test_a_head_that_learns_from_labels_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CxlpError, match=r"^TrainedGuidePooling .*labels"):
        fit_heads(network(TrainedGuidePooling(pca_dim=4, channels=2)), batches(), len(IMAGES), tmp_path)


def stored(features: Tensor, folder: Path) -> RowStore:
    rows = RowStore(folder / "rows.bin", *features.shape)
    rows.write(torch.arange(len(features)), features)
    return rows


def test_components_are_scikit_learns(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(30, 200, generator=generator) * torch.logspace(0, -2, 200) + 3
    found = principal_components(stored(features, tmp_path), 5, CPU)
    known = PCA(5, svd_solver="full").fit(features.double().numpy())
    expected, reduced = known.transform(features.double().numpy()), found.reduce(features).numpy()
    signs = np.sign((expected * reduced).sum(axis=0))
    assert reduced == pytest.approx(expected * signs, rel=1e-3, abs=1e-3)
    assert found.kept == pytest.approx(known.explained_variance_ratio_.sum(), rel=1e-4)
    assert (found.axes @ found.axes.T).numpy() == pytest.approx(np.eye(5), abs=1e-4)
    # images to which it was not fitted
    new = torch.randn(4, 200, generator=generator) + 3
    assert found.reduce(new).numpy() == pytest.approx(known.transform(new.numpy()) * signs, rel=1e-3, abs=1e-3)


def test_more_dimensions_than_the_features_span_are_refused(tmp_path: Path) -> None:
    features = torch.randn(20, 3) @ torch.randn(3, 50)
    with pytest.raises(CxlpError, match=r"20 images span 3 dimensions .* 5: lower --dim"):
        principal_components(stored(features, tmp_path), 5, CPU)
    features[7, 0] = torch.nan
    with pytest.raises(CxlpError, match="some features are NaN or infinite"):
        principal_components(stored(features, tmp_path), 2, CPU)
