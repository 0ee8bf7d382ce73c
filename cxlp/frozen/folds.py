"""Classifiers that have not seen the image that they score."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from cxlp.utils.distributed import from_rank_zero


@dataclass(frozen=True, repr=False)
class FoldClassifiers:
    """For each fold of the training images, SVMs that were fitted to all others.

    Where there are more dimensions than images, SVMs separate the images that they were fitted to, whatever the
    features are: the loss on these images says little of what is wrong with the features. Scored by the SVMs that leave
    its fold out, an image has the residuals of a new one, until the backbone has learnt its label.

    Of F folds, K classes, D features and n images; takes ``4 F K D`` bytes, and as much time as F classifiers.

    Attributes:
        weight: ``(F, K, D)``.
        bias: ``(F, K)``.
        fold: ``(n,)``, int64: which one each image is in.
    """

    weight: Tensor
    bias: Tensor
    fold: Tensor

    def __repr__(self) -> str:
        folds, classes, features = self.weight.shape
        return (
            f"FoldClassifiers({folds} folds of {len(self.fold):,} images: {classes:,} classes, {features:,} features)"
        )

    def __call__(self, features: Tensor, positions: Tensor) -> Tensor:
        """Score images: features ``(B, D)`` at places ``(B,)`` among the n ``-> (B, K)``."""
        folds, classes = self.bias.shape
        with torch.autocast(features.device.type, enabled=False):  # as the network's own classifier
            # All folds' scores rather than each image's own: no copy of weights, and nothing that waits for a GPU.
            scores = F.linear(features.to(self.weight.dtype), self.weight.flatten(0, 1), self.bias.flatten())
        rows = torch.arange(len(features), device=features.device)
        own: Tensor = scores.view(-1, folds, classes)[rows, self.fold[positions]]
        return own

    def scaled(self, scale: float) -> "FoldClassifiers":
        """Multiply all scores, the same on each rank."""
        return FoldClassifiers(from_rank_zero(scale * self.weight), from_rank_zero(scale * self.bias), self.fold)

    def to(self, device: torch.device) -> "FoldClassifiers":
        """Move it."""
        return FoldClassifiers(self.weight.to(device), self.bias.to(device), self.fold.to(device))
