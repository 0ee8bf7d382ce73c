"""Rows on disk, written by position from several ranks, read in blocks: memory stays flat. Few rows stay in memory."""

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
    """Say what to do where something cannot be written, as on a full disk.

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
    """An ``(n, d)`` float matrix in one file, or in the memory of a process that alone reads it.

    Plain reads and writes rather than a memory map: pages of a map count as the process's memory,
    and ranks on several nodes do not see each other's.

    Args:
        path: The file; all ranks name the same one.
        rows: n.
        dim: d.
        dtype: Type of an entry: float32, float16 or bfloat16.
        to_write: Whether the file is made where it is missing, or only read.
        in_memory: Whether the rows are kept in memory, and there is no file.

    Raises:
        CxlpError: If a file to read is not there.
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
                path.touch()  # does not truncate: ranks come at different moments, and none may wipe another's rows
        self._file = self._open()

    def write(self, positions: Tensor, values: Tensor, column: int = 0) -> None:
        """Write rows ``(b, d)`` at their positions ``(b,)``, or parts of rows from a column on."""
        encoded = self._encode(values.detach().cpu())
        places = [place for place, _ in zip(positions.tolist(), encoded, strict=True)]
        first = self._bytes(column)
        if self.in_memory:
            for place, row in zip(places, encoded, strict=True):
                self._held[place, first : first + len(row)] = row
            return
        block = encoded.numpy()
        whole = column == 0 and block.shape[1] == self.row_bytes  # then neighbours are written at once
        starts = [i for i in range(len(places)) if i == 0 or not (whole and places[i] == places[i - 1] + 1)]
        with writing(self.path):
            for start, stop in pairwise([*starts, len(places)]):
                self._file.seek(places[start] * self.row_bytes + first)
                data = block[start:stop].data.cast("B")
                while data:  # a disk that fills up takes a part
                    data = data[self._file.write(data) :]

    def read(self, start: int, stop: int) -> Tensor:
        """Read rows ``start`` to ``stop``: ``(stop - start, d)``, perhaps the store's own memory: not to be changed."""
        if self.in_memory:
            return self._decode(self._held[start:stop])[:, : self.dim]
        buffer = np.empty((stop - start, self.row_bytes), dtype=np.uint8)
        self._read_into(buffer.data.cast("B"), start * self.row_bytes)
        return self._decode(torch.from_numpy(buffer))[:, : self.dim]

    def read_columns(self, start: int, stop: int) -> Tensor:
        """Read columns ``start`` to ``stop`` of all rows: ``(n, stop - start)``."""
        first = self._bytes(start)
        if self.in_memory:
            block = self._held[:, first : self._bytes(stop)].contiguous()
            return self._decode(block)[:, : stop - start]
        buffer = np.empty((self.rows, self._bytes(stop) - first), dtype=np.uint8)
        for position, row in enumerate(buffer):
            self._read_into(row.data, position * self.row_bytes + first)
        return self._decode(torch.from_numpy(buffer))[:, : stop - start]

    def _bytes(self, columns: int) -> int:
        """How many bytes so many columns take."""
        return columns * self.dtype.itemsize

    def _encode(self, values: Tensor) -> Tensor:
        """From numbers to bytes, row by row."""
        return values.to(self.dtype).contiguous().view(torch.uint8)

    def _decode(self, block: Tensor) -> Tensor:
        """From bytes to numbers, row by row."""
        return block.view(self.dtype)

    def blocks(self, limit_bytes: int = 256 << 20) -> Iterator[tuple[int, int]]:
        """Row ranges that each fit in a number of bytes as float32 (at least one row)."""
        step = max(1, limit_bytes // (4 * self.dim))
        for start in range(0, self.rows, step):
            yield start, min(start + step, self.rows)

    def sync(self) -> None:
        """Hand what was written to the disk, before other ranks read it."""
        if self.in_memory:
            return
        with writing(self.path):
            os.fsync(self._file.fileno())

    def reopen(self) -> None:
        """Open the file anew, to read what other ranks wrote since."""
        if self.in_memory:
            return
        self.close()
        self._file = self._open()

    def close(self) -> None:
        """Close the file; its rows stay, those in memory go. What did not reach the disk, :meth:`sync` tells."""
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
    """Rows that are signs divided by the root of the number of those that are not 0: two bits for each.

    Sign quantisation followed by L2 gives such vectors. :meth:`read` gives them as they were; :meth:`read_columns`
    gives the bare signs, whose products are integers: exact sums in float32, whatever their order.
    """

    def read(self, start: int, stop: int) -> Tensor:
        """Read rows ``start`` to ``stop``: ``(stop - start, d)``, float32, of unit length."""
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
    """Bytes of a stored row."""
    return {"float32": 4 * dim, "float16": 2 * dim, "sign": -(-dim // 4)}[kind]


def open_rows(
    path: Path, rows: int, dim: int, kind: FeatureType = "float32", to_write: bool = True, in_memory: bool = False
) -> RowStore:
    """Open a store of features of a type."""
    if kind == "sign":
        return SignStore(path, rows, dim, to_write=to_write, in_memory=in_memory)
    return RowStore(path, rows, dim, torch.float16 if kind == "float16" else torch.float32, to_write, in_memory)


def check_shared(folder: Path) -> None:
    """Refuse ranks that do not see one another's files; all ranks call it together.

    Raises:
        CxlpError: On every rank, if one of them does not see what rank 0 writes.
    """
    if not is_distributed():
        return
    token = folder / f".shared-{ask_rank_zero(time.time_ns)}"  # a new name: no file system has cached that it is absent

    def write() -> None:
        with writing(token):
            folder.mkdir(parents=True, exist_ok=True)
            token.touch()

    on_rank_zero(write)
    seen = int(all_sum(torch.tensor([int(token.exists())])))
    token.unlink(missing_ok=True)
    if seen < world_size():
        raise CxlpError(
            f"{world_size() - seen} of {world_size()} processes do not see {folder}: with several machines, "
            "--run.root (and model.frozen.store) must lie on a disk that they share"
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
            "point --run.root or model.frozen.store elsewhere, choose model.frozen.features: float16 (half of it) or "
            "sign (a sixteenth), or make the features smaller by the heads' pca_dim or sketch"
        )
