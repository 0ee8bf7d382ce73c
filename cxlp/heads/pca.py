"""Mean, covariance and principal axes of a stream of vectors."""

import numpy as np
import scipy.linalg
import torch
from torch import Tensor

from cxlp.utils.distributed import all_sum, from_rank_zero
from cxlp.utils.errors import CxlpError


class Moments:
    """Count, mean and scatter matrix of vectors that arrive in batches, in float64.

    Batches are merged by the pairwise update of Chan, Golub and LeVeque (1979), which avoids the
    cancellation of large numbers of similar size::

        S = S_a + S_b + (n_a n_b / n) (m_a - m_b)(m_a - m_b)^T.

    Args:
        dim: Length d of a vector.
        device: Device of the vectors. The d x d scatter matrix is stored there if it is a CUDA
            device, which supports float64, otherwise on the CPU.
    """

    def __init__(self, dim: int, device: torch.device) -> None:
        self.count = 0
        device = device if device.type == "cuda" else torch.device("cpu")
        self.mean = torch.zeros(dim, dtype=torch.float64, device=device)
        self.scatter = torch.zeros(dim, dim, dtype=torch.float64, device=device)

    def __repr__(self) -> str:
        return f"Moments({self.count:,} vectors of {len(self.mean):,} dimensions)"

    def update(self, x: Tensor) -> None:
        """Add a batch ``(n, d)``."""
        if len(x) == 0:
            return
        x = x.to(self.mean.device)
        mean = x.mean(dim=0, dtype=torch.float64)
        # In float32: these d^2 n multiply-adds dominate the cost, and the features have no higher precision.
        shift = mean.float()
        centred = x.float() - shift
        with torch.autocast(x.device.type, enabled=False):  # half precision would lose digits or overflow
            scatter = (centred.T @ centred).double()
        # Correct for centring on the rounded mean, which matters if the mean is much larger than the spread.
        rounding = mean - shift
        self._merge(len(x), mean, scatter.addr_(rounding, rounding, alpha=-len(x)))

    def _merge(self, count: int, mean: Tensor, scatter: Tensor) -> None:
        total = self.count + count
        shift = mean - self.mean
        self.scatter += scatter
        self.scatter.addr_(shift, shift, alpha=self.count * count / total)
        self.mean += shift * (count / total)
        self.count = total

    def merge_ranks(self) -> None:
        """Replace the moments on every rank by those of the vectors of all ranks."""
        count = all_sum(torch.tensor([float(self.count)], dtype=torch.float64, device=self.mean.device))
        mean = all_sum(self.mean * self.count) / count
        shift = self.mean - mean
        self.scatter.addr_(shift, shift, alpha=self.count)
        all_sum(self.scatter)
        self.mean, self.count = mean, int(count.item())

    def principal_axes(self, dim: int, centred: bool = True) -> tuple[Tensor, Tensor]:
        """Compute the leading eigenvectors of the covariance and their eigenvalues, largest first.

        The largest entry of each eigenvector is positive, so that two runs agree.

        Args:
            dim: Number of eigenvectors.
            centred: Use the covariance ``E[(x - m)(x - m)^T]``. If ``False``, use the second moment ``E[x x^T]``,
                whose axes ``V`` make ``V^T V x`` the best rank-``dim`` approximation of the vectors.

        Returns:
            The eigenvectors as orthonormal rows, ``(dim, d)``, and the eigenvalues, ``(dim,)``; float64, equal on all
            ranks.

        Raises:
            CxlpError: If there are too few vectors for ``dim`` axes, or the vectors are not finite.
        """
        if not bool(self.scatter.isfinite().all()):
            raise CxlpError(
                "the local features of the PCA are NaN, infinite, or too large to be squared in float32: check the "
                "images and the backbone's weights"
            )
        if self.count <= dim:
            raise CxlpError(
                f"PCA to {dim} dimensions needs more than {dim} local features, but got {self.count}: lower the number "
                "of dimensions"
            )
        d = len(self.mean)
        moment = self.scatter / self.count
        if not centred:
            moment.addr_(self.mean, self.mean)
        values, vectors = scipy.linalg.eigh(moment.cpu().numpy(), subset_by_index=(d - dim, d - 1))
        axes = vectors.T[::-1]
        largest = np.abs(axes).argmax(axis=1)
        axes = axes * np.sign(axes[np.arange(dim), largest])[:, None]
        axes, values = (torch.from_numpy(x.copy()).to(self.mean.device) for x in (axes, values[::-1]))
        return from_rank_zero(axes), from_rank_zero(values)
