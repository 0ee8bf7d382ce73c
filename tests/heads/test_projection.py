"""The projections of a part, against NumPy on all maps at once."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cxlp.frozen.fit import FrozenConfig, FrozenFit
from cxlp.frozen.projections import random_places
from cxlp.heads.cross_layer import align_maps, centres
from cxlp.utils.errors import CxlpError
from cxlp.utils.profiling import PhaseTimes
from tests.frozen.test_fit import POOLING, run_fit, small_images, small_network

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize(
    ("options", "layers"),
    [
        ({}, ("features.3", "features.4")),
        ({"size": 3, "stride": 2}, ("features.3", "features.4")),
        ({"pca_dim": None, "channels": 9}, ("features.3", "features.4")),
        ({"method": "bilinear"}, ("features.3", "features.4")),
        ({"align": "to_local"}, ("features.4", "features.6")),
        ({"align": "to_guide"}, ("features.4", "features.6")),
    ],
    ids=str,
)
@torch.no_grad()
def test_the_guides_projection_holds_the_axes_of_its_second_moment(
    tmp_path: Path, options: dict[str, Any], layers: tuple[str, str]
) -> None:
    network = small_network(replace(POOLING, guide_dim=4, **options), layers)
    run_fit(network, tmp_path)
    part = next(network.each_part())
    assert part.guide_projection is not None
    local, guide = part.select(network.backbone(small_images()[0])[-len(part.layers) :])
    _, guide = align_maps(local, guide, part.config.align)
    seen = centres(guide, part.config.size, part.config.stride)  # where the local features are
    a = seen.flatten(2).transpose(1, 2).flatten(0, 1).double().numpy()  # (n N, K)
    expected = np.linalg.eigh(a.T @ a)[1][:, ::-1][:, :4].T
    found = part.guide_projection.weight.flatten(1).double().numpy()
    np.testing.assert_allclose(np.abs((found * expected).sum(axis=1)), 1, atol=1e-6)
    assert (found[np.arange(4), np.abs(found).argmax(axis=1)] > 0).all()
    # the best that four channels can say of all of them
    best = a @ expected.T @ expected
    np.testing.assert_allclose(a @ found.T @ found, best, atol=1e-4 * np.abs(best).max())


def test_few_local_features_give_other_axes(tmp_path: Path) -> None:
    few, many = (small_network(replace(POOLING, guide_dim=4)) for _ in range(2))
    run_fit(few, tmp_path, FrozenConfig(pca_vectors=21 * 3))
    run_fit(many, tmp_path)
    one, other = (next(network.each_part()).guide_projection for network in (few, many))
    assert one is not None and other is not None and not torch.allclose(one.weight, other.weight, atol=1e-3)


def test_more_axes_than_local_features_are_refused_before_the_pass(tmp_path: Path) -> None:
    network, config = small_network(replace(POOLING, guide_dim=100)), FrozenConfig(pca_vectors=21)  # one per image
    with pytest.raises(CxlpError, match=r"the guide to 100 dimensions .* 21 .* give 1 each \(of 196\).*guide_dim"):
        FrozenFit(network, config, 21, tmp_path / "fit", PhaseTimes())


def test_random_places_depend_on_the_image_only() -> None:
    both = random_places(50, 6, torch.tensor([3, 8]))
    assert torch.equal(random_places(50, 6, torch.tensor([8])), both[1:]) and not torch.equal(both[0], both[1])
    assert all(len(set(places)) == 6 for places in both.tolist())
