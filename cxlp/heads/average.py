"""Global average pooling, the baseline."""

import torch
from torch import Tensor, nn

from cxlp.heads.cross_layer import local_vectors
from cxlp.heads.normalisation import Normalise, full_precision


class AveragePooling(nn.Module):
    """Global average pooling with the same normalisation: the baseline to compare with.

    Args:
        channels: Channels C of the map.
        normalise: What follows; the map's mean counts as one pooling channel.
    """

    def __init__(self, channels: int, normalise: nn.Module | None = None) -> None:
        super().__init__()
        self.normalise = Normalise() if normalise is None else normalise
        self.out_features = channels

    def forward(self, features: Tensor, views: int = 1) -> Tensor:
        """``(B * V, C, H, W) -> (B, C)``, the mean over V consecutive maps, too; float32 for half inputs."""
        with torch.autocast(features.device.type, enabled=False):
            pooled = local_vectors(full_precision(features), views).mean(dim=1, keepdim=True)  # (B, 1, C)
        vector: Tensor = self.normalise(pooled)
        return vector
