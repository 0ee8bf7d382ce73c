"""Bilinear pooling: cross-layer pooling of one layer under itself."""

from collections.abc import Sequence
from typing import ClassVar

from torch import Tensor

from cxlp.heads.base import Shape
from cxlp.heads.cross_layer import CrossLayerPooling
from cxlp.heads.operator import Padding
from cxlp.heads.views import Views


class BilinearPooling(CrossLayerPooling):
    """Bilinear pooling of a layer (B-CNN, Lin et al., ICCV 2015), in full, low-rank or compact form.

    The layer's activations ``x_i`` pool its own local features, perhaps projected by a PCA: ::

        P = sum_i x_i (W x_i + b)^T

    With ``pca_dim=None`` that is B-CNN's ``sum_i x_i x_i^T``. For ``guide_dim`` and ``sketch`` (compact bilinear
    pooling, Gao et al., CVPR 2016) see :class:`~cxlp.heads.cross_layer.CrossLayerPooling`.

    Args:
        pca_dim, size, stride, padding, channels, guide_dim, sketch, centre, whiten: As of cross-layer pooling, whose
            guide is the map itself here.
        spectral, zscore, channel_l2, sign, sqrt, second_root, l2: The normalisation, see
            :class:`~cxlp.heads.cross_layer.CrossLayerPooling`.
        layers: The layer; ``None``: the backbone's last.
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
        """Make the projections and the sketch; the layer is its own guide."""
        super().build([shapes[0], shapes[0]])

    def select(self, *maps: Tensor) -> tuple[Tensor, Tensor]:
        """Give the map twice, the second time perhaps its first channels only."""
        return super().select(maps[0], maps[0])
