"""Backbones with random weights, and the outputs of layers in whole networks."""

from pathlib import Path
from typing import Any

import timm
import torch
from torch import Tensor, nn

from cxlp.backbones.backbone import Backbone

SQUEEZE = ("features.11", "features.12")


def build(name: str, layers: tuple[str, ...] = SQUEEZE, **options: Any) -> Backbone:
    return Backbone(name, layers, **{"weights": None, **options}).eval()


def hooked(model: nn.Module, layer: str, images: Tensor) -> Tensor:
    seen: list[Tensor] = []
    model.get_submodule(layer).register_forward_hook(lambda _m, _i, output: seen.append(output.clone()))
    with torch.no_grad():
        model.eval()(images)
    return seen[0]


def own_weights(name: str, layers: tuple[str, str], folder: Path) -> tuple[nn.Module, Backbone]:
    """Return a timm network with random weights, and a backbone with the same weights."""
    whole = timm.create_model(name, pretrained=False).eval()
    torch.save(whole.state_dict(), folder / "weights.pth")
    return whole, build(f"timm/{name}", layers, weights=str(folder / "weights.pth"))


def normalised(backbone: Backbone, images: Tensor) -> Tensor:
    return (images - backbone.mean) / backbone.std
