"""The named systems: made of one network, built, and of the sizes that the paper's table has."""

import pytest
import torch

from cxlp.backbones import BackboneConfig
from cxlp.network import Network, NetworkConfig, PoolingConfig
from cxlp.representations.systems import BASELINE, RECALLED, systems
from cxlp.representations.views import ViewsConfig

CAFFENET = NetworkConfig(BackboneConfig(weights=None), PoolingConfig(size=3))


def test_with_the_papers_network_they_bear_the_papers_names() -> None:
    found = systems(CAFFENET)
    assert {"CL-34", "CL-45", "CL-45F", "CL-45C", "R-CNN SCFV", "CNN-Jitter", "CL + CNN-Jitter"} <= found.keys()
    assert found["CL-45"] == CAFFENET
    assert RECALLED.keys() <= found.keys() and BASELINE in found


@pytest.mark.parametrize(
    ("name", "size", "passes", "pixels"),
    [
        ("CNN-Global", 4096, 1, 227),
        ("CNN-Jitter", 4096, 10, 256),
        ("R-CNN SCFV", 500 * 100, 36, 512),
        ("R-CNN FV", 2 * 500 * 64, 36, 512),
        ("regions + trained guide", 500 * 100, 36, 512),
        ("CL-34", 500 * 384, 1, 227),
        ("CL-45", 500 * 256, 1, 227),
        ("CL-45F", 500 * 256, 4, 454),
        ("CL-45C", 2 * 500 * 256, 5, 454),
        ("CL + CNN-Jitter", 500 * 256 + 4096, 11, 256),
        ("average", 256, 1, 227),
        ("bilinear", 256 * 256, 1, 227),
    ],
)
def test_their_sizes_and_passes(name: str, size: int, passes: int, pixels: int) -> None:
    with torch.device("cpu"):
        network = Network(systems(CAFFENET)[name])
    assert (network.out_features, network.passes, network.image_size) == (size, passes, pixels)


def test_other_backbones_have_what_can_be_made_of_them() -> None:
    base = NetworkConfig(BackboneConfig("resnet18", ("layer4.0", "layer4.1"), weights=None), PoolingConfig(pca_dim=64))
    found = systems(base)
    assert "CL" in found and "CL-lower" not in found and "CL, 3x3" in found
    assert found["CLF"].pooling.views == ViewsConfig("blocks")
    for config in (found["CNN-Global"], found["bilinear"], found["CL + CNN-Global"]):
        assert Network(config).out_features > 0
