"""The inventory of a network's maps: a backbone with the same layers returns maps of these sizes."""

import pytest
import torch
from torch import nn

from cxlp.backbones.backbone import Backbone
from cxlp.backbones.inventory import inventory
from cxlp.utils.errors import CxlpError


class Trunk(nn.Module):
    """A user's own network: strides 2 and 4, a branch, and a layer that fits one size of image only."""

    def __init__(self) -> None:
        super().__init__()
        self.low = nn.Sequential(nn.Conv2d(3, 4, 3, 2, 1), nn.BatchNorm2d(4), nn.ReLU())
        self.side = nn.Conv2d(4, 6, 1)
        self.high = nn.Conv2d(4, 6, 3, 2, 1)
        self.top = nn.Conv2d(6, 5, 3, 1, 1)
        self.last = nn.Linear(5 * 56 * 56, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        low = self.low(x)
        side = self.side(low).mean(dim=(2, 3), keepdim=True)
        high = torch.relu(self.high(low)) * side
        scores: torch.Tensor = self.last(self.top(high).flatten(1))
        return scores


def test_a_users_own_network_is_listed() -> None:
    layers, size = inventory(f"{__name__}.Trunk")
    assert size == 224
    found = {layer.name: (layer.channels, layer.side, layer.stride, layer.activation, layer.below) for layer in layers}
    assert found == {
        "low.0": (4, 112, 2, "ReLU", ""),
        "side": (6, 112, 2, "", "low.0"),
        "high": (6, 56, 4, "ReLU", ""),
        "top": (5, 56, 4, "", "high"),  # not computed from it: low and side have another size
    }
    assert layers[0].kind == "Conv2d" and layers[0].also == ("low",)
    assert [layer.name for layer in inventory(f"{__name__}.Trunk", depth=1)[0]] == ["low", "side", "high", "top"]
    with pytest.raises(CxlpError, match="cannot take images of 64 x 64 pixels"):
        inventory(f"{__name__}.Trunk", 64)


@pytest.mark.parametrize("name", ["timm/test_resnet", "timm/test_vit", "squeezenet1_1"])
def test_a_backbone_returns_maps_of_the_listed_sizes(name: str) -> None:
    layers, size = inventory(name, None if "vit" in name else 96)
    chosen = layers[:: max(1, len(layers) // 8)]
    backbone = Backbone(name, [layer.name for layer in chosen], weights=None, image_size=size)
    assert backbone.channels == tuple(layer.channels for layer in chosen)
    assert backbone.map_sizes == tuple((layer.side, layer.side) for layer in chosen)
    assert len(set(backbone.same)) == len(chosen)  # no duplicates
    for layer in layers:
        assert layer.side > 1 and abs(size / layer.side - layer.stride) < layer.stride / 2
        below = next((other for other in layers if other.name == layer.below), None)
        assert below is None or (below.side == layer.side and layers.index(below) < layers.index(layer))


def test_independent_layers_are_not_paired() -> None:
    layers, _ = inventory("squeezenet1_1", 96)
    below = {layer.name: layer.below for layer in layers}
    assert below["features.12.expand1x1"] == below["features.12.expand3x3"] == "features.12.squeeze"
    assert {layer.activation for layer in layers if layer.kind == "Conv2d"} == {"ReLU"}


def test_the_papers_network_has_the_papers_layers() -> None:
    layers, size = inventory("caffenet")
    found = {layer.name: layer for layer in layers}
    assert size == 227 and (found["conv5"].channels, found["conv5"].side, found["conv5"].below) == (256, 13, "conv4")
    assert [found[name].stride for name in ("conv1", "conv2", "conv5")] == [4, 8, 16]


class Rearranged(nn.Module):
    """A block's map that is then normalised and rearranged, as in transformers."""

    def __init__(self) -> None:
        super().__init__()
        self.low, self.high = nn.Conv2d(3, 4, 3, 2, 1), nn.Conv2d(4, 4, 3, 1, 1)
        self.norm, self.turn = nn.LayerNorm(4), nn.Unflatten(2, (112, 112))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        tokens: torch.Tensor = self.norm(self.high(self.low(x)).flatten(2).transpose(1, 2))
        turned: torch.Tensor = self.turn(tokens.transpose(1, 2))
        return turned.mean(dim=(2, 3))


def test_norms_and_rearrangements_are_not_layers() -> None:
    layers, _ = inventory(f"{__name__}.Rearranged")
    assert [(layer.name, layer.below) for layer in layers] == [("low", ""), ("high", "low")]
    layers, _ = inventory("timm/test_vit")
    assert (layers[-1].name, layers[-1].below) == ("blocks.5", "blocks.5.mlp.fc2")
    layers, _ = inventory("swin_t")
    assert layers[-1].name == "features.7.1"
    assert not [layer for layer in layers if "norm" in layer.name.rpartition(".")[2] or "permute" in layer.name]
