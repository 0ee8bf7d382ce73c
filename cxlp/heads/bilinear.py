"""Bilinear pooling: cross-layer pooling with one layer as both local features and guide."""

from collections.abc import Sequence
from typing import ClassVar

from torch import Tensor

from cxlp.heads.base import Shape
from cxlp.heads.cross_layer import CrossLayerPooling
from cxlp.heads.operator import Padding
from cxlp.heads.views import Views


class BilinearPooling(CrossLayerPooling):
    """Bilinear pooling of one layer (B-CNN, Lin et al., ICCV 2015) in full, low-rank or compact form.

    The layer's activations ``x_i`` pool the layer's own local features, optionally projected by a PCA: ::

        P = sum_i x_i (W x_i + b)^T

    With ``pca_dim=None`` this is the ``sum_i x_i x_i^T`` of B-CNN. For ``guide_dim`` and ``sketch`` (compact bilinear
    pooling, Gao et al., CVPR 2016), see :class:`~cxlp.heads.cross_layer.CrossLayerPooling`.

    Args:
        pca_dim, size, stride, padding, channels, guide_dim, sketch, centre, whiten: See
            :class:`~cxlp.heads.cross_layer.CrossLayerPooling`. The guide is the map itself.
        spectral, zscore, channel_l2, sign, sqrt, second_root, l2: The normalisation, see
            :class:`~cxlp.heads.cross_layer.CrossLayerPooling`.
        layers: The layer that is pooled; ``None``: the backbone's last layer.
        views: The views of an image whose local features are pooled together.

    Example:
        >>> import torch
        >>> head = BilinearPooling(pca_dim=None).connect((8, 13, 13))
        >>> head(torch.rand(2, 8, 13, 13)).shape
        torch.Size([2, 64])
    """

    takes: ClassVar[int] = 1

    def __init__(
        self,
        pca_dim: int | None = 500,
        size: int = 1,
        stride: int = 1,
        padding: Padding = "valid",
        channels: int | None = None,
        guide_dim: int | None = None,
        sketch: int | None = None,
        centre: bool = False,
        whiten: float = 0.0,
        spectral: bool = False,
        zscore: bool = False,
        channel_l2: bool = False,
        sign: bool = False,
        sqrt: bool = True,
        second_root: bool = False,
        l2: bool = True,
        layers: Sequence[str] | None = None,
        views: Views = Views(),
    ) -> None:
        super().__init__(
            pca_dim, size, stride, padding, "strict", channels, guide_dim, sketch,
            centre, whiten, spectral, zscore, channel_l2, sign, sqrt, second_root, l2, layers, views,
        )  # fmt: skip

    def build(self, shapes: Sequence[Shape]) -> None:
        """Create the projections and the sketch, with the layer as its own guide."""
        super().build([shapes[0], shapes[0]])

    def select(self, *maps: Tensor) -> tuple[Tensor, Tensor]:
        """Return the map as local map and, with its first ``channels`` channels only, as guide."""
        return super().select(maps[0], maps[0])
