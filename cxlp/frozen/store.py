"""Rows on disk, written by position from several ranks, read in blocks: memory stays flat."""

import os
import shutil
import time
from collections.abc import Iterator
from io import FileIO
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from cxlp.distributed import all_sum, barrier, from_rank_zero, is_distributed, rank, world_size
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
        path.touch()  # does not truncate: ranks come at different moments, and none may wipe another's rows
        self._file = path.open("r+b", buffering=0)

    def write(self, positions: Tensor, values: Tensor, column: int = 0) -> None:
        """Write rows ``(b, d)`` at their positions ``(b,)``, or parts of rows from a column on."""
        block = values.detach().to("cpu", self.dtype).contiguous().view(torch.uint8).numpy()
        try:
            for position, row in zip(positions.tolist(), block, strict=True):
                self._file.seek(position * self.row_bytes + column * self.dtype.itemsize)
                _write_all(self._file, row.data)
        except OSError as error:
            raise CxlpError(
                f"cannot write {self.path}: {error}. Is the disk full? Point --run.root elsewhere"
            ) from error

    def read(self, start: int, stop: int) -> Tensor:
        """Read rows ``start`` to ``stop``: ``(stop - start, d)`` in the store's dtype."""
        buffer = np.empty((stop - start, self.row_bytes), dtype=np.uint8)
        self._file.seek(start * self.row_bytes)
        self._read_all(buffer.data.cast("B"))
        return torch.from_numpy(buffer).view(self.dtype)

    def read_columns(self, start: int, stop: int) -> Tensor:
        """Read columns ``start`` to ``stop`` of all rows: ``(n, stop - start)`` in the store's dtype."""
        size = self.dtype.itemsize
        buffer = np.empty((self.rows, (stop - start) * size), dtype=np.uint8)
        for position, row in enumerate(buffer):
            self._file.seek(position * self.row_bytes + start * size)
            self._read_all(row.data)
        return torch.from_numpy(buffer).view(self.dtype)

    def blocks(self, limit_bytes: int = 256 << 20) -> Iterator[tuple[int, int]]:
        """Row ranges that each fit in a number of bytes as float32 (at least one row)."""
        step = max(1, limit_bytes // (4 * self.dim))
        for start in range(0, self.rows, step):
            yield start, min(start + step, self.rows)

    def sync(self) -> None:
        """Hand what was written to the disk, before other ranks read it."""
        os.fsync(self._file.fileno())

    def reopen(self) -> None:
        """Open the file anew, to read what other ranks wrote since."""
        self._file.close()
        self._file = self.path.open("r+b", buffering=0)

    def close(self) -> None:
        """Close the file; the rows stay."""
        self._file.close()

    def _read_all(self, data: memoryview) -> None:
        while data:
            got = self._file.readinto(data)
            if not got:
                raise CxlpError(f"{self.path} is shorter than it should be: was it changed during the run?")
            data = data[got:]


def check_shared(folder: Path) -> None:
    """Refuse ranks that do not see one another's files; all ranks call it together.

    Raises:
        CxlpError: On every rank, if one of them does not see what rank 0 writes.
    """
    if not is_distributed():
        return
    token = folder / f".shared-{int(from_rank_zero(torch.tensor([time.time_ns()])))}"  # a name nobody looked up before
    if rank() == 0:
        folder.mkdir(parents=True, exist_ok=True)
        token.touch()
    barrier()
    seen = int(all_sum(torch.tensor([int(token.exists())])))
    token.unlink(missing_ok=True)
    if seen < world_size():
        raise CxlpError(
            f"{world_size() - seen} of {world_size()} processes do not see {folder}: with several machines, "
            "--run.root must lie on a disk that they share"
        )


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


def _write_all(file: FileIO, data: memoryview) -> None:
    while data:
        data = data[file.write(data) :]
