"""cxlp: cross-convolutional-layer pooling for PyTorch Lightning."""

from cxlp.network import Network, load_network
from cxlp.pooling import CrossLayerPooling, cross_layer_pooling

__all__ = ["CrossLayerPooling", "Network", "__version__", "cross_layer_pooling", "load_network"]
__version__ = "0.1.0"
