"""The network: its methods' lengths and values, its classes, its precision, and coming back from a checkpoint."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from cxlp.backbones import BackboneConfig
from cxlp.errors import CxlpError
from cxlp.network import Method, Network, NetworkConfig, PoolingConfig, load_network
from cxlp.pooling import Align, CrossLayerPooling
from cxlp.representations.views import Kind, ViewsConfig, resized

pytestmark = pytest.mark.usefixtures("one_thread")

# A network made for tests: 48 channels under 192, on 64 x 64 pixels 8x8 under 4x4, or both 4x4.
BACKBONE = BackboneConfig("timm/test_resnet", ("layer3.0.conv1", "layer3"), weights=None, image_size=64)
EVEN = replace(BACKBONE, layers=("layer3.0.conv2", "layer3"))
CLASSES = ["gull", "tern", "wren"]


def build(backbone: BackboneConfig = EVEN, classes: Sequence[str] | None = None, **pooling: Any) -> Network:
    return Network(NetworkConfig(backbone, PoolingConfig(**{"pca_dim": 6, **pooling})), classes).eval()


def randomise(network: Network) -> Network:
    """Fill what starts at zero, so that a loss of it shows."""
    assert network.classifier is not None
    nn.init.normal_(network.classifier.weight)
    nn.init.normal_(network.classifier.bias)
    return network


@pytest.fixture(scope="module")
def photos() -> Tensor:
    return torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def rooted(x: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    root: np.ndarray[Any, Any] = np.sign(x) * np.sqrt(np.abs(x))
    root = root.reshape(len(x), -1)
    root /= np.linalg.norm(root, axis=1, keepdims=True)
    return root


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


# --- views, layers, concatenation


def test_a_part_may_take_other_layers_and_views(photos: Tensor) -> None:
    plain = build()
    other = PoolingConfig("average_guide", layers=("layer3.0.conv2", "penultimate"), views=ViewsConfig("crops"))
    both = Network(NetworkConfig(EVEN, plain.config.pooling, (other,)), CLASSES).eval()
    assert both.backbone.layers == ("layer3.0.conv2", "layer3", "penultimate")
    assert both.image_size == round(64 * 256 / 227) and both.passes == 1 + 10
    assert both.out_features == 192 * 6 + both.backbone.channels[2]
    images = torch.rand(2, 3, both.image_size, both.image_size) * 255
    with torch.no_grad():
        found = both.features(images)
        first = both.parts[0](*both.backbone(resized(images, 64))[:2])
        pooled = both.backbone(other.views.cut(images, 64))[2].view(2, 10, -1).mean(1)
    second = torch.from_numpy(rooted(pooled.double().numpy()))
    # each of unit length, so that neither drowns the other; of unit length together
    torch.testing.assert_close(found, torch.cat([first, second.float()], 1) / 2**0.5, atol=1e-5, rtol=1e-3)
    torch.testing.assert_close(found.norm(dim=1), torch.ones(2))


def test_parts_of_one_view_share_its_pass(photos: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    network = Network(NetworkConfig(EVEN, PoolingConfig(pca_dim=6), (PoolingConfig("average_guide"),)))
    assert network.passes == 1
    seen: list[int] = []
    network.backbone.register_forward_hook(lambda _m, args, _o: seen.append(len(args[0])))
    inputs = network.inputs(photos)
    assert seen == [2] and inputs[0][1] is inputs[1][0]


@torch.no_grad()
def test_many_views_pass_in_chunks_of_images(monkeypatch: pytest.MonkeyPatch) -> None:
    network = build(views=ViewsConfig("blocks"))
    images = torch.rand(5, 3, 128, 128, generator=torch.Generator().manual_seed(0)) * 255
    whole = network.features(images)
    monkeypatch.setattr("cxlp.network._VIEWS_AT_A_TIME", 8)
    seen: list[int] = []
    network.backbone.register_forward_hook(lambda _m, args, _o: seen.append(len(args[0])))
    torch.testing.assert_close(network.features(images), whole, atol=1e-5, rtol=1e-3)
    assert seen == [8, 8, 4]


@torch.no_grad()
def test_blocks_are_pooled_together(photos: Tensor) -> None:
    network = build(views=ViewsConfig("blocks"), sqrt=False, l2=False)
    plain = build(sqrt=False, l2=False)
    plain.load_state_dict(network.state_dict())
    images = torch.rand(2, 3, 128, 128) * 255
    blocks = [images[..., y : y + 64, x : x + 64] for y in (0, 64) for x in (0, 64)]
    expected = sum(plain.features(block) for block in blocks)
    torch.testing.assert_close(network.features(images), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("kind", "views"), [("whole", 1), ("flip", 2), ("crops", 10)])
@torch.no_grad()
def test_test_views_are_averaged_in_scores(kind: Kind, views: int) -> None:
    shown = ViewsConfig(kind)
    config = NetworkConfig(EVEN, PoolingConfig(pca_dim=6), test_views=shown)
    network = randomise(Network(config, CLASSES)).eval()
    assert network.image_size == 64 and network.test_size == shown.image_size(64) and network.passes == views
    pictures = torch.rand(14, 3, network.test_size, network.test_size) * 255  # more than one chunk of ten crops
    expected = torch.stack([network(shown.cut(picture[None], 64)).mean(0) for picture in pictures])
    torch.testing.assert_close(network.score(pictures), expected, rtol=1e-4, atol=1e-5)
    assert network.score(pictures[:0]).shape == (0, 3)


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


# --- classes


def test_no_classes_no_scores(photos: Tensor) -> None:
    with pytest.raises(CxlpError, match="no classes yet: call set_classes"):
        build()(photos)


def test_classes_are_set_once(photos: Tensor) -> None:
    network = build()
    network.set_classes(CLASSES)
    assert not network(photos).any()  # no opinion at first
    randomise(network)
    before = network(photos)
    network.set_classes(tuple(CLASSES))  # again: nothing is reset
    assert torch.equal(network(photos), before)
    with pytest.raises(
        CxlpError, match=r"fitted to 3 classes \(gull, tern, wren, \.\.\.\), the data has 2 \(gull, owl"
    ):
        network.set_classes(["gull", "owl"])
    with pytest.raises(CxlpError):
        network.set_classes(CLASSES[::-1])  # the order is part of it
    assert network.classes == tuple(CLASSES)


@torch.no_grad()
def test_scores_are_linear_in_the_features(photos: Tensor) -> None:
    network = randomise(build(classes=CLASSES))
    assert network.classifier is not None
    features = network.features(photos)
    scores = features @ network.classifier.weight.T + network.classifier.bias
    torch.testing.assert_close(network(photos), scores)
    torch.testing.assert_close(network.classify(features), scores)


@torch.no_grad()
def test_features_and_scores_stay_float32_under_autocast(photos: Tensor) -> None:
    network = randomise(build(classes=CLASSES))
    features = network.features(photos)
    scores = network.classify(features)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert network.backbone(photos)[0].dtype == torch.bfloat16  # the expensive part is in half precision
        assert torch.equal(network.classify(features), scores)  # the classifier is not
        assert network.features(photos).dtype == torch.float32
        assert network(photos).dtype == torch.float32
        torch.testing.assert_close(network.features(photos), features, atol=0.02, rtol=0)


# --- coming back


def save(network: Network, path: Path) -> Path:
    """Write what a run's checkpoint holds of a network, among other things."""
    state = {"network." + k: v for k, v in network.state_dict().items()} | {"metric.total": torch.ones(1)}
    torch.save({"state_dict": state, "cxlp": {"network": network.spec()}, "epoch": 3}, path)
    return path


