"""Inner products of stored rows, block by block, shared by the ranks."""

import torch
from torch import Tensor
from tqdm import tqdm

from cxlp.distributed import all_sum, rank, world_size
from cxlp.frozen.store import RowStore


def gram_matrix(store: RowStore, device: torch.device, block_bytes: int = 256 << 20) -> Tensor:
    """Compute ``G = X X^T`` of an ``(n, d)`` store.

    Two row blocks are in memory at a time; only pairs on or above the diagonal are multiplied.
    Ranks share the block rows and sum their parts.

    Args:
        store: The rows X.
        device: Where to multiply.
        block_bytes: Size of one row block as float32.

    Returns:
        ``(n, n)``, float32, on the CPU, exactly symmetric, the same on each rank.
    """
    gram = torch.zeros(store.rows, store.rows)
    blocks = list(store.blocks(block_bytes))
    # Block row i has len(blocks) - i pairs: dealing them out to and fro evens the ranks' shares.
    world = world_size()
    mine = [i for i in range(len(blocks)) if min(i % (2 * world), 2 * world - 1 - i % (2 * world)) == rank()]
    for i in tqdm(mine, desc="Gram matrix", disable=rank() != 0, leave=False):
        top, bottom = blocks[i]
        left = store.read(top, bottom).to(device, torch.float32)
        for start, stop in blocks[i:]:
            right = left if start == top else store.read(start, stop).to(device, torch.float32)
            product = (left @ right.T).cpu()
            gram[top:bottom, start:stop] = product
    all_sum(gram)
    # Mirror in place, by blocks: a transposed copy would double the memory.
    for i, (top, bottom) in enumerate(blocks):
        gram[top:bottom, top:bottom] = _symmetric(gram[top:bottom, top:bottom])
        for start, stop in blocks[i + 1 :]:
            gram[start:stop, top:bottom] = gram[top:bottom, start:stop].T
    return gram


def combine_rows(store: RowStore, coefficients: Tensor, device: torch.device, block_bytes: int = 256 << 20) -> Tensor:
    """Compute ``A X`` of an ``(n, d)`` store: from dual coefficients to weight vectors.

    Args:
        store: The rows X.
        coefficients: A, ``(classes, n)``.
        device: Where to multiply.
        block_bytes: Size of one row block as float32.

    Returns:
        ``(classes, d)``, float32, on ``device``, the same on each rank.
    """
    result = torch.zeros(len(coefficients), store.dim, device=device)
    for start, stop in list(store.blocks(block_bytes))[rank() :: world_size()]:
        rows = store.read(start, stop).to(device, torch.float32)
        result.addmm_(coefficients[:, start:stop].to(device, torch.float32), rows)
    return all_sum(result)


def _symmetric(block: Tensor) -> Tensor:
    return torch.triu(block) + torch.triu(block, 1).T
