"""cxlp: cross-convolutional-layer pooling for PyTorch Lightning."""

__version__ = "0.1.0"
