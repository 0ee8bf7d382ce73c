"""Second-order pooling with matrix square root normalisation, in pure torch."""

import torch
from torch import Tensor, nn

from cxlp.pooling import Normalise
from cxlp.representations.local import LocalEncoding

#: Steps of the iteration, as in the paper.
ITERATIONS = 5


def matrix_sqrt(a: Tensor, iterations: int = ITERATIONS) -> Tensor:
    """Square root of symmetric positive semidefinite matrices by the Newton-Schulz iteration.

    With ``Y_0 = A / tr A`` and ``Z_0 = I``,

        Y_k+1 = Y_k (3 I - Z_k Y_k) / 2,    Z_k+1 = (3 I - Z_k Y_k) Z_k / 2,

    ``sqrt(tr A) Y_k`` converges to the root of A: products only, which GPUs and autograd like. After five steps it
    is a root that damps small eigenvalues; they need more (Li et al., CVPR 2018, section 3.2).

    Args:
        a: ``(..., p, p)``, float32 or wider.
        iterations: How many steps.

    Returns:
        Same shape. A zero matrix is its own root.
    """
    size = a.diagonal(dim1=-2, dim2=-1).sum(-1)[..., None, None].clamp_min(torch.finfo(a.dtype).tiny ** 0.5)
    identity = torch.eye(a.shape[-1], dtype=a.dtype, device=a.device)
    y, z = a / size, identity.expand_as(a)
    for _ in range(iterations):
        t = 0.5 * (3 * identity - z @ y)
        y, z = y @ t, t @ z
    return y * size.sqrt()


class CovariancePooling(LocalEncoding):
    """Covariance pooling with matrix square root: iSQRT-COV (Li et al., CVPR 2018).

    The covariance ``S = 1/N sum_i (x_i - m)(x_i - m)^T`` of an image's N projected local features, its square root by
    :func:`matrix_sqrt`, and of that the upper triangle, ``p (p + 1) / 2`` values: entries off the diagonal count
    ``sqrt(2)`` times, so that inner products are those of the whole matrices.

    Args:
        channels: Channels C of the map.
        pca_dim: Size p of a projected local feature; ``None``: no projection.
        normalise: What follows; L2 alone is usual, since the root is taken already.
    """

    def __init__(self, channels: int, pca_dim: int | None, normalise: nn.Module | None = None) -> None:
        super().__init__(channels, pca_dim, Normalise(sqrt=False) if normalise is None else normalise)
        self.out_features = self.dim * (self.dim + 1) // 2

    def encode(self, x: Tensor) -> Tensor:
        """See the class: ``(B, N, p) -> (B, 1, p (p + 1) / 2)``."""
        x = x - x.mean(dim=1, keepdim=True)
        root = matrix_sqrt(x.transpose(1, 2) @ x / x.shape[1])  # (B, p, p)
        rows, columns = torch.triu_indices(root.shape[1], root.shape[1], device=root.device)
        weight = torch.where(rows == columns, 1.0, 2**0.5).to(root.dtype)
        return (root[:, rows, columns] * weight).unsqueeze(1)
