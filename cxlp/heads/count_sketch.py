"""Count sketch of pooled features for compact pooling, in pure torch."""

import torch
from torch import Tensor, nn

from cxlp.heads.description import check_count


class CountSketch(nn.Module):
    """Count sketch of matrices, which sums ``K p`` entries with random signs in D bins.

    This is Tensor Sketch (Pham and Pagh, KDD 2013) as used for compact bilinear pooling (Gao et al., CVPR 2016). With
    random hashes ``h1: 1..K -> 0..D-1``, ``h2: 1..p -> 0..D-1`` and signs ``s1(k), s2(j)`` in {-1, 1}, entry ``(k, j)``
    of ``P`` goes to the bin ``(h1(k) + h2(j)) mod D``::

        Y_d = sum over h1(k) + h2(j) = d (mod D) of s1(k) s2(j) P_kj.

    The inner product of two sketches is an unbiased estimate of the inner product of the matrices, whose variance
    falls as ``1 / D``. The sketch of ``P = sum_i a_i x_i^T`` is the sum over places of the circular convolutions of
    the count sketches of ``a_i`` and ``x_i``, which compact bilinear pooling computes with FFTs. Because the sketch is
    linear, it is computed once here, from ``P``, with the same result.

    Cost: ``2 K p`` additions and multiplications after the ``N K p`` of the pooling (with FFTs: about
    ``N (K + p + 5 D log2 D)``), and memory for ``2 K p`` values per image (with FFTs: about ``3 N D``). The classifier
    has D weights per class instead of ``K p``.

    Args:
        rows: Number K of rows.
        columns: Number p of columns.
        dim: Number D of bins, 1 to ``K p``.
        seed: Seed of hashes and signs. These are part of the state dict, so a checkpoint predicts the same everywhere.

    Raises:
        CxlpError: If D is out of range.
    """

    row_bins: Tensor
    column_bins: Tensor
    row_signs: Tensor
    column_signs: Tensor

    def __init__(self, rows: int, columns: int, dim: int, seed: int = 0) -> None:
        super().__init__()
        check_count("sketch", dim, rows * columns, f"there are {rows} x {columns} pooled features")
        self.dim = dim
        generator = torch.Generator().manual_seed(seed)
        for name, size in (("row", rows), ("column", columns)):
            self.register_buffer(f"{name}_bins", torch.randint(dim, (size,), generator=generator))
            signs = 2 * torch.randint(2, (size,), generator=generator) - 1
            self.register_buffer(f"{name}_signs", signs.to(torch.int8))

    def forward(self, x: Tensor) -> Tensor:
        """Compute the sketch: ``(B, K, p) -> (B, D)``."""
        signed = x * (self.row_signs[:, None] * self.column_signs).to(x.dtype)
        bins = (self.row_bins[:, None] + self.column_bins) % self.dim  # (K, p)
        # Not len(x): that is a plain number, which would fix the batch size of an exported network.
        sketch = x.new_zeros(x.shape[0], self.dim)
        # Not index_add: it takes three times as long on a CPU.
        return sketch.scatter_add(1, bins.flatten().expand(x.shape[0], -1), signed.flatten(1))

    def extra_repr(self) -> str:
        """Return the sizes, for ``repr``."""
        return f"{len(self.row_bins)} x {len(self.column_bins)} -> {self.dim}"
