"""Checks of a fit: errors name the image and the layer, and unusual images are fitted."""

import inspect
import warnings
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import cxlp.heads
from cxlp.backbones.backbone import Backbone
from cxlp.frozen.config import FrozenConfig
from cxlp.heads import (
    AveragePooling,
    BilinearPooling,
    Head,
)
from cxlp.models.network import Network
from cxlp.utils.errors import CxlpError
from tests.frozen.test_fit import CLASSES, cross, run_fit


class Trunk(nn.Module):
    """Two layers whose weights and biases can be damaged."""

    def __init__(self) -> None:
        super().__init__()
        self.low = nn.Sequential(nn.Conv2d(3, 8, 3, stride=2), nn.ReLU())
        self.high = nn.Sequential(nn.Conv2d(8, 6, 3, padding=1), nn.ReLU())

    def forward(self, x: Tensor) -> Tensor:
        return self.high(self.low(x))  # type: ignore[no-any-return]


def spoilt(head: Head, layer: str = "", bias: float = 0.0, scale: float = 1.0, **options: Any) -> Network:
    torch.manual_seed(0)
    trunk = Trunk()
    for name in ("low", "high") if layer == "both" else (layer,) if layer else ():
        conv = trunk.get_submodule(name)[0]  # type: ignore[index]
        nn.init.constant_(conv.bias, bias)
        conv.weight.data.mul_(scale)
    return Network(Backbone(trunk, ("low", "high"), image_size=16), head, **{"classes": CLASSES, **options}).eval()


@pytest.mark.parametrize("name", [name for name in cxlp.heads.__all__ if name != "Head"])
def test_strange_images_are_fitted_to_finite_weights(name: str, tmp_path: Path) -> None:
    head = partial(getattr(cxlp.heads, name))
    known, small = inspect.signature(getattr(cxlp.heads, name)).parameters, {"pca_dim": 4, "atoms": 3}
    head = partial(head, **{key: value for key, value in small.items() if key in known})
    images, labels = torch.rand(12, 3, 16, 16), torch.arange(12) % 3
    some_constant = torch.where(torch.arange(12).view(12, 1, 1, 1) == 3, 0.5, images)
    alone: dict[str, Any] = {"classes": ["only"]}
    cases: dict[str, tuple[Network, Tensor, Tensor]] = {
        "constant colour": (spoilt(head()), torch.full_like(images, 0.5), labels),
        "one of constant colour": (spoilt(head()), some_constant, labels),
        "duplicates": (spoilt(head()), images[:1].expand_as(images), labels),
        "a silent guide": (spoilt(head(), "high", bias=-100), images, labels),
        "all maps zero": (spoilt(head(), "both", bias=-100), images, labels),
        "one image of each class": (spoilt(head()), images[:3], labels[:3]),
        "one class": (spoilt(head(), **alone), images, 0 * labels),
        "one image": (spoilt(head(), **alone), images[:1], 0 * labels[:1]),
        "a label said": (spoilt(head(), multi_label=True), images, -torch.eye(12, 3, dtype=torch.int64)),
    }
    for case, (network, given, said) in cases.items():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # too few images for a scale, fewer clusters than atoms
            run_fit(network, tmp_path, FrozenConfig(), [torch.arange(len(given))], data=(given, said))
        assert all(bool(value.isfinite().all()) for value in network.state_dict().values()), case
        assert bool(network(given).isfinite().all()), case


@pytest.mark.parametrize(
    ("head", "layer", "values", "said"),
    [
        (AveragePooling(), "low", {"bias": float("nan")}, "layer 'high' of Trunk gives NaN .* 12 training images, the"),
        (cross(pca_dim=4), "low", {"bias": float("inf")}, "layer 'low' of Trunk gives NaN or infinity for 12 training"),
        (cross(pca_dim=4), "low", {"scale": 1e25}, "local features of the PCA are NaN, infinite, or too large"),
        (
            BilinearPooling(None),
            "low",
            {"scale": 1e25},
            "pooled features are NaN, infinite, or too large .* 12 training",
        ),
        (AveragePooling(l2=False, sqrt=False), "low", {"scale": 1e25}, "pooled features are .* 12 training"),
    ],
)
def test_features_that_are_not_finite_are_refused(
    tmp_path: Path, head: Head, layer: str, values: dict[str, float], said: str
) -> None:
    data = torch.rand(12, 3, 16, 16), torch.arange(12) % 3
    with pytest.raises(CxlpError, match=said):
        run_fit(spoilt(head, layer, **values), tmp_path, FrozenConfig(), [torch.arange(12)], data=data)


def test_an_image_with_nonfinite_maps_is_named(tmp_path: Path) -> None:
    images, labels = torch.rand(12, 3, 16, 16), torch.arange(12) % 3
    images[5, 1, 3, 3] = float("nan")
    with pytest.raises(CxlpError, match=r"gives NaN or infinity for training image 5: .*--trainer\.precision 32-true"):
        run_fit(spoilt(AveragePooling()), tmp_path, FrozenConfig(), torch.arange(12).chunk(2), data=(images, labels))


@pytest.mark.parametrize(
    ("labels", "several", "said"),
    [
        (torch.arange(12) % 6, False, r"label of image 3 is 3: a network of 3 classes .* \(B,\) of 0\.\.2"),
        (torch.arange(12) % 3 - 1, False, "label of image 0 is -1"),
        ((torch.arange(12) % 3).float(), False, r"labels are torch\.float32 of shape \(12,\): .* whole numbers"),
        (torch.eye(12, 3).long(), False, r"of shape \(12, 3\): .*; or \(B, 3\) of 1, -1 and 0, with multi_label=True"),
        (torch.arange(12) % 3, True, r"of shape \(12,\): .*; or \(B,\) of 0\.\.2"),
        (2 * torch.eye(12, 3).long() - 1 + torch.eye(12, 3).long(), True, r"label of image 0 is \[2, -1, -1\]"),
        (torch.eye(12, 3).long(), True, "absent .* write -1"),
    ],
)
def test_labels_that_are_not_the_networks_are_refused(tmp_path: Path, labels: Tensor, several: bool, said: str) -> None:
    network = spoilt(AveragePooling(), multi_label=several)
    with pytest.raises(CxlpError, match=said):
        run_fit(network, tmp_path, FrozenConfig(), [torch.arange(12)], data=(torch.rand(12, 3, 16, 16), labels))


def test_no_images_are_refused(tmp_path: Path) -> None:
    with pytest.raises(CxlpError, match="there are no training images"):
        run_fit(spoilt(AveragePooling()), tmp_path, data=(torch.rand(0, 3, 16, 16), torch.zeros(0).long()))
