"""The metrics of a benchmark, as torchmetrics objects (right under DDP, never the mean of batch means).

Average precision ranks images by raw scores, whatever their range: nothing here takes a sigmoid.
"""

from typing import Any, Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torchmetrics import Metric, MetricCollection
from torchmetrics.classification import MulticlassAccuracy, MulticlassConfusionMatrix
from torchmetrics.utilities import dim_zero_cat

from cxlp.errors import CxlpError

Kind = Literal["11point", "allpoint", "uninterpolated"]

#: What the best checkpoint and C are chosen by, on training images: by whether an image may show several classes.
SELECTION = {False: "accuracy", True: "mAP"}

# Published "VOC07 mAP" may be any of the three, so they are reported side by side.
_SUFFIXES: dict[str, Kind] = {"_11point": "11point", "_allpoint": "allpoint", "": "uninterpolated"}


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
    metrics = {f"mAP{suffix}": MeanAveragePrecision(classes, kind) for suffix, kind in _SUFFIXES.items()}
    # No compute groups: the lists hold the same tensors anyhow, and the groups copy them all at each items().
    return MetricCollection(metrics, prefix=prefix, compute_groups=False)  # type: ignore[arg-type]


def confusion_matrix(classes: int) -> MulticlassConfusionMatrix:
    """Counts ``(true class, predicted class)``."""
    return MulticlassConfusionMatrix(classes)


def per_class_average_precision(classes: int) -> MetricCollection:
    """What :func:`precision_curves` gives, as ``curves``, and average precision of each class ``(classes,)``, by kind.

    The kinds' names are ``AP_11point``, ``AP_allpoint``, ``AP``.
    """
    metrics: dict[str, Metric] = {f"AP{suffix}": AveragePrecision(classes, kind) for suffix, kind in _SUFFIXES.items()}
    metrics["curves"] = PrecisionCurves(classes, "allpoint")
    return MetricCollection(metrics, compute_groups=False)  # type: ignore[arg-type]


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


class AveragePrecision(Metric):
    """Average precision of each class over all images of all ranks, see :func:`average_precision`.

    Args:
        classes: Number of classes K.
        kind: Which of the three definitions.
    """

    is_differentiable = False
    higher_is_better = True
    full_state_update = False
    scores: list[Tensor]
    labels: list[Tensor]

    def __init__(self, classes: int, kind: Kind) -> None:
        super().__init__()
        self.classes, self.kind = classes, kind
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
        self._keep(scores.detach().float(), labels.detach().to(torch.int8))

    def sync(self, *args: Any, **kwargs: Any) -> None:
        """Gather the images of all ranks, see torchmetrics."""
        # In the place of an empty list torchmetrics gathers a tensor of another shape and type, which breaks
        # the collective: a rank without images says what its rows would be like.
        if not len(self.scores):
            empty = torch.zeros(0, self.classes, device=self.device)
            self._keep(empty, empty.to(torch.int8))
        super().sync(*args, **kwargs)

    def compute(self) -> Tensor:
        """Return ``(K,)``, NaN for classes without positives."""
        return torch.from_numpy(self._per_class()).to(self.device, torch.float32)

    def _keep(self, scores: Tensor, labels: Tensor) -> None:
        self.scores.append(scores)
        self.labels.append(labels)

    def _per_class(self) -> NDArray[np.float64]:
        scores, labels = dim_zero_cat(self.scores).cpu().numpy(), dim_zero_cat(self.labels).cpu().numpy()
        return average_precision(scores, labels, self.kind)


class MeanAveragePrecision(AveragePrecision):
    """Mean of :class:`AveragePrecision` over the classes that have positives; NaN where none has."""

    def compute(self) -> Tensor:
        """Return a scalar in [0, 1], or NaN."""
        # The mean of the float64 values; float32 for devices that know no other.
        return torch.from_numpy(self._per_class()).nanmean().to(self.device, torch.float32)


class PrecisionCurves(AveragePrecision):
    """:func:`precision_curves` over all images of all ranks: ``(K, 101)``."""

    def compute(self) -> Tensor:
        """Return ``(K, 101)``, NaN for classes without positives."""
        scores, labels = dim_zero_cat(self.scores).cpu().numpy(), dim_zero_cat(self.labels).cpu().numpy()
        return torch.from_numpy(precision_curves(scores, labels)).to(self.device, torch.float32)


