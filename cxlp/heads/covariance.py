"""Second-order pooling with matrix square root normalisation, in pure torch."""

import torch
from torch import Tensor, nn

from cxlp.heads.encoding import LocalEncoding
from cxlp.heads.normalisation import Normalise, matrix_sqrt


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
