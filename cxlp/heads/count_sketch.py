"""Count sketch of pooled features: compact pooling, in pure torch."""

import torch
from torch import Tensor, nn

from cxlp.heads.description import check_count


class CountSketch(nn.Module):
    """Count sketch of matrices: ``K p`` entries are added up, with random signs, in D bins.

    Tensor Sketch (Pham and Pagh, KDD 2013), used for compact bilinear pooling (Gao et al., CVPR 2016). With random
    hashes ``h1: 1..K -> 0..D-1``, ``h2: 1..p -> 0..D-1`` and signs ``s1(k), s2(j)`` in {-1, 1}, entry ``(k, j)`` of
    ``P`` goes to the bin ``(h1(k) + h2(j)) mod D``::

        Y_d = sum over h1(k) + h2(j) = d (mod D) of s1(k) s2(j) P_kj.

    Inner products of sketches are, in expectation over hashes and signs, those of the matrices; their variance falls
    as ``1 / D``. The sketch of ``P = sum_i a_i x_i^T`` is the sum over places of the circular convolutions of the
    count sketches of ``a_i`` and ``x_i``: compact bilinear pooling computes these with FFTs. The sketch is linear, so
    it is computed once here, from ``P``, with the same result.

    Cost: ``2 K p`` additions and multiplications after the pooling's ``N K p`` (by FFTs: about
    ``N (K + p + 5 D log2 D)``); memory ``2 K p`` values an image (by FFTs: about ``3 N D``). The classifier then has
    D weights a class, not ``K p``.

    Args:
        rows: K.
        columns: p.
        dim: D, 1 to ``K p``.
        seed: Seed of hashes and signs. The state dict keeps them: a checkpoint predicts the same anywhere.

    Raises:
        CxlpError: If D is out of its range.
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
        """Sketch: ``(B, K, p) -> (B, D)``."""
        signed = x * (self.row_signs[:, None] * self.column_signs).to(x.dtype)
        bins = (self.row_bins[:, None] + self.column_bins) % self.dim  # (K, p)
        # x.shape[0]: len(x) would be a number, and fix the batch of an exported network.
        sketch = x.new_zeros(x.shape[0], self.dim)
        # Not index_add, which is three times as slow on a CPU.
        return sketch.scatter_add(1, bins.flatten().expand(x.shape[0], -1), signed.flatten(1))

    def extra_repr(self) -> str:
        """Show the sizes."""
        return f"{len(self.row_bins)} x {len(self.column_bins)} -> {self.dim}"
