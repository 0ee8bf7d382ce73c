"""The heads in a network: formulas, sizes, layers, and errors."""

import copy
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from cxlp.backbones.backbone import BackboneConfig
from cxlp.heads import (
    AveragePooling,
    BilinearPooling,
    CovariancePooling,
    CrossLayerPooling,
    FisherVector,
    Head,
    SparseFisherVector,
    TrainedGuidePooling,
)
from cxlp.heads.operator import Align
from cxlp.heads.views import Views
from cxlp.utils.errors import CxlpError
from tests.networks import BACKBONE, CLASSES, EVEN, build, randomise, rooted


def cross(**options: Any) -> CrossLayerPooling:
    return CrossLayerPooling(**{"pca_dim": 6, **options})


@pytest.fixture(scope="module")
def photos() -> Tensor:
    return torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def test_heads_follow_their_formulas(photos: Tensor) -> None:
    head = cross()
    heads: dict[str, Head] = {
        "cross": head,
        "bilinear": BilinearPooling(pca_dim=None),
        "average of the lower layer": AveragePooling(layers=["layer3.0.conv2"]),
        "average": AveragePooling(),
    }
    network = build(list(heads.values()))
    local, guide = (m.double().numpy() for m in network.backbone(photos))
    x, a = local.reshape(2, 48, -1), guide.reshape(2, 192, -1)
    assert head.projection is not None and head.projection.bias is not None
    w = head.projection.weight.double().numpy().reshape(6, 48)
    b = head.projection.bias.double().numpy()[:, None]
    expected = {
        "cross": np.einsum("bkn,bpn->bkp", a, w @ x + b),
        "bilinear": np.einsum("bkn,bpn->bkp", a, a),
        "average of the lower layer": x.mean(2),
        "average": a.mean(2),
    }
    for (name, each), maps in zip(heads.items(), network.inputs(photos), strict=True):
        found = each(*maps)
        assert found.shape == (2, each.out_features) == (2, expected[name][0].size), name
        np.testing.assert_allclose(found, rooted(expected[name]), rtol=1e-3, atol=1e-5, err_msg=name)


