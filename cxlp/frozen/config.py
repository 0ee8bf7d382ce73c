"""The options of the frozen fit."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from cxlp.frozen.solvers import SolverName
from cxlp.frozen.store import FeatureType
from cxlp.utils.errors import CxlpError
from cxlp.utils.labels import as_targets

#: Upper bound of folds: each fold fits all SVMs anew, and more folds hardly improve the estimate.
MOST_FOLDS = 100


@dataclass(frozen=True)
class FrozenConfig:
    """Options of the frozen fit.

    Attributes:
        c: Cost C of the SVMs. ``auto`` chooses C among ``c_candidates`` by cross-validation on the training images: by
            accuracy, or by mean average precision if an image may have several labels.
        c_candidates: Costs C that ``auto`` compares.
        folds: Number of folds of the cross-validation, 2 to 100, for C and for the logit scale. If the rarest class
            has fewer images, their number is used.
        pca_vectors: Approximate number of local features that the PCA is fitted to. Each image contributes the same
            number of them, at random places that depend only on the image's position in the data set.
        features: Storage type of the pooled training features: ``float32``; ``float16``, half the size; ``sign``, two
            bits per value, for heads whose vectors consist of signs.
        solver: ``kernel``: libsvm on the n x n Gram matrix, as in the paper. ``primal``: Newton's method on blocks of
            rows, for a hinge loss with a rounded corner, in bounded memory and in time linear in n. ``auto``: the
            kernel if it needs at most a quarter of the free memory, otherwise the primal solver.
        store: A folder that keeps the features for later runs with the same features. Null: delete them after the fit.
    """

    c: float | Literal["auto"] = 10.0
    c_candidates: Sequence[float] = (0.1, 1.0, 10.0, 100.0)
    folds: int = 5
    pca_vectors: int = 100_000
    features: FeatureType = "float32"
    solver: SolverName = "auto"
    store: str | None = None

    def __post_init__(self) -> None:
        for key, costs in (("c", [] if self.c == "auto" else [self.c]), ("c_candidates", self.c_candidates)):
            if not all(0 < cost < math.inf for cost in costs):
                raise CxlpError(f"model.frozen.{key} is {getattr(self, key)}: a cost C is a number greater than 0")
        if not self.c_candidates:
            raise CxlpError("model.frozen.c_candidates is empty: list one cost C or more")
        if not 2 <= self.folds <= MOST_FOLDS:
            raise CxlpError(f"model.frozen.folds is {self.folds}: choose 2 to {MOST_FOLDS}")
        if self.pca_vectors < 1:
            raise CxlpError(f"model.frozen.pca_vectors is {self.pca_vectors}: it must be 1 or more")


def count_folds(labels: Tensor, classes: Sequence[str], config: FrozenConfig, needed_by: str = "") -> int:
    """Return the number of folds: ``config.folds``, or the number of images of the rarest class if that is smaller.

    Args:
        labels: Labels of the training images, see :mod:`cxlp.utils.labels`.
        classes: Class names.
        config: Options of the frozen fit.
        needed_by: Name of a feature that needs a cross-validation, for the error. ``c: auto`` always needs one.

    Raises:
        CxlpError: If a cross-validation is needed, but a class has fewer than two images.
    """
    images = (as_targets(labels, len(classes)) == 1).sum(dim=1)
    folds = min(config.folds, int(images.min()))
    needed_by = needed_by or ("model.frozen.c: auto" if config.c == "auto" else "")
    if folds < 2 and needed_by:
        raise CxlpError(
            f"{needed_by} needs two training images of each class, but {classes[int(images.argmin())]!r} has "
            f"{int(images.min())}: add images of this class, or leave it out"
        )
    return folds
