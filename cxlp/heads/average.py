"""Global average pooling, the baseline."""

from collections.abc import Sequence

import torch
from torch import Tensor

from cxlp.heads.base import Head, Shape
from cxlp.heads.evidence import effective_weights
from cxlp.heads.normalisation import Normalise, full_precision
from cxlp.heads.projection import local_vectors
from cxlp.heads.views import Views


class AveragePooling(Head):
    """Global average pooling with the normalisation of the other heads, as a baseline.

    Args:
        zscore, sign, sqrt, l2: The normalisation, see :class:`~cxlp.heads.normalisation.Normalise`.
        layers: The layer that is pooled; ``None``: the backbone's last layer.
        views: The views of an image that are averaged together.

    Attributes:
        out_features: Number C of channels of the map.

    Example:
        >>> head = AveragePooling(sqrt=False).connect((8, 13, 13))
        >>> head(torch.rand(2, 8, 13, 13)).shape
        torch.Size([2, 8])
    """

    def __init__(
        self,
        zscore: bool = False,
        sign: bool = False,
        sqrt: bool = True,
        l2: bool = True,
        layers: Sequence[str] | None = None,
        views: Views = Views(),
    ) -> None:
        super().__init__(layers, views)
        self.zscore, self.sign, self.sqrt, self.l2 = zscore, sign, sqrt, l2
        self.normalise = Normalise(zscore=zscore, sign=sign, sqrt=sqrt, l2=l2)

    def build(self, shapes: Sequence[Shape]) -> None:
        """Set ``out_features`` to the number of channels."""
        self.out_features = shapes[0][0]

    def forward(self, features: Tensor, views: int = 1) -> Tensor:
        """Average over places and V consecutive maps: ``(B * V, C, H, W) -> (B, C)``; float32 for half inputs."""
        with torch.autocast(features.device.type, enabled=False):
            pooled = local_vectors(full_precision(features), views).mean(dim=1, keepdim=True)  # (B, 1, C)
        vector: Tensor = self.normalise(pooled)
        return vector

    def explain(self, maps: Sequence[Tensor], weights: Tensor) -> tuple[Tensor, Tensor]:
        """Split a score over channels and places, see :mod:`cxlp.heads.evidence`. The activations are the map."""
        (activations,) = maps  # (V, C, h, w)
        pooled = activations.mean(dim=(0, 2, 3))[None]  # (1, C)
        effective = effective_weights(self.normalise, pooled, weights[None]).view(1, -1, 1, 1)
        return activations * effective / (activations.numel() / activations.shape[1]), activations
