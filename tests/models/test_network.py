"""The network: sizes and values of its heads, classes, precision, and restoration from a checkpoint."""

import copy
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from cxlp.backbones.backbone import Backbone, BackboneConfig
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
from cxlp.heads.views import Kind, Views, resized
from cxlp.models.checkpoint import load_network, network_of, read_checkpoint
from cxlp.models.network import Network
from cxlp.utils.errors import CxlpError
from tests.networks import BACKBONE, CLASSES, EVEN, build, randomise, rooted


@pytest.fixture(scope="module")
def photos() -> Tensor:
    return torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


# --- views, layers, concatenation


def test_a_head_may_take_other_layers_and_views(photos: Tensor) -> None:
    three = replace(EVEN, layers=(*EVEN.layers, "penultimate"))
    other = AveragePooling(views=Views("crops"))  # takes the last layer
    both = build([CrossLayerPooling(pca_dim=6, layers=EVEN.layers), other], three, CLASSES)
    assert both.image_size == round(64 * 256 / 227) and both.passes == 1 + 10
    assert both.out_features == 192 * 6 + both.backbone.channels[2]
    images = torch.rand(2, 3, both.image_size, both.image_size)
    with torch.no_grad():
        found = both.features(images)
        first = both.heads[0](*both.backbone(resized(images, 64))[:2])
        pooled = both.backbone(other.views.cut(images, 64))[2].view(2, 10, -1).mean(1)
    second = torch.from_numpy(rooted(pooled.double().numpy()))
    # each of unit length, so that neither dominates; the whole of unit length
    torch.testing.assert_close(found, torch.cat([first, second.float()], 1) / 2**0.5, atol=1e-5, rtol=1e-3)
    torch.testing.assert_close(found.norm(dim=1), torch.ones(2))


def test_heads_with_the_same_views_share_the_passes(photos: Tensor) -> None:
    network = build([CrossLayerPooling(pca_dim=6), AveragePooling()])
    assert network.passes == 1
    seen: list[int] = []
    network.backbone.register_forward_hook(lambda _m, args, _o: seen.append(len(args[0])))
    inputs = network.inputs(photos)
    assert seen == [2] and inputs[0][1] is inputs[1][0]


def test_layers_that_no_head_takes_are_cut_off(photos: Tensor) -> None:
    backbone = Backbone.from_config(replace(EVEN, layers=("layer2", "layer3.0.conv2", "layer3", "penultimate")))
    lower = Network(backbone, AveragePooling(layers=["layer3.0.conv2"])).eval()
    upper = Network(backbone, CrossLayerPooling(pca_dim=6, layers=["layer2", "layer3"], align="to_guide")).eval()
    assert lower.backbone.layers == ("layer3.0.conv2",) and upper.backbone.layers == ("layer2", "layer3")
    assert lower.spec()["backbone"]["layers"] == ["layer3.0.conv2"]
    assert backbone.layers[0] == "layer2" and len(backbone(photos)) == 4  # unchanged, for other networks
    names = {name for name, _ in lower.backbone.named_parameters()}
    assert "trunk.layer3.0.conv2.weight" in names and "trunk.layer3.0.conv3.weight" not in names
    backbone.eval()
    maps = dict(zip(backbone.layers, backbone(photos), strict=True))
    assert torch.equal(lower.backbone(photos)[0], maps["layer3.0.conv2"])
    assert torch.equal(upper.backbone(photos)[1], maps["layer3"])
    for network in (lower, upper):
        shared = {p.data_ptr() for p in backbone.parameters()}
        assert all(p.data_ptr() in shared for p in network.backbone.parameters())
        network.train()
        trunk: Any = network.backbone.trunk
        assert trunk.graph is trunk.train_graph


@torch.no_grad()
def test_many_views_pass_in_chunks_of_images(monkeypatch: pytest.MonkeyPatch) -> None:
    network = build(CrossLayerPooling(pca_dim=6, views=Views("blocks")))
    images = torch.rand(5, 3, 128, 128, generator=torch.Generator().manual_seed(0))
    whole = network.features(images)
    monkeypatch.setattr("cxlp.models.network._VIEWS_AT_A_TIME", 8)
    seen: list[int] = []
    network.backbone.register_forward_hook(lambda _m, args, _o: seen.append(len(args[0])))
    torch.testing.assert_close(network.features(images), whole, atol=1e-5, rtol=1e-3)
    assert seen == [8, 8, 4]


@pytest.mark.parametrize(("kind", "views"), [("whole", 1), ("flip", 2), ("crops", 10)])
@torch.no_grad()
def test_test_views_are_averaged_in_scores(kind: Kind, views: int) -> None:
    shown = Views(kind)
    network = randomise(build(classes=CLASSES, test_views=shown))
    assert network.image_size == 64 and network.test_size == shown.image_size(64) and network.passes == views
    pictures = torch.rand(14, 3, network.test_size, network.test_size)  # more than one chunk of ten crops
    expected = torch.stack([network(shown.cut(picture[None], 64)).mean(0) for picture in pictures])
    torch.testing.assert_close(network.score(pictures), expected, rtol=1e-4, atol=1e-5)
    assert network.score(pictures[:0]).shape == (0, 3)


