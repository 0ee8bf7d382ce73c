"""What encodings of one layer share: each place of its map is a local feature, perhaps reduced by PCA."""

import torch
from torch import Tensor, nn

from cxlp.heads.cross_layer import Align, Padding, local_vectors, project
from cxlp.heads.normalisation import Normalise, full_precision
from cxlp.utils.errors import CxlpError


class LocalEncoding(nn.Module):
    """Encodes the local features of one layer's maps, all views of an image together.

    Args:
        channels: Channels C of the map.
        pca_dim: Size p of a projected local feature; ``None``: no projection.
        normalise: What follows; signed square root and L2 if not given.

    Attributes:
        projection: The PCA as a 1 x 1 convolution, or ``None``.
        local_dim: C.
        out_features: Length of the vector.
    """

    # Of the sub-arrays that are local features, as CrossLayerPooling has them.
    size, stride = 1, 1
    padding: Padding = "valid"
    align: Align = "strict"
    out_features: int

    def __init__(self, channels: int, pca_dim: int | None, normalise: nn.Module | None = None) -> None:
        super().__init__()
        if pca_dim is not None and not 1 <= pca_dim <= channels:
            raise CxlpError(
                f"model.network.pooling.pca_dim is {pca_dim}, but the layer has {channels} channels: choose 1 to "
                f"{channels}"
            )
        self.local_dim = channels
        self.dim = pca_dim or channels
        self.projection = None if pca_dim is None else nn.Conv2d(channels, pca_dim, 1)
        self.normalise = Normalise() if normalise is None else normalise

    def places(self, height: int, width: int) -> int:
        """Count the local features of a map."""
        return height * width

    def forward(self, features: Tensor, views: int = 1) -> Tensor:
        """Encode and normalise.

        Args:
            features: ``(B * V, C, H, W)``.
            views: V, how many consecutive maps belong to one image: their local features are encoded together.

        Returns:
            ``(B, out_features)``, float32 for half inputs.
        """
        with torch.autocast(features.device.type, enabled=False):
            maps = full_precision(features) if self.projection is None else project(self.projection, features)
            vector: Tensor = self.normalise(self.encode(local_vectors(maps, views)))
            return vector

    def encode(self, x: Tensor) -> Tensor:
        """Encode projected local features ``(B, N, p)`` into ``(B, K, d)``, with ``K d = out_features``."""
        raise NotImplementedError
