"""The two kinds of labels, told apart by their shape, and what depends on the kind.

- One class per image: ``(n,)`` class indices.
- Any number of classes per image: ``(n, K)`` of 1 present, -1 absent, 0 unspecified. What is
  unspecified takes part in nothing: no loss, no SVM, no metric.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def as_targets(labels: Tensor, classes: int) -> Tensor:
    """Labels as one row of targets per class.

    Args:
        labels: ``(n,)`` indices or ``(n, K)`` of {1, -1, 0}.
        classes: K.

    Returns:
        ``(K, n)`` int8: 1 positive, -1 negative, 0 ignored.
    """
    if labels.ndim == 1:
        labels = 2 * F.one_hot(labels, classes) - 1  # (n, K)
    return labels.T.to(torch.int8).contiguous()


def strata(labels: Tensor, parts: int = 2) -> Tensor:
    """Groups ``(n,)`` to stratify a split by: the class; of several, the one that is rarest in ``labels``.

    Images without any class form a group of their own; a group that could not give an image to each part
    joins the largest one.

    Args:
        labels: ``(n,)`` indices (returned as they are) or ``(n, K)`` of {1, -1, 0}.
        parts: Into how many the images are to be split.
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
    """Cross-entropy of a softmax over classes, or of a sigmoid for each class.

    The sigmoids' loss is the mean over all entries, unspecified ones counting 0, rather than over
    the specified ones: so the mean of several ranks' losses is the loss of their joint batch.

    Args:
        scores: Logits ``(B, K)``.
        labels: ``(B,)`` indices; ``(B, K)`` of {1, -1, 0}; or, of mixed images, ``(B, K)`` in floating point: each
            class's share of the image, which the softmax should give.
        label_smoothing: Part of each target that is spread evenly over the possible answers, in [0, 1).

    Returns:
        A scalar.
    """
    if labels.ndim == 1 or labels.is_floating_point():
        return F.cross_entropy(scores, labels, label_smoothing=label_smoothing)
    targets = 0.5 + 0.5 * (1 - label_smoothing) * labels.to(scores.dtype)
    losses = F.binary_cross_entropy_with_logits(scores, targets, reduction="none")
    return (losses * (labels != 0)).mean()
