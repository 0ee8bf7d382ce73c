"""Mean and covariance of a stream, and the principal axes of it."""

import numpy as np
import scipy.linalg
import torch
from torch import Tensor

from cxlp.utils.distributed import all_sum, from_rank_zero
from cxlp.utils.errors import CxlpError


class Moments:
    """Count, mean and scatter of vectors that come in batches, in float64.

    Batches are merged by the pairwise update of Chan, Golub and LeVeque (1979), which never
    subtracts large numbers of equal size::

        S = S_a + S_b + (n_a n_b / n) (m_a - m_b)(m_a - m_b)^T.

    Args:
        dim: Length d of a vector.
        device: Where the vectors are; the d x d scatter is kept there if it is a GPU that knows
            float64, else on the CPU.
    """

    def __init__(self, dim: int, device: torch.device) -> None:
        self.count = 0
        device = device if device.type == "cuda" else torch.device("cpu")
        self.mean = torch.zeros(dim, dtype=torch.float64, device=device)
        self.scatter = torch.zeros(dim, dim, dtype=torch.float64, device=device)

    def __repr__(self) -> str:
        return f"Moments({self.count:,} vectors of {len(self.mean):,} dimensions)"

    def update(self, x: Tensor) -> None:
        """Take in a batch ``(n, d)``."""
        if len(x) == 0:
            return
        x = x.to(self.mean.device)
        mean = x.mean(dim=0, dtype=torch.float64)
        # The product in float32: d^2 n of it dominates, and its error is that of the features.
        shift = mean.float()
        centred = x.float() - shift
        with torch.autocast(x.device.type, enabled=False):  # half precision would round it, or overflow
            scatter = (centred.T @ centred).double()
        # It was centred on the rounded mean: matters where the mean dwarfs the spread.
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
        """Make the moments those of all ranks together, on every rank."""
        count = all_sum(torch.tensor([float(self.count)], dtype=torch.float64, device=self.mean.device))
        mean = all_sum(self.mean * self.count) / count
        shift = self.mean - mean
        self.scatter.addr_(shift, shift, alpha=self.count)
        all_sum(self.scatter)
        self.mean, self.count = mean, int(count.item())

    def principal_axes(self, dim: int, centred: bool = True) -> tuple[Tensor, Tensor]:
        """The leading eigenvectors of the covariance, one per row, largest variance first, and their eigenvalues.

        Signs are fixed (the largest entry of each is positive), so that two runs agree.

        Args:
            dim: How many.
            centred: Whether of the covariance ``E[(x - m)(x - m)^T]``, or of the second moment ``E[x x^T]``, whose
                axes ``V`` make ``V^T V x`` the best approximation of rank ``dim`` to the vectors themselves.

        Returns:
            ``(dim, d)``, orthonormal rows, and ``(dim,)``; float64, the same on each rank.

        Raises:
            CxlpError: If there were too few vectors for so many axes, or they are not finite.
        """
        if not bool(self.scatter.isfinite().all()):
            raise CxlpError("the local features of the PCA are NaN, infinite, or too large to be squared in float32")
        if self.count <= dim:
            raise CxlpError(f"PCA to {dim} dimensions needs more than {dim} local features, there are {self.count}")
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
