"""The named systems: derived from one network, built, and with the sizes of the paper's table."""

from dataclasses import replace
from functools import cache

import pytest

from cxlp.backbones.backbone import Backbone, BackboneConfig
from cxlp.heads import AveragePooling, CovariancePooling, CrossLayerPooling, Head
from cxlp.heads.normalisation import Normalise
from cxlp.models.network import Network
from cxlp.studies.system_names import system_names
from cxlp.studies.systems import BASELINE, systems
from cxlp.studies.systems import Network as Described

CAFFENET = BackboneConfig(weights=None)


@cache
def papers() -> dict[str, Described]:
    """The systems of the paper's network."""
    return systems(CAFFENET, CrossLayerPooling(size=3))


@cache
def cut(backbone: BackboneConfig) -> Backbone:
    """A backbone that networks of these tests share, because extracting its layers takes most of the time."""
    return Backbone.from_config(backbone)


def build(backbone: BackboneConfig, system: Described) -> Network:
    shared = cut(replace(backbone, layers=tuple(system["layers"])))
    return Network(shared, [Head.from_spec(head) for head in system["heads"]])


@pytest.mark.parametrize(
    ("backbone", "head"),
    [
        (CAFFENET, CrossLayerPooling(size=3)),
        (BackboneConfig("efficientnet_lite0", ("blocks.6.0", "conv_head"), weights=None), CrossLayerPooling(256)),
        (BackboneConfig("resnet18", ("layer4.0", "layer4.1"), weights=None, image_size=64), CrossLayerPooling(64)),
    ],
)
def test_the_names_are_known_without_building_the_systems(backbone: BackboneConfig, head: CrossLayerPooling) -> None:
    assert list(systems(backbone, head)) == system_names(backbone.name, head.size)


def test_with_the_papers_network_systems_have_the_papers_names() -> None:
    found = papers()
    assert {"CL-34", "CL-45", "CL-45F", "CL-45C", "R-CNN SCFV", "CNN-Jitter", "CL + CNN-Jitter"} <= found.keys()
    (head,) = found["CL-45"]["heads"]
    assert found["CL-45"]["layers"] == ["conv4", "conv5"] == head["init_args"]["layers"]
    assert head == CrossLayerPooling(size=3, layers=["conv4", "conv5"]).spec()
    assert BASELINE in found


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
        ("CL-45, 1x1", 384 * 256, 1, 227),  # conv4 has 384 channels
        ("CL-45, signs", 500 * 256, 1, 227),
        ("CL-45, low rank", 500 * 64, 1, 227),
        ("CL-45, compact", 8192, 1, 227),
        ("CL-45, matrix root", 500 * 256, 1, 227),
        ("CL-45, best", 2 * 128 * 128, 1, 227),
        ("CL-45, derived", 512 * 256, 1, 227),
        ("CL-45 + CL-34", 500 * 256 + 500 * 384, 1, 227),
        ("CL + CNN-Global", 500 * 256 + 4096, 1, 227),
        ("average, root", 256, 1, 227),
        ("CL-45F", 500 * 256, 4, 454),
        ("CL-45C", 2 * 500 * 256, 5, 454),
        ("CL + CNN-Jitter", 500 * 256 + 4096, 11, 256),
        ("average", 256, 1, 227),
        ("bilinear", 256 * 256, 1, 227),
        ("bilinear, compact", 8192, 1, 227),
        ("iSQRT-COV", 256 * 257 // 2, 1, 227),
    ],
)
def test_their_sizes_and_passes(name: str, size: int, passes: int, pixels: int) -> None:
    network = build(CAFFENET, papers()[name])
    assert (network.out_features, network.passes, network.image_size) == (size, passes, pixels)


def test_every_system_was_built_above() -> None:
    built = test_their_sizes_and_passes.pytestmark[0].args[1]  # type: ignore[attr-defined]
    assert {case[0] for case in built} == papers().keys()


@pytest.mark.parametrize("pca_dim", [200, None])
def test_other_backbones_have_the_systems_that_they_support(pca_dim: int | None) -> None:
    layers = ("layer3.0.conv1", "layer3.0.conv2")
    backbone = BackboneConfig("resnet18", layers, weights=None, image_size=64)
    found = systems(backbone, CrossLayerPooling(pca_dim=pca_dim, channels=9))
    assert "CL" in found and "CL-lower" not in found and "CL, 3x3" in found
    assert found["CLF"]["heads"][0]["init_args"]["views"]["kind"] == "blocks"
    assert found["CL, low rank"]["heads"][0]["init_args"]["guide_dim"] == 9  # as many as it has
    assert found["CL, compact"]["heads"][0]["init_args"]["sketch"] == min(8192, 9 * (pca_dim or 256))
    for name, system in found.items():
        assert build(backbone, system).out_features > 0, name


@pytest.mark.parametrize(
    ("name", "layers"),
    [("squeezenet1_0", ("features.11", "features.12")), ("efficientnet_lite0", ("blocks.6.0", "conv_head"))],
)
def test_the_lower_pairs_can_be_built(name: str, layers: tuple[str, str]) -> None:
    backbone = BackboneConfig(name, layers, weights=None)
    assert build(backbone, systems(backbone, CrossLayerPooling(pca_dim=256))["CL-lower"]).passes == 1


@pytest.mark.parametrize("base", [CrossLayerPooling(size=3), CrossLayerPooling(size=3, spectral=True)])
def test_no_system_is_normalised_twice(base: CrossLayerPooling) -> None:
    heads = {
        name: [Head.from_spec(spec) for spec in system["heads"]] for name, system in systems(CAFFENET, base).items()
    }
    plain = ("CNN-Global", "CNN-Jitter", "average")  # as in the paper's time: activations without normalisation
    for name, found in heads.items():
        for head in found:
            assert isinstance(head.normalise, Normalise)
            steps = head.normalise.steps
            assert steps["l2"] and steps["zscore"] == steps["channel_l2"] == name.endswith("derived")
            roots = steps["sqrt"] + steps["spectral"] + steps["sign"] + isinstance(head, CovariancePooling)
            if steps["sign"]:
                roots -= steps["sqrt"]  # a sign equals its root
            raw = isinstance(head, AveragePooling) and (name in plain or name.startswith("CL + "))
            assert roots == (0 if raw else 1), name


def test_the_full_form_is_listed_beside_the_shorter_ones() -> None:
    assert systems(CAFFENET, CrossLayerPooling(size=3, guide_dim=16, sketch=500)) == papers()


def test_maps_of_different_sizes_are_aligned_in_every_system() -> None:
    backbone = BackboneConfig("resnet18", ("layer3.1", "layer4.1"), weights=None, image_size=64)
    made = systems(backbone, CrossLayerPooling(64, align="to_local"))
    for name in (name for name in made if name.startswith("CL")):
        assert build(backbone, made[name]).out_features > 0, name
