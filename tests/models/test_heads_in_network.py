"""The parts of a representation: their formulas and lengths, what each takes of the maps, and what is refused."""

from dataclasses import replace
from typing import Any, get_args

import numpy as np
import pytest
import torch
from torch import Tensor

from cxlp.backbones.backbone import BackboneConfig
from cxlp.heads.cross_layer import Align, CrossLayerPooling
from cxlp.models.branch import Method
from cxlp.models.views import ViewsConfig
from cxlp.utils.errors import CxlpError
from tests.networks import BACKBONE, CLASSES, build, randomise, rooted

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def photos() -> Tensor:
    return torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def test_methods_are_their_formulas(photos: Tensor) -> None:
    network = build()
    local, guide = (m.double().numpy() for m in network.backbone(photos))
    x, a = local.reshape(2, 48, -1), guide.reshape(2, 192, -1)
    assert network.projection is not None
    assert network.projection.bias is not None
    w = network.projection.weight.double().numpy().reshape(6, 48)
    b = network.projection.bias.double().numpy()[:, None]
    expected = {
        "cross": np.einsum("bkn,bpn->bkp", a, w @ x + b),
        "bilinear": np.einsum("bkn,bpn->bkp", a, a),
        "average_local": x.mean(2),
        "average_guide": a.mean(2),
    }
    for method, value in expected.items():
        other = build(method=method, pca_dim=None if method == "bilinear" else 6)
        # One backbone for all, and one projection where there is one.
        other.load_state_dict({k: v for k, v in network.state_dict().items() if k in other.state_dict()})
        found = other.features(photos)
        assert found.shape == (2, other.out_features) == (2, value[0].size), method
        np.testing.assert_allclose(found, rooted(value), rtol=1e-3, atol=1e-5, err_msg=method)


@pytest.mark.parametrize(
    ("pooling", "length"),
    [
        ({"method": "cross"}, 192 * 6),
        ({"method": "cross", "pca_dim": None}, 192 * 48),
        ({"method": "bilinear", "pca_dim": None}, 192 * 192),
        ({"method": "average_local", "pca_dim": 100_000}, 48),  # which averages do not use
        ({"method": "average_guide"}, 192),
        ({"method": "cross", "size": 3, "sign": True}, 192 * 6),
        ({"method": "cross", "guide_dim": 5}, 5 * 6),
        ({"method": "bilinear", "guide_dim": 5, "pca_dim": None}, 5 * 192),
        ({"method": "cross", "sketch": 100}, 100),
        ({"method": "bilinear", "guide_dim": 5, "sketch": 20}, 20),
        ({"method": "cross", "guide_dim": 5, "channels": 9, "spectral": True}, 5 * 6),
    ],
)
def test_lengths(pooling: dict[str, Any], length: int, photos: Tensor) -> None:
    network = build(**pooling)
    assert network.features(photos).shape == (2, length)
    assert (network.projection is None) == (pooling.get("pca_dim", 6) is None or "average" in pooling["method"])


@torch.no_grad()
def test_switches_reach_the_normalisation(photos: Tensor) -> None:
    plain = build(sqrt=False, l2=False)
    raw = plain.parts[0](*plain.backbone(photos))
    choices: list[dict[str, Any]] = [
        {"spectral": True},
        {"sign": True},
        {"zscore": True},
        {"channel_l2": True},
        {"sqrt": False},
        {"l2": False},
    ]
    for switches in choices:
        other = build(**switches)
        other.load_state_dict(plain.state_dict())
        found = other.features(photos)
        assert not torch.equal(found, raw)
        if "sign" in switches:
            torch.testing.assert_close(found, raw.sign() / raw.sign().norm(dim=1, keepdim=True))


@pytest.mark.parametrize("upper", ["layer3", "layer3.0"])  # the same name, or the same map by another name
def test_one_map_twice_is_refused(upper: str) -> None:
    with pytest.raises(CxlpError, match=f"layers 'layer3' and '{upper}' are one and the same map"):
        build(replace(BACKBONE, layers=("layer3", upper)))


def test_uneven_maps_are_refused_naming_align(photos: Tensor) -> None:
    with pytest.raises(CxlpError, match=r"maps of 8x8 and 4x4: .*pooling.align to to_local or to_guide"):
        build(BACKBONE)
    sizes: tuple[Align, ...] = ("to_local", "to_guide")
    for align in sizes:
        assert build(BACKBONE, align=align).features(photos).shape == (2, 192 * 6)
    for method in ("bilinear", "average_local", "average_guide"):  # these look at one map only
        assert build(BACKBONE, method=method).features(photos).isfinite().all()


@pytest.mark.parametrize(("method", "values"), [("cross", 48), ("bilinear", 192)])
def test_more_components_than_values_are_refused(method: str, values: int) -> None:
    message = f"pca_dim is {values + 1}, but a local feature has {values} values .*choose 1 to {values}"
    with pytest.raises(CxlpError, match=message):
        build(method=method, pca_dim=values + 1)


