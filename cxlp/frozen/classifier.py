"""What a cross-validation tells: C, and the scale of the logits."""

import warnings
from collections.abc import Sequence
from typing import Any, Literal, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar
from sklearn.model_selection import StratifiedKFold
from torch import Tensor

from cxlp.frozen.folds import FoldClassifiers
from cxlp.metrics.average_precision import average_precision
from cxlp.utils.labels import classification_loss, strata

Array = NDArray[np.floating[Any]]


class HeldOut(Protocol):
    """Cross-validates SVMs; what it finds is the same on each rank. All ranks call it together."""

    def held_out(self, costs: Sequence[float]) -> dict[float, Array]:
        """Score each row by SVMs that leave its fold out: ``(n, classes)`` for each cost C."""


class Solver(HeldOut, Protocol):
    """Fits the SVMs of all classes, too."""

    def weights(self, c: float) -> tuple[Tensor, Tensor]:
        """Fit to all rows: weights ``(classes, D)``, intercepts ``(classes,)``."""

    def fold_classifiers(self, c: float) -> FoldClassifiers:
        """Weights of the SVMs that :meth:`held_out` scores by."""


def split(labels: Tensor, folds: int) -> NDArray[np.int64] | None:
    """Deal the training images out to folds, ``(n,)``, stratified by class; with fewer than 2, none."""
    if folds < 2:
        return None
    groups = strata(labels, folds).numpy()
    fold = np.zeros(len(groups), dtype=np.int64)
    for i, (_, test) in enumerate(StratifiedKFold(folds, shuffle=True, random_state=0).split(groups, groups)):
        fold[test] = i
    return fold


def quality(scores: Array, labels: Tensor) -> float:
    """What C is chosen by: accuracy, or with several labels per image the mean average precision.

    Args:
        scores: ``(n, classes)``.
        labels: ``(n,)`` or ``(n, classes)``, see :mod:`cxlp.utils.labels`.
    """
    if labels.ndim == 1:
        return float((scores.argmax(axis=1) == labels.numpy()).mean())
    return float(np.nanmean(average_precision(scores, labels, "uninterpolated")))


def choose_cost_and_scale(
    solver: HeldOut, labels: Tensor, c: float | Literal["auto"], candidates: Sequence[float], folds: int
) -> dict[str, float]:
    """Choose C where it is ``auto``, see :func:`quality` (ties keep the smallest), and fit the scale of the logits.

    Args:
        solver: Of the training images.
        labels: ``(n,)`` or ``(n, classes)``, see :mod:`cxlp.utils.labels`.
        c: Cost C, or ``auto``.
        candidates: What ``auto`` tries.
        folds: Folds of the cross-validation; with fewer than 2 there is none, and the scale is 1.

    Returns:
        ``C``, ``logit_scale``, and the quality that was found (``cv_accuracy`` or ``cv_mAP``, with ``auto`` for each
        candidate, too).
    """
    name = "cv_accuracy" if labels.ndim == 1 else "cv_mAP"
    if folds < 2:
        assert c != "auto"
        warnings.warn("a class has fewer than two training images: the scale of the logits stays 1", stacklevel=2)
        return {"C": c, "logit_scale": 1.0}
    scores = solver.held_out(candidates if c == "auto" else [c])
    found = {cost: quality(of, labels) for cost, of in scores.items()}
    best = min(cost for cost, value in found.items() if value == max(found.values()))
    report = {f"{name}_C{cost:g}": value for cost, value in found.items()} if c == "auto" else {}
    return report | {"C": best, name: found[best], "logit_scale": fit_logit_scale(scores[best], labels)}


def fit_logit_scale(scores: Array, labels: Tensor) -> float:
    """Fit the one number that turns margins into logits: least cross-entropy of held-out scores.

    On the training rows themselves the scale would run away, since the SVMs separate them; on easy data
    it would do so on held-out rows, too. So each row's label counts as Platt (1999) has it, a little
    less than certain: the targets are those of n labels and one more image of each class that says nothing.

    Args:
        scores: ``(n, classes)`` held-out margins.
        labels: ``(n,)`` or ``(n, classes)``, see :mod:`cxlp.utils.labels`.

    Returns:
        The scale, between 0.1 and 100.
    """
    margins = torch.from_numpy(scores).double()
    answers = scores.shape[1] if labels.ndim == 1 else 2
    doubt = answers / (len(scores) + answers)

    def loss(log_scale: float) -> float:
        return float(classification_loss(np.exp(log_scale) * margins, labels, doubt))

    # tightly, so that runs that differ by rounding end with the same weights
    found = minimize_scalar(loss, bounds=np.log((0.1, 100.0)), method="bounded", options={"xatol": 1e-9})
    return float(np.exp(found.x))