# --- classes


def test_without_classes_there_are_no_scores(photos: Tensor) -> None:
    with pytest.raises(CxlpError, match="no classes yet: call set_classes"):
        build()(photos)


def test_classes_are_set_once(photos: Tensor) -> None:
    network = build()
    network.set_classes(CLASSES)
    assert not network(photos).any()  # the initial classifier is zero
    randomise(network)
    before = network(photos)
    network.set_classes(tuple(CLASSES))  # again: nothing is reset
    assert torch.equal(network(photos), before)
    with pytest.raises(CxlpError, match=r"fitted to 3 classes \(gull, tern, wren, \.\.\.\), .*data has 2 \(gull, owl"):
        network.set_classes(["gull", "owl"])
    with pytest.raises(CxlpError):
        network.set_classes(CLASSES[::-1])  # the order matters
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
        assert network.backbone(photos)[0].dtype == torch.bfloat16  # the expensive part runs in half precision
        assert torch.equal(network.classify(features), scores)  # the classifier does not
        assert network.features(photos).dtype == torch.float32
        assert network(photos).dtype == torch.float32
        torch.testing.assert_close(network.features(photos), features, atol=0.02, rtol=0)


# --- restoration


def save(network: Network, path: Path) -> Path:
    """Write a checkpoint with the network's content of a run's checkpoint, among other content."""
    state = {"network." + k: v for k, v in network.state_dict().items()} | {"metric.total": torch.ones(1)}
    torch.save({"state_dict": state, "cxlp": {"network": network.spec()}, "epoch": 3}, path)
    return path


@pytest.mark.parametrize(
    ("backbone", "head"),
    [
        (EVEN, CrossLayerPooling(pca_dim=6, size=3, padding="same", sign=True)),
        (BACKBONE, CrossLayerPooling(pca_dim=None, align="to_guide", zscore=True)),
        (replace(BACKBONE, mean="image"), AveragePooling(sqrt=False)),
        (EVEN, CrossLayerPooling(pca_dim=6, guide_dim=5, sketch=20)),
        (EVEN, BilinearPooling(pca_dim=6, spectral=True)),
        (EVEN, CovariancePooling(pca_dim=6)),
        (EVEN, FisherVector(pca_dim=6, atoms=3)),
        (EVEN, SparseFisherVector(pca_dim=6, atoms=4, sparsity=0.2, layers=["layer3.0.conv2"])),
        (EVEN, TrainedGuidePooling(pca_dim=6, views=Views("regions", stride=0.5, scale=1.0))),
    ],
    ids=lambda value: value.name.split("/")[-1],
)
def test_round_trip(backbone: BackboneConfig, head: Head, photos: Tensor, tmp_path: Path) -> None:
    network = randomise(build(copy.deepcopy(head), backbone, CLASSES, test_views=Views("flip")))
    path = save(network, tmp_path / "last.ckpt")
    torch.load(path, weights_only=True)  # plain values and tensors only
    again = load_network(str(path))
    assert not again.training and not again.backbone.trunk.training
    assert again.classes == tuple(CLASSES) and again.test_views == Views("flip")
    assert again.spec() == network.spec() and json.loads(json.dumps(again.spec())) == network.spec()
    with torch.no_grad():
        assert torch.equal(again(photos), network(photos))


def test_loading_needs_no_pretrained_weights(tmp_path: Path, photos: Tensor) -> None:
    network = build(classes=CLASSES)
    path = save(network, tmp_path / "a.ckpt")
    content = torch.load(path, weights_only=True)
    content["cxlp"]["network"]["backbone"]["weights"] = str(tmp_path / "no longer here.pth")
    torch.save(content, path)
    assert torch.equal(load_network(path).features(photos), network.features(photos))


def test_a_backbone_built_from_a_module_must_be_passed_on_loading(tmp_path: Path, photos: Tensor) -> None:
    def trunk() -> nn.Module:
        return nn.Sequential(nn.Conv2d(3, 8, 3, stride=2), nn.ReLU(), nn.Conv2d(8, 6, 1), nn.ReLU())

    backbone = Backbone(trunk(), ["0", "2"], image_size=64, mean=(0.5, 0.5, 0.5))
    network = randomise(Network(backbone, CrossLayerPooling(pca_dim=4), 5)).eval()
    assert network.classes == ("0", "1", "2", "3", "4")
    checkpoint = read_checkpoint(save(network, tmp_path / "a.ckpt"))
    with pytest.raises(CxlpError, match=r"an nn\.Module, .* argument backbone"):
        network_of(checkpoint)
    for given in (trunk(), Backbone(trunk(), ["0", "2"], image_size=64, mean=(0.5, 0.5, 0.5))):
        with torch.no_grad():
            assert torch.equal(network_of(checkpoint, given)(photos), network(photos))


def test_a_network_without_classes_is_restored(tmp_path: Path, photos: Tensor) -> None:
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
