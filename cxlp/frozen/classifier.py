"""Choice of C and of the logit scale by cross-validation."""

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


class CrossValidator(Protocol):
    """Cross-validates SVMs. All ranks call it together, and the result is the same on each rank."""

    def held_out(self, costs: Sequence[float]) -> dict[float, Array]:
        """Score each row with the SVMs fitted without its fold: ``(n, classes)`` for each cost C."""


class Solver(CrossValidator, Protocol):
    """Cross-validates SVMs, and fits them to all rows."""

    def weights(self, c: float) -> tuple[Tensor, Tensor]:
        """Fit to all rows, and return weights ``(classes, D)`` and intercepts ``(classes,)``."""

    def fold_classifiers(self, c: float) -> FoldClassifiers:
        """Return the SVMs that :meth:`held_out` scores with."""


def split(labels: Tensor, folds: int) -> NDArray[np.int64] | None:
    """Assign a fold to each training image, ``(n,)``, stratified by class; ``None`` for fewer than 2 folds."""
    if folds < 2:
        return None
    groups = strata(labels, folds).numpy()
    fold = np.zeros(len(groups), dtype=np.int64)
    for i, (_, test) in enumerate(StratifiedKFold(folds, shuffle=True, random_state=0).split(groups, groups)):
        fold[test] = i
    return fold


def quality(scores: Array, labels: Tensor) -> float:
    """Return the criterion for choosing C: accuracy, or mAP if an image may have several labels.

    Args:
        scores: ``(n, classes)``.
        labels: ``(n,)`` or ``(n, classes)``, see :mod:`cxlp.utils.labels`.
    """
    if labels.ndim == 1:
        return float((scores.argmax(axis=1) == labels.numpy()).mean())
    return float(np.nanmean(average_precision(scores, labels, "uninterpolated")))


def choose_cost_and_scale(
    solver: CrossValidator, labels: Tensor, c: float | Literal["auto"], candidates: Sequence[float], folds: int
) -> dict[str, float]:
    """Choose C by :func:`quality` if it is ``auto`` (ties keep the smallest C), and fit the logit scale.

    Args:
        solver: A solver of the training images.
        labels: ``(n,)`` or ``(n, classes)``, see :mod:`cxlp.utils.labels`.
        c: Cost C, or ``auto``.
        candidates: Costs C that ``auto`` compares.
        folds: Folds of the cross-validation. With fewer than 2 there is no cross-validation, and the scale is 1.

    Returns:
        ``C``, ``logit_scale``, and the cross-validated quality ``cv_accuracy`` or ``cv_mAP``; with ``auto`` also the
        quality of each candidate, such as ``cv_accuracy_C10``.
    """
    name = "cv_accuracy" if labels.ndim == 1 else "cv_mAP"
    if folds < 2:
        assert c != "auto"
        warnings.warn("a class has fewer than two training images: the logit scale stays 1", stacklevel=2)
        return {"C": c, "logit_scale": 1.0}
    scores = solver.held_out(candidates if c == "auto" else [c])
    found = {cost: quality(of, labels) for cost, of in scores.items()}
    best = min(cost for cost, value in found.items() if value == max(found.values()))
    report = {f"{name}_C{cost:g}": value for cost, value in found.items()} if c == "auto" else {}
    return report | {"C": best, name: found[best], "logit_scale": fit_logit_scale(scores[best], labels)}


def fit_logit_scale(scores: Array, labels: Tensor) -> float:
    """Fit the logit scale, a factor of the margins, by minimising the cross-entropy of held-out scores.

    On the training rows themselves the scale would diverge, because the SVMs separate them. On easy data it would
    diverge on held-out rows, too. Therefore labels are smoothed as by Platt (1999): the targets are those of n labels
    and of one further, uninformative image per class.

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

    # With a small tolerance, runs that differ by rounding return the same weights.
    found = minimize_scalar(loss, bounds=np.log((0.1, 100.0)), method="bounded", options={"xatol": 1e-9})
    return float(np.exp(found.x))