def average_precision(
    scores: NDArray[Any] | Tensor, labels: NDArray[Any] | Tensor, kind: Kind = "11point"
) -> NDArray[np.float64]:
    """Average precision of each class.

    Images labelled 0 are dropped, class by class. The others are ranked by decreasing score; at each distinct
    score ``s``, the precision ``p`` and the recall ``r`` are those of the images that score at least ``s``. With
    ``P(t) = max {p : r >= t}``, the interpolated precision (0 where no recall is that high):

    - ``"11point"``: ``1/11 sum_(t = 0, .1, ..., 1) P(t)`` (Pascal VOC 2007; Everingham et al., IJCV 2010). The
      recall is compared exactly: 3 of 10 positives reach t = 0.3, which they miss in floating point.
    - ``"allpoint"``: the area under ``P`` over [0, 1] (Pascal VOC 2010 and later).
    - ``"uninterpolated"``: ``sum_j (r_j - r_(j-1)) p_j`` (scikit-learn's ``average_precision_score``).

    Images of equal score enter at once, so values depend neither on the order of images nor on how processes
    share them. The official VOC devkit puts tied images in the order of its list instead; the two interpolated
    kinds here are its value for the worst such order (the absent first), hence never above it, and equal to it
    unless a positive and a negative image tie.

    Args:
        scores: ``(n, K)``, any real numbers, infinities too. Tensors must be on the CPU.
        labels: ``(n, K)``: 1 present, -1 absent, 0 ignored (so not the {0, 1} of other libraries).
        kind: Which of the three.

    Returns:
        ``(K,)`` in [0, 1]; NaN for a class without positives, for which nothing is defined.

    Raises:
        CxlpError: If shapes differ, the kind or a label is unknown, or the score of an image that counts is NaN.
    """
    if kind not in get_args(Kind):
        raise CxlpError(f"unknown kind of average precision {kind!r}; valid: {', '.join(get_args(Kind))}")
    return np.array([_of_one_class(s, positive, kind) for s, positive in _by_class(scores, labels)])


def precision_curves(scores: NDArray[Any] | Tensor, labels: NDArray[Any] | Tensor) -> NDArray[np.float64]:
    """Interpolated precision ``P(t)`` of each class at ``t = 0, .01, ..., 1``, see :func:`average_precision`.

    Args:
        scores: As there.
        labels: As there.

    Returns:
        ``(K, 101)`` in [0, 1]; NaN for a class without positives.

    Raises:
        CxlpError: As there.
    """
    return np.array([_interpolated(s, positive, 100) for s, positive in _by_class(scores, labels)])


def _by_class(
    scores: NDArray[Any] | Tensor, labels: NDArray[Any] | Tensor
) -> list[tuple[NDArray[Any], NDArray[np.bool_]]]:
    """For each class the scores of the images that count, and which of them are positive."""
    scores, labels = np.asarray(scores), np.asarray(labels)
    if scores.ndim != 2 or scores.shape != labels.shape:
        raise CxlpError(
            f"average precision takes scores and labels of one shape (n, K), not {scores.shape} and {labels.shape}"
        )
    odd = ~np.isin(labels, (-1, 0, 1))
    if odd.any():
        raise CxlpError(f"labels must be 1 (present), -1 (absent) or 0 (ignored), not {labels[odd][0]}")
    if np.isnan(scores[labels != 0]).any():
        raise CxlpError("some scores are NaN, so images cannot be ranked: the network or its weights are broken")
    return [(s[y != 0], y[y != 0] > 0) for s, y in zip(scores.T, labels.T, strict=True)]


def _of_one_class(scores: NDArray[Any], positive: NDArray[np.bool_], kind: Kind) -> float:
    positives = int(positive.sum())
    if not positives:
        return float("nan")
    if kind == "11point":
        return float(_interpolated(scores, positive, 10).mean())
    found, precision = _ranked(scores, positive)
    more = np.diff(found, prepend=0)
    if kind == "allpoint":
        precision = np.maximum.accumulate(precision[::-1])[::-1]
    return float((more * precision).sum() / positives)


def _interpolated(scores: NDArray[Any], positive: NDArray[np.bool_], steps: int) -> NDArray[np.float64]:
    """``P(t)`` at ``t = 0, 1 / steps, ..., 1``; NaN without positives."""
    positives = int(positive.sum())
    if not positives:
        return np.full(steps + 1, np.nan)
    found, precision = _ranked(scores, positive)
    interpolated = np.maximum.accumulate(precision[::-1])[::-1]
    # found / positives >= t / steps, in integers
    reached = np.searchsorted(steps * found, np.arange(steps + 1) * positives)
    values: NDArray[np.float64] = interpolated[reached]
    return values


def _ranked(scores: NDArray[Any], positive: NDArray[np.bool_]) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """For each distinct score, highest first: positives that score at least so much, and the precision there."""
    order = np.argsort(scores)[::-1]  # in any order among equals
    ranked = scores[order]
    last = np.append(np.flatnonzero(ranked[1:] != ranked[:-1]), len(ranked) - 1)  # of each distinct score
    found = np.cumsum(positive[order])[last]
    return found, found / (last + 1)
