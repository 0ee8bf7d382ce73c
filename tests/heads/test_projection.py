"""The projections of heads, compared with NumPy on all maps at once."""

from pathlib import Path

import numpy as np
import pytest
import torch

from cxlp.frozen.config import FrozenConfig
from cxlp.frozen.fit import FrozenFit
from cxlp.heads import BilinearPooling, CrossLayerPooling
from cxlp.heads.operator import align_maps, centres
from cxlp.heads.projection import project, random_places
from cxlp.utils.errors import CxlpError
from cxlp.utils.profiling import PhaseTimes
from tests.frozen.test_fit import cross, run_fit, small_images, small_network


@pytest.mark.parametrize(
    ("head", "layers"),
    [
        (cross(guide_dim=4), ("features.3", "features.4")),
        (cross(guide_dim=4, size=3, stride=2), ("features.3", "features.4")),
        (cross(guide_dim=4, pca_dim=None, channels=9), ("features.3", "features.4")),
        (BilinearPooling(pca_dim=6, guide_dim=4), ("features.3", "features.4")),
        (cross(guide_dim=4, align="to_local"), ("features.4", "features.6")),
        (cross(guide_dim=4, align="to_guide"), ("features.4", "features.6")),
    ],
    ids=["1x1", "3x3", "no PCA", "bilinear", "to_local", "to_guide"],
)
@torch.no_grad()
def test_the_guides_projection_holds_the_axes_of_its_second_moment(
    tmp_path: Path, head: CrossLayerPooling, layers: tuple[str, str]
) -> None:
    network = small_network(head, layers)
    run_fit(network, tmp_path)
    (fitted,) = network.heads
    assert isinstance(fitted, CrossLayerPooling) and fitted.guide_projection is not None
    local, guide = fitted.select(*network.backbone(small_images()[0])[-fitted.takes :])
    _, guide = align_maps(local, guide, fitted.align)
    seen = centres(guide, fitted.size, fitted.stride)  # at the places of local features
    a = seen.flatten(2).transpose(1, 2).flatten(0, 1).double().numpy()  # (n N, K)
    expected = np.linalg.eigh(a.T @ a)[1][:, ::-1][:, :4].T
    found = fitted.guide_projection.weight.flatten(1).double().numpy()
    np.testing.assert_allclose(np.abs((found * expected).sum(axis=1)), 1, atol=1e-6)
    assert (found[np.arange(4), np.abs(found).argmax(axis=1)] > 0).all()
    # the best approximation by four channels
    best = a @ expected.T @ expected
    np.testing.assert_allclose(a @ found.T @ found, best, atol=1e-4 * np.abs(best).max())


@torch.no_grad()
def test_whitening_evens_out_the_variances(tmp_path: Path) -> None:
    networks = [small_network(cross(guide_dim=4, centre=True, whiten=whiten)) for whiten in (0.0, 0.5, 1.0)]
    variances = []
    for network in networks:
        run_fit(network, tmp_path)
        (fitted,) = network.heads
        assert isinstance(fitted, CrossLayerPooling) and fitted.projection and fitted.guide_projection
        local, guide = network.backbone(small_images()[0])
        projected = [project(fitted.projection, local), project(fitted.guide_projection, guide)]
        variances.append([p.transpose(0, 1).flatten(1).var(dim=1, correction=0) for p in projected])
    for plain, half, full in zip(*variances, strict=True):
        torch.testing.assert_close(half, (plain * plain[0]).sqrt(), rtol=1e-3, atol=0)
        torch.testing.assert_close(full, plain[0].expand_as(plain), rtol=1e-3, atol=0)


def test_few_local_features_give_other_axes(tmp_path: Path) -> None:
    few, many = (small_network(cross(guide_dim=4)) for _ in range(2))
    run_fit(few, tmp_path, FrozenConfig(pca_vectors=21 * 3))
    run_fit(many, tmp_path)
    one, other = (dict(network.heads.named_parameters())["0.guide_projection.weight"] for network in (few, many))
    assert not torch.allclose(one, other, atol=1e-3)


def test_more_axes_than_local_features_are_refused_before_the_pass(tmp_path: Path) -> None:
    network, config = small_network(cross(guide_dim=100)), FrozenConfig(pca_vectors=21)  # one per image
    with pytest.raises(CxlpError, match=r"the guide to 100 dimensions .* 1 \(of 196\) .* 21 .*lower guide_dim"):
        FrozenFit(network, config, 21, tmp_path / "fit", PhaseTimes())


def test_random_places_depend_on_the_image_only() -> None:
    both = random_places(50, 6, torch.tensor([3, 8]))
    assert torch.equal(random_places(50, 6, torch.tensor([8])), both[1:]) and not torch.equal(both[0], both[1])
    assert all(len(set(places)) == 6 for places in both.tolist())
