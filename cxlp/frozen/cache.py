"""Features that outlive their run, in a folder that runs share: each set under the key of all that it depends on."""

import json
import os
import shutil
import time
from hashlib import blake2b
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import cxlp
from cxlp.distributed import barrier, from_rank_zero, rank
from cxlp.frozen.store import FeatureType, RowStore, open_rows
from cxlp.locking import abandoned, hold

#: Changes where features come out differently, or are stored differently, than by the code before.
FORMAT = 1


class Entry:
    """One set of features: a folder that is there when it is whole, and not before.

    Rows are written into a folder beside it, which is renamed when all is in it; what a killed run leaves bears
    another name, and is deleted by the next one. Two runs that compute the same at the same time both write;
    the first one's is kept. All ranks call each method together.

    Args:
        root: The folder that runs share.
        key: What the features depend on: plain values.

    Attributes:
        folder: Where they are, once :attr:`complete`.
        part: Where they are written meanwhile.
    """

    def __init__(self, root: Path, key: dict[str, Any]) -> None:
        self.root, self.key = root, {"format": FORMAT, "cxlp": cxlp.__version__, **key}
        number = blake2b(json.dumps(self.key, sort_keys=True).encode(), digest_size=10).hexdigest()
        self.folder = root / number
        self.part: Path | None = None

    @property
    def complete(self) -> bool:
        """Whether the features are there, on rank 0's word."""
        return bool(from_rank_zero(torch.tensor([int((self.folder / "entry.json").is_file())])))

    def begin(self) -> Path:
        """Make the folder to write into."""
        token = int(from_rank_zero(torch.tensor([time.time_ns()])))
        self.part = self.root / f".{self.folder.name}.{token}.part"
        if rank() == 0:
            for other in self.root.glob(".*.part"):
                if abandoned(other):
                    shutil.rmtree(other, ignore_errors=True)
            making = self.part.with_suffix(".new")
            making.mkdir(parents=True)
            hold(making)  # before others see it as a part, which they might take for abandoned
            making.rename(self.part)
        barrier()
        return self.part

    def commit(self) -> None:
        """All is written: let others see it."""
        assert self.part is not None
        barrier()
        if rank() == 0:
            (self.part / ".lock").unlink(missing_ok=True)
            (self.part / "entry.json").write_text(json.dumps(self.key, indent=2) + "\n")
            try:
                self.part.rename(self.folder)
            except OSError:  # another run was faster
                shutil.rmtree(self.part)
        barrier()
        self.part = None

    def give_up(self) -> None:
        """Delete what was written."""
        if self.part is not None and rank() == 0:
            shutil.rmtree(self.part, ignore_errors=True)
        self.part = None


class StoredFeatures:
    """Reads single rows; in the process that asks, so that loaders' workers do not share a file's position.

    Args:
        path: The rows; ``None``: there is nothing to read, rows are empty.
        rows: n.
        dim: D.
        kind: How they are stored.
    """

    def __init__(self, path: Path | None, rows: int = 0, dim: int = 0, kind: FeatureType = "float32") -> None:
        self.path, self.rows, self.dim, self.kind = path, rows, dim, kind
        self._store: tuple[int, RowStore] | None = None

    def __call__(self, item: int) -> Tensor:
        """Read a row ``(D,)``, float32."""
        if self.path is None:
            return torch.zeros(0)
        if self._store is None or self._store[0] != os.getpid():
            self._store = os.getpid(), open_rows(self.path, self.rows, self.dim, self.kind)
        return self._store[1].read(item, item + 1)[0].float()

    def __getstate__(self) -> dict[str, Any]:
        """Leave the open file behind."""
        return {**self.__dict__, "_store": None}


def digest_of_weights(module: nn.Module) -> str:
    """A number for a module's parameters and buffers."""
    found = blake2b(digest_size=16)
    for name, value in sorted(module.state_dict().items()):
        found.update(f"{name} {tuple(value.shape)} {value.dtype}".encode())
        found.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return found.hexdigest()


def size_in_bytes(root: Path) -> int:
    """What a store takes on the disk."""
    return sum(file.stat().st_size for file in root.rglob("*") if file.is_file())
