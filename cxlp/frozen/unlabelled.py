"""Fits without labels: projections and codebooks of heads, and a PCA of the pooled features."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import scipy.linalg
import torch
from torch import Tensor

from cxlp.frozen.checks import check_maps
from cxlp.frozen.gram import combine_rows, gram_matrix
from cxlp.frozen.maps import HeadMaps, MapStore, memory_for_maps
from cxlp.frozen.store import RowStore
from cxlp.heads.fitting import HeadFit, TrainingSet
from cxlp.models.network import Network
from cxlp.utils.errors import CxlpError
from cxlp.utils.profiling import PhaseTimes
from cxlp.utils.spelling import percent

#: Approximate number of local features that a PCA is fitted to, as in the frozen fit.
VECTORS = 100_000


@torch.no_grad()
def fit_heads(network: Network, pictures: Iterable[Tensor], images: int, folder: Path) -> None:
    """Fit the projections and codebooks of a network's heads, which need no labels.

    Args:
        network: A network on the device for the computation.
        pictures: Batches of images ``(b, 3, S, S)``; S is the network's ``image_size``.
        images: Number of images in all batches.
        folder: Folder for maps during the fit, if a head reads them more than once.

    Raises:
        CxlpError: If a head needs labels, or there are too few images.
    """
    device = network.backbone.mean.device
    data = TrainingSet(images, 0, -(-VECTORS // max(1, images)), device)
    fits: dict[int, HeadFit] = {}
    heads = list(network.each_head())
    for i, head in enumerate(heads):
        if head.needs_labels:
            raise CxlpError(f"{head.name} learns from labels, but there are none: choose another head")
        fit = head.start_fit(data)
        if fit is not None:
            fits[i] = fit
    if not fits:
        return
    again = [i for i in fits if heads[i].needs_fit]  # heads that read maps twice; a projection reads them once
    maps = MapStore(folder / "maps.bin", images, [network.map_names(heads[i]) for i in again], memory_for_maps())
    try:
        first = 0
        with network.backbone.held():
            for batch in pictures:
                positions = torch.arange(first, first + len(batch))
                inputs = network.inputs(batch.to(device))
                check_maps(network, inputs, positions)
                for i, fit in fits.items():
                    fit.observe(inputs[i], positions)
                if again:
                    maps.append([inputs[i] for i in again], positions)
                first += len(batch)
        for i, fit in fits.items():
            place = again.index(i) if i in again else 0
            fit.solve(HeadMaps(maps, place, torch.zeros(first, dtype=torch.int64), device, PhaseTimes()))
    finally:
        maps.delete()


@dataclass(frozen=True, repr=False)
class Components:
    """A PCA of pooled features: ``x -> V (x - m)``, with the mean m.

    Attributes:
        axes: V, ``(dim, D)``, orthonormal rows in order of decreasing variance.
        shift: ``V m``, ``(dim,)``.
        kept: Explained variance ratio on the images that the PCA was fitted to.
    """

    axes: Tensor
    shift: Tensor
    kept: float

    def __repr__(self) -> str:
        dim, features = self.axes.shape
        return f"Components({dim:,} of {features:,} dimensions, with {percent(self.kept)} of the variance)"

    def reduce(self, features: Tensor) -> Tensor:
        """Project features: ``(B, D) -> (B, dim)``, float32, on the CPU."""
        return (features.to(self.axes.device, torch.float32) @ self.axes.T - self.shift).cpu()


def principal_components(rows: RowStore, dim: int, device: torch.device, progress: bool = False) -> Components:
    """Compute the principal components of stored features from their Gram matrix.

    There are usually fewer images than dimensions, n < D. With the centred features ``X_c`` and
    ``X_c X_c^T = U S^2 U^T``, the axes are ``V = S^-1 U^T X_c``. Memory holds the ``n x n`` matrix, the axes, and a
    block of features.

    Args:
        rows: The features X, ``(n, D)``.
        dim: Number of components.
        device: Device for the products.
        progress: Whether to show a progress bar.

    Raises:
        CxlpError: If the features are not finite, or span fewer than ``dim`` dimensions.
    """
    n = rows.rows
    gram = gram_matrix(rows, device, progress=progress).numpy()
    if not np.isfinite(gram).all():
        raise CxlpError("some features are NaN or infinite: check the network and its weights")
    means = gram.mean(axis=0)
    gram += means.mean() - means - means[:, None]
    total = float(gram.trace())
    count = min(dim, n)
    values, vectors = scipy.linalg.eigh(gram, overwrite_a=True, subset_by_index=(n - count, n - 1))
    values, vectors = values[::-1], vectors[:, ::-1]
    spanned = int((values > 1e-6 * max(values[0], 0)).sum())
    if spanned < dim:
        raise CxlpError(f"{n} images span {spanned} dimensions of features, fewer than {dim}: lower --dim")
    vectors = vectors * np.sign(vectors[np.abs(vectors).argmax(axis=0), np.arange(dim)])
    weights = vectors.T / np.sqrt(values)[:, None]
    weights -= weights.mean(axis=1, keepdims=True)  # equivalent to centring the features
    axes = combine_rows(rows, torch.from_numpy(weights), device)
    mean = combine_rows(rows, torch.full((1, n), 1 / n), device)
    return Components(axes, (axes @ mean.T)[:, 0], float(values.sum()) / total)
