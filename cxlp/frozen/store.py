"""Rows on disk, written by position from several ranks, read in blocks: memory stays flat."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from cxlp.errors import CxlpError


class RowStore:
    """An ``(n, d)`` float matrix in one file.

    Plain reads and writes rather than a memory map: pages of a map count as the process's memory,
    and ranks on several nodes do not see each other's.

    Args:
        path: The file; all ranks name the same one.
        rows: n.
        dim: d.
        dtype: Type of an entry: float32, float16 or bfloat16.
    """

    def __init__(self, path: Path, rows: int, dim: int, dtype: torch.dtype = torch.float32) -> None:
        self.path, self.rows, self.dim, self.dtype = path, rows, dim, dtype
        self.row_bytes = dim * dtype.itemsize
        path.parent.mkdir(parents=True, exist_ok=True)
        # No O_TRUNC: ranks open at different moments, and none may wipe another's rows.
        self._file = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)

    def write(self, positions: Tensor, values: Tensor) -> None:
        """Write rows ``(b, d)`` at their positions ``(b,)``."""
        block = values.detach().to("cpu", self.dtype).contiguous().view(torch.uint8).numpy()
        for position, row in zip(positions.tolist(), block, strict=True):
            _write_all(self._file, row.data, position * self.row_bytes)

    def read(self, start: int, stop: int) -> Tensor:
        """Read rows ``start`` to ``stop``: ``(stop - start, d)`` in the store's dtype."""
        buffer = np.empty((stop - start, self.row_bytes), dtype=np.uint8)
        _read_all(self._file, buffer.data.cast("B"), start * self.row_bytes, self.path)
        return torch.from_numpy(buffer).view(self.dtype)

    def read_columns(self, start: int, stop: int) -> Tensor:
        """Read columns ``start`` to ``stop`` of all rows: ``(n, stop - start)`` in the store's dtype."""
        size = self.dtype.itemsize
        buffer = np.empty((self.rows, (stop - start) * size), dtype=np.uint8)
        for position, row in enumerate(buffer):
            _read_all(self._file, row.data, position * self.row_bytes + start * size, self.path)
        return torch.from_numpy(buffer).view(self.dtype)

    def blocks(self, limit_bytes: int = 256 << 20) -> Iterator[tuple[int, int]]:
        """Row ranges that each fit in a number of bytes as float32 (at least one row)."""
        step = max(1, limit_bytes // (4 * self.dim))
        for start in range(0, self.rows, step):
            yield start, min(start + step, self.rows)

    def sync(self) -> None:
        """Hand what was written to the disk, before other ranks read it."""
        os.fsync(self._file)

    def close(self) -> None:
        """Close the file; the rows stay."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1


def check_space(folder: Path, needed: int) -> None:
    """Refuse to begin what will not fit on the disk.

    Raises:
        CxlpError: If the file system of ``folder`` has fewer than ``needed`` bytes free.
    """
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise CxlpError(
            f"the pooled features and maps need {needed / 1e9:.1f} GB in {folder}, {free / 1e9:.1f} GB are free: "
            "point --run.root elsewhere, or lower model.network.pooling.pca_dim"
        )


def _write_all(file: int, data: memoryview, offset: int) -> None:
    while data:
        written = os.pwrite(file, data, offset)
        data, offset = data[written:], offset + written


def _read_all(file: int, data: memoryview, offset: int, path: Path) -> None:
    while data:
        got = os.preadv(file, [data], offset)
        if got == 0:
            raise CxlpError(f"{path} is shorter than it should be: was it changed during the run?")
        data, offset = data[got:], offset + got
