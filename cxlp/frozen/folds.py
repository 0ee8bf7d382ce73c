"""The classifiers of a cross-validation, which score each image without having been fitted to it."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from cxlp.utils.distributed import from_rank_zero


@dataclass(frozen=True, repr=False)
class FoldClassifiers:
    """For each fold of the training images, SVMs fitted to all other folds.

    If there are more dimensions than images, SVMs separate the images that they are fitted to, whatever the features
    are. The loss on these images then tells little about the features. An image that is scored by the SVMs fitted
    without its fold has the residuals of a new image, until the backbone has learnt its label.

    With F folds, K classes, D features and n images, the classifiers take ``4 F K D`` bytes, and as much time as F
    classifiers.

    Attributes:
        weight: ``(F, K, D)``.
        bias: ``(F, K)``.
        fold: ``(n,)``, int64: the fold of each image.
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
        """Return scores ``(B, K)`` of features ``(B, D)`` of images at positions ``(B,)`` among the n."""
        folds, classes = self.bias.shape
        with torch.autocast(features.device.type, enabled=False):  # as in the network's own classifier
            # Score by all folds, then select: this copies no weights and does not synchronise with a GPU.
            scores = F.linear(features.to(self.weight.dtype), self.weight.flatten(0, 1), self.bias.flatten())
        rows = torch.arange(len(features), device=features.device)
        own: Tensor = scores.view(-1, folds, classes)[rows, self.fold[positions]]
        return own

    def scaled(self, scale: float) -> "FoldClassifiers":
        """Return the classifiers with all scores multiplied by ``scale``, equal to rank 0's on each rank."""
        return FoldClassifiers(from_rank_zero(scale * self.weight), from_rank_zero(scale * self.bias), self.fold)

    def to(self, device: torch.device) -> "FoldClassifiers":
        """Return the classifiers on another device."""
        return FoldClassifiers(self.weight.to(device), self.bias.to(device), self.fold.to(device))
