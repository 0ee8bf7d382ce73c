"""A network made for tests, and the formula of its normalisation."""

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

# A network made for tests: 48 channels under 192, on 64 x 64 pixels 8x8 under 4x4, or both 4x4; on 32 x 32 both 2x2.
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
    """Make a network with random weights; without a head, of cross-layer pooling with a PCA to 6."""
    return Network(Backbone.from_config(backbone), head or CrossLayerPooling(pca_dim=6), classes, **options).eval()


def randomise(network: Network) -> Network:
    """Fill what starts at zero, so that a loss of it shows."""
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
    """Write what prediction needs of a run's checkpoint; the classifier, if there is one, gets opinions."""
    if network.classifier is not None:
        nn.init.normal_(network.classifier.weight)
    state = {f"network.{key}": value for key, value in network.state_dict().items()}
    image = {"size": network.test_size, "aspect": aspect, "boxes": boxes}
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save({"state_dict": state, "cxlp": {"network": network.spec(), "image": image}}, path)
    return path
