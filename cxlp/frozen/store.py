"""Matrices of rows on disk or in memory, written by position from several ranks and read in blocks."""

import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from io import FileIO
from itertools import pairwise
from pathlib import Path
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from cxlp.utils.distributed import all_sum, ask_rank_zero, is_distributed, on_rank_zero, world_size
from cxlp.utils.errors import CxlpError

FeatureType = Literal["float32", "float16", "sign"]


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Replace errors of writing, such as a full disk, by one that tells what to do.

    Raises:
        CxlpError: In place of an OSError.
    """
    try:
        yield
    except OSError as error:
        raise CxlpError(
            f"cannot write {path}: {error}. Is the disk full? Point --run.root or model.frozen.store elsewhere"
        ) from error


class RowStore:
    """An ``(n, d)`` float matrix in one file, or in memory if a single process uses it.

    The file is read and written without a memory map: the pages of a map would count as the process's memory, and
    ranks on several nodes would not see each other's pages.

    Args:
        path: The file, the same for all ranks.
        rows: Number of rows, n.
        dim: Number of columns, d.
        dtype: Type of an entry: float32, float16 or bfloat16.
        to_write: Whether to open the file for writing, and create it if it is missing. Otherwise it is only read.
        in_memory: Whether to keep the rows in memory, without a file.

    Raises:
        CxlpError: If a file to read does not exist.
    """

    def __init__(
        self,
        path: Path,
        rows: int,
        dim: int,
        dtype: torch.dtype = torch.float32,
        to_write: bool = True,
        in_memory: bool = False,
    ) -> None:
        self.path, self.rows, self.dim, self.dtype, self.in_memory = path, rows, dim, dtype, in_memory
        self.row_bytes = self._bytes(dim)
        self._mode = "r+" if to_write else "r"
        self._held = torch.empty(0)
        if in_memory:
            self._held = torch.empty(rows, self.row_bytes, dtype=torch.uint8)
            return
        if to_write:
            with writing(self.path):
                path.parent.mkdir(parents=True, exist_ok=True)
                path.touch()  # does not truncate: a rank must not erase the rows that another rank wrote before
        self._file = self._open()

    def write(self, positions: Tensor, values: Tensor, column: int = 0) -> None:
        """Write rows ``(b, d)`` at positions ``(b,)``, or parts of rows beginning at a column."""
        encoded = self._encode(values.detach().cpu())
        places = [place for place, _ in zip(positions.tolist(), encoded, strict=True)]
        first = self._bytes(column)
        if self.in_memory:
            for place, row in zip(places, encoded, strict=True):
                self._held[place, first : first + len(row)] = row
            return
        block = encoded.numpy()
        whole = column == 0 and block.shape[1] == self.row_bytes  # then adjacent rows need one write only
        starts = [i for i in range(len(places)) if i == 0 or not (whole and places[i] == places[i - 1] + 1)]
        with writing(self.path):
            for start, stop in pairwise([*starts, len(places)]):
                self._file.seek(places[start] * self.row_bytes + first)
                data = block[start:stop].data.cast("B")
                while data:  # a disk that is almost full accepts only a part
                    data = data[self._file.write(data) :]

    def read(self, start: int, stop: int) -> Tensor:
        """Return rows ``start`` to ``stop``, ``(stop - start, d)``; do not modify them, they may be the store's."""
        if self.in_memory:
            return self._decode(self._held[start:stop])[:, : self.dim]
        buffer = np.empty((stop - start, self.row_bytes), dtype=np.uint8)
        self._read_into(buffer.data.cast("B"), start * self.row_bytes)
        return self._decode(torch.from_numpy(buffer))[:, : self.dim]

    def read_columns(self, start: int, stop: int) -> Tensor:
        """Return columns ``start`` to ``stop`` of all rows, ``(n, stop - start)``."""
        first = self._bytes(start)
        if self.in_memory:
            block = self._held[:, first : self._bytes(stop)].contiguous()
            return self._decode(block)[:, : stop - start]
        buffer = np.empty((self.rows, self._bytes(stop) - first), dtype=np.uint8)
        for position, row in enumerate(buffer):
            self._read_into(row.data, position * self.row_bytes + first)
        return self._decode(torch.from_numpy(buffer))[:, : stop - start]

    def _bytes(self, columns: int) -> int:
        """Return the number of bytes of a number of columns."""
        return columns * self.dtype.itemsize

    def _encode(self, values: Tensor) -> Tensor:
        """Convert numbers to bytes, row by row."""
        return values.to(self.dtype).contiguous().view(torch.uint8)

    def _decode(self, block: Tensor) -> Tensor:
        """Convert bytes to numbers, row by row."""
        return block.view(self.dtype)

    def blocks(self, limit_bytes: int = 256 << 20) -> Iterator[tuple[int, int]]:
        """Yield ranges of rows that take at most ``limit_bytes`` each as float32, but at least one row."""
        step = max(1, limit_bytes // (4 * self.dim))
        for start in range(0, self.rows, step):
            yield start, min(start + step, self.rows)

    def sync(self) -> None:
        """Flush all writes to the disk, before other ranks read them."""
        if self.in_memory:
            return
        with writing(self.path):
            os.fsync(self._file.fileno())

    def reopen(self) -> None:
        """Open the file again, to read what other ranks have written."""
        if self.in_memory:
            return
        self.close()
        self._file = self._open()

    def close(self) -> None:
        """Close the file, or free the rows in memory. Errors are suppressed here; :meth:`sync` raises them."""
        if self.in_memory:
            self._held = torch.empty(0)
            return
        with suppress(OSError):
            self._file.close()

    def _open(self) -> FileIO:
        try:
            return FileIO(self.path, self._mode)
        except OSError as error:
            raise CxlpError(
                f"cannot open {self.path}: {error.strerror}. Was it deleted, or is it on a disk that this process does "
                "not see?"
            ) from error

    def _read_into(self, data: memoryview, start: int) -> None:
        self._file.seek(start)
        while data:
            got = self._file.readinto(data)
            if not got:
                raise CxlpError(f"{self.path} is shorter than it should be: was it changed during the run?")
            data = data[got:]


class SignStore(RowStore):
    """Rows of signs (-1, 0, 1), scaled to unit length, with two bits per entry.

    Sign quantisation followed by L2 normalisation produces such vectors. :meth:`read` returns these vectors.
    :meth:`read_columns` returns the signs without scaling: sums of their products are integers, and so exact in
    float32 in any order.
    """

    def read(self, start: int, stop: int) -> Tensor:
        """Return rows ``start`` to ``stop``, ``(stop - start, d)``, float32, of unit length."""
        return F.normalize(super().read(start, stop), dim=1)

    def _bytes(self, columns: int) -> int:
        return -(-columns // 4)

    def _encode(self, values: Tensor) -> Tensor:
        codes = F.pad(values.sign().to(torch.int8) + 1, (0, -values.shape[1] % 4), value=1).to(torch.uint8)
        codes = codes.view(len(values), -1, 4)  # 0, 1, 2 for -1, 0, 1
        return codes[..., 0] | codes[..., 1] << 2 | codes[..., 2] << 4 | codes[..., 3] << 6

    def _decode(self, block: Tensor) -> Tensor:
        shifts = torch.arange(0, 8, 2, dtype=torch.uint8)
        codes = (block.unsqueeze(2) >> shifts) & 3  # (rows, bytes, 4)
        return codes.flatten(1).float() - 1


def row_bytes(dim: int, kind: FeatureType) -> int:
    """Return the number of bytes of a stored row."""
    return {"float32": 4 * dim, "float16": 2 * dim, "sign": -(-dim // 4)}[kind]


def open_rows(
    path: Path, rows: int, dim: int, kind: FeatureType = "float32", to_write: bool = True, in_memory: bool = False
) -> RowStore:
    """Open a store for features of a storage type."""
    if kind == "sign":
        return SignStore(path, rows, dim, to_write=to_write, in_memory=in_memory)
    return RowStore(path, rows, dim, torch.float16 if kind == "float16" else torch.float32, to_write, in_memory)


def check_shared(folder: Path) -> None:
    """Check that all ranks share the file system of a folder; all ranks call this function together.

    Raises:
        CxlpError: On every rank, if one of them does not see the files of rank 0.
    """
    if not is_distributed():
        return
    # A new name, because file systems cache that a file is missing.
    token = folder / f".shared-{ask_rank_zero(time.time_ns)}"

    def write() -> None:
        with writing(token):
            folder.mkdir(parents=True, exist_ok=True)
            token.touch()

    on_rank_zero(write)
    seen = int(all_sum(torch.tensor([int(token.exists())])))
    token.unlink(missing_ok=True)
    if seen < world_size():
        raise CxlpError(
            f"{world_size() - seen} of {world_size()} processes do not see {folder}: with several machines, point "
            "--run.root (and model.frozen.store) to a disk that they share"
        )


def check_space(folder: Path, needed: int) -> None:
    """Check that the disk has enough free space.

    Raises:
        CxlpError: If the file system of ``folder`` has fewer than ``needed`` bytes free.
    """
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise CxlpError(
            f"the pooled features and maps need {needed / 1e9:.1f} GB in {folder}, but {free / 1e9:.1f} GB are free: "
            "point --run.root or model.frozen.store elsewhere, choose model.frozen.features: float16 (half the size) "
            "or sign (a sixteenth), or make the features smaller by the heads' pca_dim or sketch"
        )
