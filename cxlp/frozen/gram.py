"""Matrix products of stored rows, block by block, shared by the ranks."""

import torch
from torch import Tensor

from cxlp.frozen.store import RowStore, SignStore
from cxlp.utils.distributed import all_sum, rank, world_size
from cxlp.utils.progress import track

_TILE = 512  # rows multiplied at a time: small enough to skip most of the lower triangle
_WIDTH = 8192  # columns multiplied at a time; a constant, so that rounding does not depend on the number of ranks


def gram_matrix(store: RowStore, device: torch.device, block_bytes: int = 256 << 20, progress: bool = True) -> Tensor:
    """Compute ``G = X X^T`` of an ``(n, d)`` store as a sum over blocks of columns.

    Each entry of the store is read once, one block of columns is in memory at a time, and only the triangle on and
    above the diagonal is computed: products in float32, their sum over blocks in float64. For packed signs the sums are
    exact; they are divided by the rows' lengths afterwards. Each rank computes a part of the blocks, and the ranks sum
    their results.

    Args:
        store: The rows X.
        device: Device for the products and the sum.
        block_bytes: Largest size of one block of columns as float32.
        progress: Whether rank 0 shows a progress bar.

    Returns:
        ``(n, n)``, float64, on the CPU, exactly symmetric, the same on each rank.
    """
    n, d = store.rows, store.dim
    total = torch.zeros(n, n, dtype=torch.float64, device=device if device.type == "cuda" else "cpu")
    width = max(4, min(block_bytes // (4 * n), _WIDTH) // 4 * 4)  # whole bytes of packed signs
    product = torch.empty(_TILE * n, device=device)  # reused: allocation would take as much time as the sums
    mine = range(rank() * width, d, world_size() * width)
    for start in track(mine, "Gram matrix", len(mine), "blocks", hidden=not progress or rank() != 0):
        columns = store.read_columns(start, min(start + width, d)).to(device, torch.float32)  # (n, width)
        for top in range(0, n, _TILE):
            tile = columns[top : top + _TILE]
            out = product[: len(tile) * (n - top)].view(len(tile), n - top)
            total[top : top + _TILE, top:] += torch.mm(tile, columns[top:].T, out=out).to(total.device)
        del columns  # free the memory before the next block is read
    gram = total.cpu()
    del total  # free the GPU's memory before the sum over ranks needs it
    all_sum(gram)
    # Mirror the triangle in place, by tiles: a transposed copy would double the memory.
    for top in range(0, n, _TILE):
        bottom = top + _TILE
        corner = gram[top:bottom, top:bottom]
        gram[top:bottom, top:bottom] = torch.triu(corner) + torch.triu(corner, 1).T
        gram[bottom:, top:bottom] = gram[top:bottom, bottom:].T
    if isinstance(store, SignStore):  # the products are still integers, but the rows have unit length
        scale = gram.diagonal().clamp_min(1).rsqrt()
        gram *= scale[:, None]
        gram *= scale
    return gram


def combine_rows(store: RowStore, coefficients: Tensor, device: torch.device, block_bytes: int = 256 << 20) -> Tensor:
    """Compute ``A X`` of an ``(n, d)`` store, such as weight vectors from dual coefficients A.

    Args:
        store: The rows X.
        coefficients: A, ``(classes, n)``.
        device: Device for the products.
        block_bytes: Size of one block of rows as float32.

    Returns:
        ``(classes, d)``, float32, on ``device``, the same on each rank.
    """
    result = torch.zeros(len(coefficients), store.dim, device=device)
    for start, stop in list(store.blocks(block_bytes))[rank() :: world_size()]:
        rows = store.read(start, stop).to(device, torch.float32)
        result.addmm_(coefficients[:, start:stop].to(device, torch.float32), rows)
        del rows  # free the memory before the next block is read
    return all_sum(result)


def score_rows(
    store: RowStore, weights: Tensor, intercepts: Tensor, device: torch.device, block_bytes: int = 256 << 20
) -> Tensor:
    """Compute ``X W^T + b`` of an ``(n, d)`` store: the decision values of linear classifiers.

    Args:
        store: The rows X.
        weights: W, ``(classes, d)``.
        intercepts: b, ``(classes,)``.
        device: Device for the products.
        block_bytes: Size of one block of rows as float32.

    Returns:
        ``(n, classes)``, float32, on the CPU, the same on each rank.
    """
    scores = torch.zeros(store.rows, len(weights))
    weights, intercepts = weights.to(device, torch.float32), intercepts.to(device, torch.float32)
    for start, stop in list(store.blocks(block_bytes))[rank() :: world_size()]:
        scores[start:stop] = (store.read(start, stop).to(device, torch.float32) @ weights.T + intercepts).cpu()
    return all_sum(scores)
