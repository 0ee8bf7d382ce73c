"""Single-label and multi-label targets, which differ in their shape.

- One class per image: ``(n,)`` class indices.
- Any number of classes per image: ``(n, K)`` with 1 for present, -1 for absent and 0 for unspecified. Unspecified
  labels are ignored by losses, SVMs and metrics.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def as_targets(labels: Tensor, classes: int) -> Tensor:
    """Convert labels to one row of binary targets per class.

    Args:
        labels: ``(n,)`` indices or ``(n, K)`` of {1, -1, 0}.
        classes: Number K of classes.

    Returns:
        ``(K, n)`` int8: 1 positive, -1 negative, 0 ignored.
    """
    if labels.ndim == 1:
        labels = 2 * F.one_hot(labels, classes) - 1  # (n, K)
    return labels.T.to(torch.int8).contiguous()


def strata(labels: Tensor, parts: int = 2) -> Tensor:
    """Return the groups ``(n,)`` for a stratified split.

    The group of an image is its class. An image with several classes belongs to the group of its rarest class. Images
    without any class form a separate group. Groups with fewer images than parts are merged with the largest group.

    Args:
        labels: ``(n,)`` indices, which are returned unchanged, or ``(n, K)`` of {1, -1, 0}.
        parts: Number of parts of the split.
    """
    if labels.ndim == 1:
        return labels
    present = labels > 0  # (n, K)
    counts = present.sum(dim=0)
    rarity = torch.where(present, counts, len(labels) + 1)  # (n, K)
    groups = torch.where(present.any(dim=1), rarity.argmin(dim=1), labels.shape[1])
    sizes = torch.bincount(groups)
    return torch.where(sizes[groups] >= parts, groups, sizes.argmax())


def classification_loss(scores: Tensor, labels: Tensor, label_smoothing: float = 0.0) -> Tensor:
    """Compute the cross-entropy of a softmax over classes, or of a sigmoid for each class.

    The loss of sigmoids is the mean over all entries, where unspecified labels count as a loss of 0. With a mean over
    the specified entries only, the mean of the losses of several ranks would differ from the loss of their joint batch.

    Args:
        scores: Logits ``(B, K)``.
        labels: ``(B,)`` indices, ``(B, K)`` of {1, -1, 0}, or, for mixed images, ``(B, K)`` in floating point: target
            probabilities of the softmax, the share of each class in the image.
        label_smoothing: Label smoothing factor in [0, 1).

    Returns:
        A scalar.
    """
    if labels.ndim == 1 or labels.is_floating_point():
        return F.cross_entropy(scores, labels, label_smoothing=label_smoothing)
    targets = 0.5 + 0.5 * (1 - label_smoothing) * labels.to(scores.dtype)
    losses = F.binary_cross_entropy_with_logits(scores, targets, reduction="none")
    return (losses * (labels != 0)).mean()