@torch.no_grad()
def test_blocks_are_pooled_together(photos: Tensor) -> None:
    network = build(views=ViewsConfig("blocks"), sqrt=False, l2=False)
    plain = build(sqrt=False, l2=False)
    plain.load_state_dict(network.state_dict())
    images = torch.rand(2, 3, 128, 128) * 255
    blocks = [images[..., y : y + 64, x : x + 64] for y in (0, 64) for x in (0, 64)]
    expected = sum(plain.features(block) for block in blocks)
    torch.testing.assert_close(network.features(images), expected, rtol=1e-4, atol=1e-4)


def test_fewer_pooling_channels_are_the_first_ones(photos: Tensor) -> None:
    whole, few = build(sqrt=False, l2=False), build(sqrt=False, l2=False, channels=7)
    few.load_state_dict(whole.state_dict())
    torch.testing.assert_close(few.features(photos), whole.features(photos)[:, : 7 * 6])
    with pytest.raises(CxlpError, match=r"channels is 193, but the guide has 192"):
        build(channels=193)


@torch.no_grad()
def test_low_rank_and_compact_forms_are_their_formulas(photos: Tensor) -> None:
    plain = build(sqrt=False, l2=False)
    pooled = plain.features(photos).view(2, 192, 6)
    network = build(sqrt=False, l2=False, guide_dim=5, sketch=20)
    network.load_state_dict(plain.state_dict(), strict=False)
    part = next(network.each_part())
    assert part.guide_projection is not None and isinstance(part.encoding, CrossLayerPooling)
    assert part.encoding.sketch is not None
    reduced = part.guide_projection.weight.flatten(1) @ pooled
    torch.testing.assert_close(network.features(photos), part.encoding.sketch(reduced), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    ("pooling", "message"),
    [
        ({"method": "covariance", "guide_dim": 5}, "guide_dim is 5, which method covariance does not have.* to null"),
        ({"method": "trained_guide", "sketch": 5}, "sketch is 5, which method trained_guide does not have"),
        ({"method": "average_guide", "sketch": 0}, "sketch is 0, which method average_guide does not have"),
        ({"method": "fisher", "spectral": True}, "spectral is True, which method fisher does not have.* to false"),
        ({"sketch": 8, "spectral": True}, "spectral is true, but a sketch has no pooling channels.*spectral to false"),
        ({"sketch": 8, "channel_l2": True}, "channel_l2 is true, but a sketch has no pooling channels"),
        ({"sketch": 192 * 6 + 1}, "sketch is 1153, but there are 192 x 6"),
        ({"guide_dim": 193}, "guide_dim is 193, but the guide has 192 channels"),
        ({"guide_dim": 8, "channels": 7}, "guide_dim is 8, but the guide has 7 channels"),
    ],
)
def test_forms_that_cannot_be_are_refused(pooling: dict[str, Any], message: str) -> None:
    with pytest.raises(CxlpError, match=message):
        build(**pooling)


@torch.no_grad()
def test_a_transformers_patch_tokens_are_pooled_under_the_next_blocks_mlp() -> None:
    layers = ("blocks.4", "blocks.5.mlp.act")
    network = build(BackboneConfig("timm/test_vit", layers, weights=None), pca_dim=None, sqrt=False, l2=False)
    pictures = torch.rand(2, 3, 160, 160) * 255
    tokens = [m.flatten(2).transpose(1, 2) for m in network.backbone(pictures)]  # (2, 100, 64), (2, 100, 192)
    expected = torch.einsum("bnk,bnp->bkp", tokens[1], tokens[0]).flatten(1)
    torch.testing.assert_close(network.features(pictures), expected, rtol=1e-4, atol=1e-3)
    assert next(network.each_part()).local_features == 100


def test_one_layer_is_not_enough_for_two(photos: Tensor) -> None:
    with pytest.raises(CxlpError, match=r"layers is \['layer3'\]: cross takes two layers"):
        build(layers=("layer3",))
    with pytest.raises(CxlpError, match=r"fisher takes one layer or two"):
        build(method="fisher", layers=("layer1", "layer2", "layer3"))
    assert build(method="average_guide", layers=("layer3",)).features(photos).shape == (2, 192)


HEADS: list[dict[str, Any]] = [
    *({"method": method} for method in get_args(Method)),
    {"guide_dim": 5, "sketch": 20},
    {"method": "bilinear", "guide_dim": 5, "spectral": True},
]


@pytest.mark.parametrize("head", HEADS, ids=str)
def test_each_parameter_takes_part(photos: Tensor, head: dict[str, Any]) -> None:
    network = randomise(build(classes=CLASSES, **head)).train()  # DDP waits for gradients that never come
    network(photos).square().sum().backward()
    assert [name for name, p in network.named_parameters() if p.grad is None] == []


@pytest.mark.parametrize("head", HEADS, ids=str)
@torch.no_grad()
def test_weights_in_half_precision_are_used_in_full(photos: Tensor, head: dict[str, Any]) -> None:
    network = build(**head)
    for value in network.parameters():  # numbers that bfloat16 knows
        value.copy_(value.bfloat16().float())
    maps = network.backbone(photos)
    whole = network.parts[0](*next(network.each_part()).select(maps))
    half = network.to(torch.bfloat16).parts[0](*next(network.each_part()).select(maps))
    assert half.dtype == torch.float32
    torch.testing.assert_close(half, whole, atol=1e-4, rtol=1e-3)
