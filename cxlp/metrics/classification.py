"""The metrics of a benchmark, as torchmetrics objects: exact with DDP, and never the mean of batch means.

Average precision ranks images by raw scores of any range; no sigmoid is applied.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torchmetrics import Metric, MetricCollection
from torchmetrics.classification import MulticlassAccuracy, MulticlassConfusionMatrix
from torchmetrics.utilities import dim_zero_cat

from cxlp.metrics.average_precision import Kind, average_precision, mean_average_precision, precision_curves
from cxlp.utils.errors import CxlpError

#: The metric that chooses the best checkpoint and C on training images. Key: whether an image may have several labels.
SELECTION = {False: "accuracy", True: "mAP"}

#: The kinds of average precision by the suffix of their names; the mean of the last one is ``mAP``. Published "VOC07
#: mAP" may be any of the three, so all are reported.
SUFFIXES: dict[str, Kind] = {"_11point": "11point", "_allpoint": "allpoint", "": "uninterpolated"}


def single_label_metrics(classes: int, prefix: str) -> MetricCollection:
    """Return the metrics for one label per image: top-1 ``accuracy`` and ``mean_class_accuracy``.

    Args:
        classes: Number of classes.
        prefix: Prefix of the names, such as ``"test/"``.
    """
    return MetricCollection(
        {"accuracy": MulticlassAccuracy(classes, average="micro"), "mean_class_accuracy": MeanClassAccuracy(classes)},
        prefix=prefix,
    )


def multi_label_metrics(classes: int, prefix: str) -> MetricCollection:
    """Return the mean average precision of each kind: ``mAP_11point``, ``mAP_allpoint``, ``mAP`` (uninterpolated).

    Args:
        classes: Number of classes.
        prefix: Prefix of the names, such as ``"test/"``.
    """
    metrics: dict[str, Metric | MetricCollection] = {
        f"mAP{suffix}": RankingMetric(classes, partial(mean_average_precision, kind=kind))
        for suffix, kind in SUFFIXES.items()
    }
    # Compute groups would copy all tensors at each items(), while the lists share the same tensors without them.
    return MetricCollection(metrics, prefix=prefix, compute_groups=False)


def confusion_matrix(classes: int) -> MulticlassConfusionMatrix:
    """Return a metric of counts ``(true class, predicted class)``."""
    return MulticlassConfusionMatrix(classes)


def per_class_average_precision(classes: int) -> MetricCollection:
    """Return each class's average precision of each kind, and its precision curve.

    The metrics are ``AP_11point``, ``AP_allpoint`` and ``AP``, of shape ``(classes,)``, and ``curves``, see
    :func:`precision_curves`.
    """
    metrics: dict[str, Metric | MetricCollection] = {
        f"AP{suffix}": RankingMetric(classes, partial(average_precision, kind=kind))
        for suffix, kind in SUFFIXES.items()
    }
    metrics["curves"] = RankingMetric(classes, precision_curves)
    return MetricCollection(metrics, compute_groups=False)


class MeanClassAccuracy(Metric):
    """Mean of the accuracies (recalls) of the classes that have images.

    A class without images has no accuracy and is left out of the mean, even if images of other classes are predicted as
    this class; torchmetrics' macro accuracy counts it as 0. The result is NaN without any image.

    Args:
        classes: Number of classes.
    """

    is_differentiable = False
    higher_is_better = True
    full_state_update = False
    images: Tensor
    right: Tensor

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.classes = classes
        self.add_state("images", torch.zeros(classes, dtype=torch.long), dist_reduce_fx="sum")
        self.add_state("right", torch.zeros(classes, dtype=torch.long), dist_reduce_fx="sum")

    def update(self, scores: Tensor, labels: Tensor) -> None:
        """Count the images of a batch: scores ``(B, classes)``, class indices ``(B,)``."""
        right = labels[scores.argmax(dim=1) == labels]
        self.images += torch.bincount(labels, minlength=self.classes)
        self.right += torch.bincount(right, minlength=self.classes)

    def compute(self) -> Tensor:
        """Return the mean class accuracy, a scalar in [0, 1]."""
        there = self.images > 0
        return (self.right[there] / self.images[there]).mean()


class RankingMetric(Metric):
    """Applies a function to the scores and labels of all images of all ranks.

    Args:
        classes: Number of classes, K.
        function: A function of scores ``(n, K)`` and labels ``(n, K)`` in {1, -1, 0}, such as
            :func:`average_precision`.
    """

    is_differentiable = False
    higher_is_better = True
    full_state_update = False
    scores: list[Tensor]
    labels: list[Tensor]

    def __init__(self, classes: int, function: Callable[[Tensor, Tensor], NDArray[np.float64]]) -> None:
        super().__init__()
        self.classes, self.function = classes, function
        self.add_state("scores", [], dist_reduce_fx="cat")
        self.add_state("labels", [], dist_reduce_fx="cat")

    def update(self, scores: Tensor, labels: Tensor) -> None:
        """Store the scores and labels of a batch.

        Args:
            scores: ``(B, K)``, any real numbers; stored as float32.
            labels: ``(B, K)``: 1 present, -1 absent, 0 ignored.

        Raises:
            CxlpError: If the shapes are wrong.
        """
        if scores.shape != labels.shape or scores.shape[1:] != (self.classes,):
            raise CxlpError(
                f"average precision takes scores and labels of shape (images, {self.classes}), "
                f"not {tuple(scores.shape)} and {tuple(labels.shape)}"
            )
        self.scores.append(scores.detach().float())
        self.labels.append(labels.detach().to(torch.int8))

    def sync(self, *args: Any, **kwargs: Any) -> None:
        """Gather the images of all ranks, see torchmetrics."""
        # For an empty list, torchmetrics would gather a tensor of a different shape and dtype, which breaks the
        # collective operation. So a rank without images contributes tensors of zero rows.
        if not len(self.scores):
            empty = torch.zeros(0, self.classes, device=self.device)
            self.scores, self.labels = [empty], [empty.to(torch.int8)]
        super().sync(*args, **kwargs)

    def compute(self) -> Tensor:
        """Return the function's value as float32, because some devices do not support float64."""
        found = self.function(dim_zero_cat(self.scores).cpu(), dim_zero_cat(self.labels).cpu())
        return torch.as_tensor(found).to(self.device, torch.float32)
