"""Second-order pooling with matrix square root normalisation, in pure torch."""

from collections.abc import Sequence

import torch
from torch import Tensor

from cxlp.heads.base import Shape
from cxlp.heads.local import LocalHead
from cxlp.heads.normalisation import Normalise, matrix_sqrt
from cxlp.heads.views import Views


class CovariancePooling(LocalHead):
    """Covariance pooling with matrix square root: iSQRT-COV (Li et al., CVPR 2018).

    The head computes the covariance ``S = 1/N sum_i (x_i - m)(x_i - m)^T`` of an image's N projected local features
    and takes its square root with :func:`~cxlp.heads.normalisation.matrix_sqrt`. The vector is the root's upper
    triangle, ``p (p + 1) / 2`` values. Entries off the diagonal are multiplied by ``sqrt(2)``, so that inner products
    of vectors equal those of the whole matrices.

    Args:
        pca_dim: Size p of a projected local feature; ``None``: no projection.
        zscore, sign, l2: The normalisation of the vector, see :class:`~cxlp.heads.normalisation.Normalise`.
        second_root: Take the signed square root of the entries after the matrix root.
        layers: The layer that is pooled; ``None``: the backbone's last layer.
        views: The views of an image whose local features are pooled together.

    Example:
        >>> head = CovariancePooling(pca_dim=4).connect((8, 13, 13))
        >>> head(torch.rand(2, 8, 13, 13)).shape
        torch.Size([2, 10])
    """

    explanation_obstacle = "its matrix root is not linear, so its vector is not a sum over places"

    def __init__(
        self,
        pca_dim: int | None = 500,
        zscore: bool = False,
        sign: bool = False,
        second_root: bool = False,
        l2: bool = True,
        layers: Sequence[str] | None = None,
        views: Views = Views(),
    ) -> None:
        super().__init__(pca_dim, Normalise(zscore=zscore, sign=sign, sqrt=second_root, l2=l2), layers, views)
        self.zscore, self.sign, self.second_root, self.l2 = zscore, sign, second_root, l2

    def build(self, shapes: Sequence[Shape]) -> None:
        """Create the projection."""
        super().build(shapes)
        self.out_features = self.dim * (self.dim + 1) // 2

    def encode(self, x: Tensor) -> Tensor:
        """Compute the root's upper triangle: ``(B, N, p) -> (B, 1, p (p + 1) / 2)``."""
        x = x - x.mean(dim=1, keepdim=True)
        root = matrix_sqrt(x.transpose(1, 2) @ x / x.shape[1])  # (B, p, p)
        rows, columns = torch.triu_indices(root.shape[1], root.shape[1], device=root.device)
        weight = torch.where(rows == columns, 1.0, 2**0.5).to(root.dtype)
        return (root[:, rows, columns] * weight).unsqueeze(1)
