"""cxlp: cross-convolutional-layer pooling for PyTorch Lightning."""

import importlib
from typing import TYPE_CHECKING

from cxlp.version import __version__

if TYPE_CHECKING:
    from cxlp.deploy.predictor import Prediction, Predictor, load
    from cxlp.heads.cross_layer import CrossLayerPooling, cross_layer_pooling
    from cxlp.models.checkpoint import load_network
    from cxlp.models.network import Network

__all__ = [
    "CrossLayerPooling",
    "Network",
    "Prediction",
    "Predictor",
    "__version__",
    "cross_layer_pooling",
    "load",
    "load_network",
]

_HOMES = {
    "CrossLayerPooling": "cxlp.heads.cross_layer",
    "Network": "cxlp.models.network",
    "Prediction": "cxlp.deploy.predictor",
    "Predictor": "cxlp.deploy.predictor",
    "cross_layer_pooling": "cxlp.heads.cross_layer",
    "load": "cxlp.deploy.predictor",
    "load_network": "cxlp.models.checkpoint",
}


def __getattr__(name: str) -> object:
    """Import on first use: torch takes seconds, which commands and worker processes without it need not spend."""
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'cxlp' has no attribute {name!r}")
