"""What a cross-validation on the Gram matrix gives: C, the scale of the logits, the classifiers of the folds."""

import warnings
from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cxlp.frozen.folds import FoldClassifiers
from cxlp.frozen.gram import combine_rows
from cxlp.frozen.store import RowStore
from cxlp.frozen.svm import Array, HeldOut, choose_c, cross_validate, fit_logit_scale, quality
from cxlp.utils.distributed import from_rank_zero
from cxlp.utils.labels import strata


def choose_cost_and_scale(
    gram: Array,
    targets: NDArray[np.int8],
    labels: Tensor,
    c: float | Literal["auto"],
    candidates: Sequence[float],
    folds: int,
    threads: int,
) -> tuple[dict[str, float], HeldOut | None]:
    """Choose C where it is ``auto``, and fit the scale of the logits.

    Args:
        gram: ``(n, n)``.
        targets: ``(classes, n)`` in {-1, 0, 1}.
        labels: ``(n,)`` or ``(n, classes)``, see :mod:`cxlp.utils.labels`.
        c: Cost C, or ``auto``.
        candidates: What ``auto`` tries.
        folds: Folds of the cross-validation; with fewer than 2 there is none, and the scale is 1.
        threads: Fits at a time.

    Returns:
        ``C``, ``logit_scale``, and the quality that was found (``cv_accuracy`` or ``cv_mAP``, with ``auto`` for each
        candidate, too); and the SVMs of the cross-validation, if there was one.
    """
    name = "cv_accuracy" if labels.ndim == 1 else "cv_mAP"
    report: dict[str, float] = {}
    if c == "auto":
        c, found = choose_c(gram, targets, labels, candidates, folds, threads)
        report |= {f"{name}_C{candidate:g}": value for candidate, value in found.items()}
    report["C"] = c
    if folds < 2:
        warnings.warn("a class has fewer than two training images: the scale of the logits stays 1", stacklevel=2)
        return report | {"logit_scale": 1.0}, None
    held_out = cross_validate(gram, targets, strata(labels, folds).numpy(), c, folds, threads)
    report[name] = quality(held_out.scores, labels)
    return report | {"logit_scale": fit_logit_scale(held_out.scores, labels)}, held_out


def fold_classifiers(held_out: HeldOut, scale: float, features: RowStore, device: torch.device) -> FoldClassifiers:
    """Make weights of the cross-validation's dual coefficients, at the scale of the logits; all ranks together."""
    coefficients = np.concatenate([solution.coefficients for solution in held_out.solutions])
    intercepts = np.stack([solution.intercepts for solution in held_out.solutions])
    weights = combine_rows(features, torch.from_numpy(scale * coefficients), device)
    return FoldClassifiers(
        from_rank_zero(weights).view(*intercepts.shape, -1),
        from_rank_zero(torch.from_numpy(scale * intercepts)).to(device, torch.float32),
        torch.from_numpy(held_out.folds).to(device),
    )