@pytest.mark.parametrize(
    ("backbone", "pooling"),
    [
        (EVEN, {"size": 3, "padding": "same", "sign": True}),
        (BACKBONE, {"align": "to_guide", "pca_dim": None, "zscore": True}),
        (BACKBONE, {"method": "average_guide", "sqrt": False}),
        (EVEN, {"guide_dim": 5, "sketch": 20}),
        (EVEN, {"method": "bilinear", "spectral": True}),
        (EVEN, {"method": "fisher", "atoms": 3}),
        (EVEN, {"method": "sparse_fisher", "atoms": 4, "sparsity": 0.2}),
        (EVEN, {"method": "trained_guide", "views": ViewsConfig("regions", stride=0.5, scale=1.0)}),
    ],
)
def test_round_trip(backbone: BackboneConfig, pooling: dict[str, Any], photos: Tensor, tmp_path: Path) -> None:
    network = randomise(build(backbone, CLASSES, **pooling))
    path = save(network, tmp_path / "last.ckpt")
    torch.load(path, weights_only=True)  # plain values and tensors only
    again = load_network(str(path))
    assert not again.training and not again.backbone.trunk.training
    assert again.classes == tuple(CLASSES)
    assert again.config.pooling == network.config.pooling
    with torch.no_grad():
        assert torch.equal(again(photos), network(photos))


def test_loading_asks_for_no_pretrained_weights(tmp_path: Path, photos: Tensor) -> None:
    network = build(classes=CLASSES)
    missing = replace(EVEN, weights=str(tmp_path / "no longer here.pth"))
    network.config = replace(network.config, backbone=missing)
    assert torch.equal(load_network(save(network, tmp_path / "a.ckpt")).features(photos), network.features(photos))


def test_a_network_without_classes_comes_back_without(tmp_path: Path, photos: Tensor) -> None:
    network = build()
    again = load_network(save(network, tmp_path / "a.ckpt"))
    assert again.classifier is None
    assert torch.equal(again.features(photos), network.features(photos))


def test_a_missing_checkpoint_is_named(tmp_path: Path) -> None:
    with pytest.raises(CxlpError, match=r"checkpoint not found: .*none.ckpt"):
        load_network(tmp_path / "none.ckpt")


@pytest.mark.parametrize("content", [{"state_dict": {}}, {"cxlp": {}}, [1], {"cxlp": None}])
def test_a_foreign_checkpoint_is_refused(content: object, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "other.ckpt")
    with pytest.raises(CxlpError, match=r"other.ckpt is not a checkpoint of cxlp"):
        load_network(tmp_path / "other.ckpt")


def test_garbage_is_refused(tmp_path: Path) -> None:
    (tmp_path / "page.ckpt").write_text("<html>")
    with pytest.raises(CxlpError, match=r"page.ckpt is not a checkpoint of cxlp"):
        load_network(tmp_path / "page.ckpt")


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


def test_a_checkpoint_without_the_newest_options_has_their_defaults(tmp_path: Path, photos: Tensor) -> None:
    network = randomise(build(classes=CLASSES))
    path = save(network, tmp_path / "a.ckpt")
    content = torch.load(path, weights_only=True)
    for name in ("guide_dim", "sketch", "spectral"):
        del content["cxlp"]["network"]["config"]["pooling"][name]
    torch.save(content, path)
    assert load_network(path).config == replace(network.config, backbone=replace(EVEN, weights=None))


def test_an_earlier_checkpoint_is_called_so(tmp_path: Path) -> None:
    path = save(build(classes=CLASSES), tmp_path / "a.ckpt")
    content = torch.load(path, weights_only=True)
    del content["cxlp"]["network"]["config"]["also"]
    torch.save(content, path)
    with pytest.raises(CxlpError, match="written by an earlier cxlp"):
        load_network(path)