@pytest.mark.parametrize(
    ("head", "length"),
    [
        (cross(), 192 * 6),
        (cross(pca_dim=None), 192 * 48),
        (BilinearPooling(pca_dim=None), 192 * 192),
        (AveragePooling(layers=["layer3.0.conv2"]), 48),
        (AveragePooling(), 192),
        (cross(size=3, sign=True), 192 * 6),
        (cross(guide_dim=5), 5 * 6),
        (BilinearPooling(guide_dim=5, pca_dim=None), 5 * 192),
        (cross(sketch=100), 100),
        (BilinearPooling(pca_dim=6, guide_dim=5, sketch=20), 20),
        (cross(guide_dim=5, channels=9, spectral=True), 5 * 6),
        (CovariancePooling(pca_dim=6), 6 * 7 // 2),
        (FisherVector(pca_dim=6, atoms=3), 2 * 3 * 6),
        (SparseFisherVector(pca_dim=6, atoms=3), 3 * 6),
        (TrainedGuidePooling(pca_dim=6, channels=4), 4 * 6),
    ],
)
def test_lengths(head: Head, length: int, photos: Tensor) -> None:
    assert build(head).features(photos).shape == (2, length) == (2, head.out_features)


@torch.no_grad()
def test_switches_reach_the_normalisation(photos: Tensor) -> None:
    plain = build(cross(sqrt=False, l2=False))
    raw = plain.heads[0](*plain.backbone(photos))
    choices: list[dict[str, Any]] = [
        {"spectral": True},
        {"sign": True},
        {"zscore": True},
        {"channel_l2": True},
        {"sqrt": False},
        {"l2": False},
    ]
    for switches in choices:
        other = build(cross(**switches))
        other.load_state_dict(plain.state_dict())
        found = other.features(photos)
        assert not torch.equal(found, raw)
        if "sign" in switches:
            torch.testing.assert_close(found, raw.sign() / raw.sign().norm(dim=1, keepdim=True))


def test_one_map_twice_is_refused() -> None:
    two_names = replace(BACKBONE, layers=("layer3.0.conv2", "layer3", "layer3.0"))
    for layers in (["layer3", "layer3.0"], ["layer3", "layer3"]):
        with pytest.raises(CxlpError, match=f"layers '{layers[0]}' and '{layers[1]}' are the same map"):
            build(cross(layers=layers), two_names)


def test_uneven_maps_are_refused_naming_align(photos: Tensor) -> None:
    with pytest.raises(CxlpError, match=r"maps of 8x8 and 4x4: .*align to to_local or to_guide"):
        build(backbone=BACKBONE)
    sizes: tuple[Align, ...] = ("to_local", "to_guide")
    for align in sizes:
        assert build(cross(align=align), BACKBONE).features(photos).shape == (2, 192 * 6)
    for head in (BilinearPooling(pca_dim=6), AveragePooling()):  # these read one map only
        assert build(head, BACKBONE).features(photos).isfinite().all()


@torch.no_grad()
def test_blocks_are_pooled_together(photos: Tensor) -> None:
    network = build(cross(views=Views("blocks"), sqrt=False, l2=False))
    plain = build(cross(sqrt=False, l2=False))
    plain.load_state_dict(network.state_dict())
    images = torch.rand(2, 3, 128, 128)
    blocks = [images[..., y : y + 64, x : x + 64] for y in (0, 64) for x in (0, 64)]
    expected = sum(plain.features(block) for block in blocks)
    torch.testing.assert_close(network.features(images), expected, rtol=1e-4, atol=1e-4)


def test_fewer_pooling_channels_are_the_first_ones(photos: Tensor) -> None:
    whole, few = build(cross(sqrt=False, l2=False)), build(cross(sqrt=False, l2=False, channels=7))
    few.load_state_dict(whole.state_dict())
    torch.testing.assert_close(few.features(photos), whole.features(photos)[:, : 7 * 6])


@torch.no_grad()
def test_low_rank_and_compact_forms_equal_the_formulas(photos: Tensor) -> None:
    plain, head = build(cross(sqrt=False, l2=False)), cross(sqrt=False, l2=False, guide_dim=5, sketch=20)
    pooled = plain.features(photos).view(2, 192, 6)
    network = build(head)
    network.load_state_dict(plain.state_dict(), strict=False)
    assert head.guide_projection is not None and head.count_sketch is not None
    reduced = head.guide_projection.weight.flatten(1) @ pooled
    torch.testing.assert_close(network.features(photos), head.count_sketch(reduced), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    ("head", "option"),
    [
        (CovariancePooling, "guide_dim"),
        (TrainedGuidePooling, "sketch"),
        (AveragePooling, "pca_dim"),
        (FisherVector, "spectral"),
        (CrossLayerPooling, "atoms"),
        (BilinearPooling, "align"),
    ],
)
def test_an_option_that_a_head_does_not_have_is_refused_by_name(head: Any, option: str) -> None:
    with pytest.raises(TypeError, match=f"'{option}'"):
        head(**{option: 5})
    with pytest.raises(CxlpError, match=f"{head.__name__} has no option '{option}'"):
        Head.from_spec({"class_path": head.__name__, "init_args": {option: 5}})


@torch.no_grad()
def test_a_transformers_patch_tokens_are_pooled_under_the_next_blocks_mlp() -> None:
    layers = ("blocks.4", "blocks.5.mlp.act")
    head = cross(pca_dim=None, sqrt=False, l2=False)
    network = build(head, BackboneConfig("timm/test_vit", layers, weights=None))
    pictures = torch.rand(2, 3, 160, 160)
    tokens = [m.flatten(2).transpose(1, 2) for m in network.backbone(pictures)]  # (2, 100, 64), (2, 100, 192)
    expected = torch.einsum("bnk,bnp->bkp", tokens[1], tokens[0]).flatten(1)
    torch.testing.assert_close(network.features(pictures), expected, rtol=1e-4, atol=1e-3)
    assert head.local_features == 100


def test_layers_are_the_backbones_last_or_those_named(photos: Tensor) -> None:
    three = replace(EVEN, layers=("layer2", "layer3.0.conv2", "layer3"))
    network = build([cross(), AveragePooling(), AveragePooling(layers=["layer2"])], three)
    maps = network.backbone(photos)
    for found, expected in zip(network.inputs(photos), ((1, 2), (2,), (0,)), strict=True):
        assert all(torch.equal(m, maps[i]) for m, i in zip(found, expected, strict=True))
    with pytest.raises(CxlpError, match=r"layers is \['layer3'\]: CrossLayerPooling takes 2 layers"):
        cross(layers=("layer3",))
    with pytest.raises(CxlpError, match=r"FisherVector takes one layer"):
        FisherVector(layers=("layer1", "layer2"))
    with pytest.raises(CxlpError, match=r"CrossLayerPooling takes 2 layers, .* only \['layer3'\]"):
        build(cross(), replace(EVEN, layers=("layer3",)))
    with pytest.raises(CxlpError, match=r"takes layer 'layer1', .*'layer3'"):
        build(AveragePooling(layers=["layer1"]))


HEADS: list[Head] = [
    cross(),
    cross(guide_dim=5, sketch=20),
    BilinearPooling(pca_dim=6),
    BilinearPooling(pca_dim=6, guide_dim=5, spectral=True),
    AveragePooling(layers=["layer3.0.conv2"]),
    AveragePooling(),
    CovariancePooling(pca_dim=6),
    FisherVector(pca_dim=6),
    SparseFisherVector(pca_dim=6),
    TrainedGuidePooling(pca_dim=6),
]


@pytest.mark.parametrize("head", HEADS, ids=lambda head: head.name)
def test_each_parameter_affects_the_scores(photos: Tensor, head: Head) -> None:
    network = randomise(build(copy.deepcopy(head), classes=CLASSES)).train()  # DDP would wait for missing gradients
    network(photos).square().sum().backward()
    assert [name for name, p in network.named_parameters() if p.grad is None] == []


@pytest.mark.parametrize("head", HEADS, ids=lambda head: head.name)
@torch.no_grad()
def test_weights_in_half_precision_are_used_in_full(photos: Tensor, head: Head) -> None:
    network = build(copy.deepcopy(head))
    for value in network.parameters():  # numbers that bfloat16 represents exactly
        value.copy_(value.bfloat16().float())
    (maps,) = network.inputs(photos)
    whole = network.heads[0](*maps)
    half = network.to(torch.bfloat16).heads[0](*maps)
    assert half.dtype == torch.float32
    torch.testing.assert_close(half, whole, atol=1e-4, rtol=1e-3)
