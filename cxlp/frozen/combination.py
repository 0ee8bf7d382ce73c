"""Sums of kernels: SVMs on concatenated representations, computed from the Gram matrix of each."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from cxlp.frozen.checks import check_lengths
from cxlp.frozen.classifier import Array, choose_cost_and_scale, split
from cxlp.frozen.config import FrozenConfig, count_folds
from cxlp.frozen.gram import combine_rows, gram_matrix
from cxlp.frozen.store import RowStore
from cxlp.frozen.svm import FoldScores, kernel_bytes, solve
from cxlp.utils.distributed import usable_cores
from cxlp.utils.errors import CxlpError
from cxlp.utils.labels import as_targets
from cxlp.utils.memory import free_memory
from cxlp.utils.progress import track

#: Largest block of test features, in bytes.
_BLOCK = 256 << 20


@dataclass(frozen=True)
class Combination:
    """Cross-validation result of a sum of kernels.

    Attributes:
        names: Names of the representations.
        quality: Cross-validated accuracy or mAP, see :func:`~cxlp.frozen.classifier.quality`.
        c: The cost C with this quality.
        scale: The logit scale.
        seconds: Duration of the cross-validation.
    """

    names: tuple[str, ...]
    quality: float
    c: float
    scale: float
    seconds: float


class Kernels:
    """The Gram matrices of several representations of the same training images, and SVMs on their sums.

    The Gram matrix of concatenated vectors is the sum of their Gram matrices:
    ``<[x; y], [x'; y']> = <x, x'> + <y, y'>``. So an SVM on the sum is the SVM on the concatenation. After one n x n
    matrix per representation is computed, any number of combinations is evaluated without reading images or features
    again.

    A representation's share of the sum grows with the square of its length. To give all representations the same
    weight, each Gram matrix is divided by the mean of its diagonal, the mean squared length. For vectors of unit length
    (``l2: true``, the default of heads) this mean is 1. Then the sum equals the Gram matrix of the concatenation up to
    rounding, and a network with these heads has the same cross-validation result. Without ``l2``, the vectors of
    average pooling may be a hundred times as long as those of another head, which would then have no influence.

    Args:
        stores: Rows ``(n, D)`` of each representation by name, with the same n.
        labels: Labels of the training images, see :mod:`cxlp.utils.labels`.
        classes: Class names.
        config: Options of the frozen fit: C or its candidates, and folds, as in a single run.
        device: Device for the matrix products.

    Attributes:
        seconds: Duration of computing the Gram matrices.

    Raises:
        CxlpError: If memory is too small for the matrices, features are not finite, or a class has a single image.
    """

    def __init__(
        self,
        stores: Mapping[str, RowStore],
        labels: Tensor,
        classes: Sequence[str],
        config: FrozenConfig,
        device: torch.device,
    ) -> None:
        self.stores, self.labels, self.config, self.device = dict(stores), labels, config, device
        self.folds = count_folds(labels, classes, config, "a combination")
        self.targets = as_targets(labels, len(classes)).numpy()
        check_memory(len(stores), len(labels), len(classes), self.folds)
        start = time.perf_counter()
        self.grams, self.lengths = dict[str, Tensor](), dict[str, float]()
        for name, store in track(stores.items(), "Gram matrices", len(stores), "systems"):
            gram = gram_matrix(store, device, progress=False)
            check_lengths(gram.diagonal().numpy())
            self.lengths[name] = float(gram.diagonal().mean()) or 1.0  # mean squared length
            self.grams[name] = gram.div_(self.lengths[name])
        self.seconds = time.perf_counter() - start

    def __repr__(self) -> str:
        return f"Kernels({', '.join(self.stores)}; {len(self.labels):,} rows, {len(self.targets):,} classes)"

    def evaluate(self, names: Sequence[str]) -> Combination:
        """Cross-validate the SVMs on a sum of kernels, with the folds and the costs C of a single run."""
        start = time.perf_counter()
        solver = FoldScores(self._sum(names), self.targets, split(self.labels, self.folds), usable_cores())
        found = choose_cost_and_scale(solver, self.labels, self.config.c, self.config.c_candidates, self.folds)
        quality = found["cv_accuracy" if self.labels.ndim == 1 else "cv_mAP"]
        return Combination(tuple(names), quality, found["C"], found["logit_scale"], time.perf_counter() - start)

    def scores(self, chosen: Combination, tests: Mapping[str, RowStore]) -> Tensor:
        """Fit the SVMs on a sum of kernels to all training images, and score other images.

        Args:
            chosen: The sum and its C.
            tests: Rows ``(m, D)`` of the other images, by name of the representation.

        Returns:
            Logits, ``(m, classes)``, float32.
        """
        dual = solve(self._sum(chosen.names), self.targets, chosen.c, usable_cores())
        total = torch.from_numpy(dual.intercepts)[None].float()
        for name in chosen.names:
            weights = combine_rows(self.stores[name], torch.from_numpy(dual.coefficients), self.device)
            weights /= self.lengths[name]
            rows = tests[name]
            parts = [
                (rows.read(start, stop).to(self.device, torch.float32) @ weights.T).cpu()
                for start, stop in rows.blocks(_BLOCK)
            ]
            total = total + torch.cat(parts)
        return total * chosen.scale

    def _sum(self, names: Sequence[str]) -> Array:
        total = self.grams[names[0]].clone()
        for name in names[1:]:
            total += self.grams[name]
        return total.numpy()


def check_memory(systems: int, images: int, classes: int, folds: int) -> None:
    """Check that the Gram matrices fit into memory.

    Raises:
        CxlpError: If they do not; the error tells how much they need.
    """
    # The matrix of each system, their sum, the product of a tile of rows, and the SVMs.
    needed = 8 * images * images * systems + kernel_bytes(images, 0, classes, folds)
    free = free_memory()
    if free is not None and needed > free:
        raise CxlpError(
            f"the kernels of {systems} systems and {images:,} training images need {needed / 1e9:.1f} GB of memory, "
            f"{8 * images * images / 1e9:.2f} GB each, and {free / 1e9:.1f} GB are free: name fewer systems"
        )
