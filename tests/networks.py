"""A small network for tests, and its normalisation formula."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from cxlp.backbones.backbone import Backbone, BackboneConfig
from cxlp.heads import CrossLayerPooling, Head
from cxlp.models.network import Network

# 48 and 192 channels; for 64 x 64 pixels, maps of 8x8 and 4x4, or both 4x4; for 32 x 32 pixels, both 2x2.
BACKBONE = BackboneConfig("timm/test_resnet", ("layer3.0.conv1", "layer3"), weights=None, image_size=64)
EVEN = replace(BACKBONE, layers=("layer3.0.conv2", "layer3"))
SMALL = replace(EVEN, image_size=32)
CLASSES = ["gull", "tern", "wren"]


def build(
    head: Head | Sequence[Head] | None = None,
    backbone: BackboneConfig = EVEN,
    classes: Sequence[str] | None = None,
    **options: Any,
) -> Network:
    """Build a network with random weights; the default head is cross-layer pooling with a PCA to 6."""
    return Network(Backbone.from_config(backbone), head or CrossLayerPooling(pca_dim=6), classes, **options).eval()


def randomise(network: Network) -> Network:
    """Randomise parameters that are initially zero, so that losing them is noticed."""
    assert network.classifier is not None
    nn.init.normal_(network.classifier.weight)
    nn.init.normal_(network.classifier.bias)
    return network


def rooted(x: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    root: np.ndarray[Any, Any] = np.sign(x) * np.sqrt(np.abs(x))
    root = root.reshape(len(x), -1)
    root /= np.linalg.norm(root, axis=1, keepdims=True)
    return root


def write_checkpoint(path: Path, network: Network, aspect: str = "warp", boxes: bool = False) -> Path:
    """Write the part of a run's checkpoint that prediction needs, with a random classifier if there is one."""
    if network.classifier is not None:
        nn.init.normal_(network.classifier.weight)
    state = {f"network.{key}": value for key, value in network.state_dict().items()}
    image = {"size": network.test_size, "aspect": aspect, "boxes": boxes}
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save({"state_dict": state, "cxlp": {"network": network.spec(), "image": image}}, path)
    return path
