"""Centred rows of a store, read block by block, a share on each rank; the input of the primal SVMs."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor

from cxlp.frozen.store import RowStore
from cxlp.utils.distributed import all_sum, rank, world_size

#: Largest size of a block of rows, in bytes.
BLOCK = 128 << 20


class Rows:
    """This rank's share of a store's rows, minus the mean of all rows, read block by block.

    Args:
        store: The rows, ``(n, D)``.
        device: Device of the blocks.
        mean: ``(D,)``, see :func:`mean_row`.
        every: Use every row (1), every second row (2), and so on.
        block_bytes: Largest size of a block as float32; two blocks are in memory at a time.
        keep_bytes: If the share's rows take at most this many bytes, they stay on the device after they were read once.
            A GPU would otherwise wait for the disk and for the bus.

    Attributes:
        places: ``(m,)``, the positions of the share's rows among the n rows.
    """

    def __init__(
        self,
        store: RowStore,
        device: torch.device,
        mean: Tensor,
        every: int = 1,
        block_bytes: int = BLOCK,
        keep_bytes: int = 0,
    ) -> None:
        self.store, self.device, self.mean, self.every = store, device, mean, every
        self._keep_bytes = keep_bytes
        self._kept: list[Tensor] = []  # either all blocks or none
        share = [store.rows * r // world_size() for r in (rank(), rank() + 1)]
        self.places = torch.arange(share[0], share[1], every)
        self._step = max(1, block_bytes // (4 * store.dim))

    def blocks(self) -> Iterator[tuple[slice, Tensor]]:
        """Yield blocks ``(b, D)``, float32 on the device, each with its slice of the share."""
        parts = [slice(i, min(i + self._step, len(self.places))) for i in range(0, len(self.places), self._step)]
        if self._kept:
            for part, block in zip(parts, self._kept, strict=True):
                yield part, block.float() - self.mean
            return
        kept: list[Tensor] = []
        with ThreadPoolExecutor(1) as reader:  # reads the next block in the background
            waiting = reader.submit(self._read, parts[0]) if parts else None
            for i, part in enumerate(parts):
                assert waiting is not None
                block = waiting.result()
                waiting = reader.submit(self._read, parts[i + 1]) if i + 1 < len(parts) else None
                block = block.to(self.device)
                if block[0].nbytes * len(self.places) <= self._keep_bytes:
                    kept.append(block)
                yield part, block.float() - self.mean
        self._kept = kept

    def _read(self, part: slice) -> Tensor:
        places = self.places[part].tolist()
        if self.every == 1:
            return self.store.read(places[0], places[-1] + 1)
        return torch.cat([self.store.read(place, place + 1) for place in places])


def mean_row(store: RowStore, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return the mean ``(D,)``, float32, and the squared lengths ``(n,)``, float64, of the rows of a store.

    The result is the same on each rank.
    """
    rows = Rows(store, device, torch.zeros((), device=device))
    total = torch.zeros(store.dim, dtype=torch.float64, device=device)
    squares = torch.zeros(store.rows, dtype=torch.float64)
    for part, block in rows.blocks():
        total += block.sum(dim=0, dtype=torch.float64)
        squares[rows.places[part]] = (block * block).sum(dim=1, dtype=torch.float64).cpu()
    return (all_sum(total) / store.rows).float(), all_sum(squares)
