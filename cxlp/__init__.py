"""cxlp: cross-convolutional-layer pooling for PyTorch Lightning."""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cxlp.network import Network, load_network
    from cxlp.pooling import CrossLayerPooling, cross_layer_pooling
    from cxlp.prediction import Prediction, Predictor, load

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
__version__ = "0.1.0"

_HOMES = {
    "CrossLayerPooling": "cxlp.pooling",
    "Network": "cxlp.network",
    "Prediction": "cxlp.prediction",
    "Predictor": "cxlp.prediction",
    "cross_layer_pooling": "cxlp.pooling",
    "load": "cxlp.prediction",
    "load_network": "cxlp.network",
}


def __getattr__(name: str) -> object:
    """Import on first use: torch takes seconds, which commands and worker processes without it need not spend."""
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'cxlp' has no attribute {name!r}")
