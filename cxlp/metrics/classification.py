"""The metrics of a benchmark, as torchmetrics objects (right under DDP, never the mean of batch means).

Average precision ranks images by raw scores, whatever their range: nothing here takes a sigmoid.
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

#: What the best checkpoint and C are chosen by, on training images: by whether an image may show several classes.
SELECTION = {False: "accuracy", True: "mAP"}

#: The kinds of average precision, by what their names end in; the mean of the last one is ``mAP``. Published "VOC07
#: mAP" may be any of the three, so they are reported side by side.
SUFFIXES: dict[str, Kind] = {"_11point": "11point", "_allpoint": "allpoint", "": "uninterpolated"}


def single_label_metrics(classes: int, prefix: str) -> MetricCollection:
    """Top-1 accuracy over images, and the mean over classes of each class's accuracy.

    Args:
        classes: Number of classes.
        prefix: Such as ``"test/"``.
    """
    return MetricCollection(
        {"accuracy": MulticlassAccuracy(classes, average="micro"), "mean_class_accuracy": MeanClassAccuracy(classes)},
        prefix=prefix,
    )


def multi_label_metrics(classes: int, prefix: str) -> MetricCollection:
    """Mean average precision of each kind: ``mAP_11point``, ``mAP_allpoint``, ``mAP`` (un-interpolated).

    Args:
        classes: Number of classes.
        prefix: Such as ``"test/"``.
    """
    metrics: dict[str, Metric | MetricCollection] = {
        f"mAP{suffix}": RankingMetric(classes, partial(mean_average_precision, kind=kind))
        for suffix, kind in SUFFIXES.items()
    }
    # No compute groups: the lists hold the same tensors anyhow, and the groups copy them all at each items().
    return MetricCollection(metrics, prefix=prefix, compute_groups=False)


def confusion_matrix(classes: int) -> MulticlassConfusionMatrix:
    """Counts ``(true class, predicted class)``."""
    return MulticlassConfusionMatrix(classes)


def per_class_average_precision(classes: int) -> MetricCollection:
    """Average precision of each class ``(classes,)`` by each kind, and interpolated precision.

    They are called ``AP_11point``, ``AP_allpoint``, ``AP``; and ``curves``, see :func:`precision_curves`.
    """
    metrics: dict[str, Metric | MetricCollection] = {
        f"AP{suffix}": RankingMetric(classes, partial(average_precision, kind=kind))
        for suffix, kind in SUFFIXES.items()
    }
    metrics["curves"] = RankingMetric(classes, precision_curves)
    return MetricCollection(metrics, compute_groups=False)


class MeanClassAccuracy(Metric):
    """Mean over the classes that have images of the share of each class's images that are recognised.

    A class without images has no accuracy, even where other classes' images are taken for it, so it is
    left out of the mean (torchmetrics' macro accuracy counts it as 0). NaN without any image.

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
        """Count a batch: scores ``(B, classes)``, class indices ``(B,)``."""
        right = labels[scores.argmax(dim=1) == labels]
        self.images += torch.bincount(labels, minlength=self.classes)
        self.right += torch.bincount(right, minlength=self.classes)

    def compute(self) -> Tensor:
        """Return a scalar in [0, 1]."""
        there = self.images > 0
        return (self.right[there] / self.images[there]).mean()


class RankingMetric(Metric):
    """A function of all scores and labels, over all images of all ranks.

    Args:
        classes: Number of classes K.
        function: Takes scores ``(n, K)`` and labels ``(n, K)`` of {1, -1, 0}, such as :func:`average_precision`.
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
        """Keep a batch.

        Args:
            scores: ``(B, K)``, any real numbers; kept as float32.
            labels: ``(B, K)``: 1 present, -1 absent, 0 ignored.

        Raises:
            CxlpError: If the shapes are others.
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
        # torchmetrics gathers a tensor of another shape and type in place of an empty list, which breaks the
        # collective: a rank without images contributes no rows of the right shape and type.
        if not len(self.scores):
            empty = torch.zeros(0, self.classes, device=self.device)
            self.scores, self.labels = [empty], [empty.to(torch.int8)]
        super().sync(*args, **kwargs)

    def compute(self) -> Tensor:
        """Return the function's value, as float32: some devices know no float64."""
        found = self.function(dim_zero_cat(self.scores).cpu(), dim_zero_cat(self.labels).cpu())
        return torch.as_tensor(found).to(self.device, torch.float32)
