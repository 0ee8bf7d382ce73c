"""Pooling heads, which turn feature maps into one vector per image; one file per head."""

from cxlp.heads.average import AveragePooling
from cxlp.heads.base import Head
from cxlp.heads.bilinear import BilinearPooling
from cxlp.heads.covariance import CovariancePooling
from cxlp.heads.cross_layer import CrossLayerPooling
from cxlp.heads.fisher_vector import FisherVector, SparseFisherVector
from cxlp.heads.trained_guide import TrainedGuidePooling

__all__ = [
    "AveragePooling",
    "BilinearPooling",
    "CovariancePooling",
    "CrossLayerPooling",
    "FisherVector",
    "Head",
    "SparseFisherVector",
    "TrainedGuidePooling",
]
