"""Features that outlive their run, in a folder that runs share: each set under the key of all that it depends on."""

import json
import os
import re
import shutil
import time
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import torch
from filelock import BaseFileLock
from torch import Tensor, nn

from cxlp.frozen.store import FeatureType, RowStore, check_shared, check_space, open_rows, row_bytes, writing
from cxlp.models.network import Network
from cxlp.utils.distributed import all_sum, ask_rank_zero, barrier, on_rank_zero, rank
from cxlp.utils.errors import CxlpError
from cxlp.utils.fingerprint import digest
from cxlp.utils.locking import delete_abandoned, hold_part, let_go


class Entry:
    """The features of one fit: a folder that is there when it is whole, and not before.

    It holds the training features, the network's fitted heads, and the features of other images that these
    heads made. All of it is written aside and renamed; what a killed run leaves bears another name, and is deleted
    by the next one. Two runs that compute the same at the same time both write; the first one's is kept. All
    ranks call each method together.

    Args:
        root: The folder that runs share.
        key: Makes what the features depend on: plain values. Asked on rank 0 only.

    Attributes:
        folder: Where they are, once :attr:`complete`.
        part: Where they are written meanwhile.
    """

    def __init__(self, root: Path, key: Callable[[], dict[str, Any]]) -> None:
        self.root = root
        self.key: dict[str, Any] = {}

        def number() -> int:
            self.key = key()
            return int(digest(json.dumps(self.key, sort_keys=True), size=7), 16)

        self.folder = root / f"{ask_rank_zero(number):014x}"  # one number for all ranks
        self.part: Path | None = None
        self._lock: BaseFileLock | None = None

    @property
    def complete(self) -> bool:
        """Whether the features are there."""
        return bool(ask_rank_zero((self.folder / "entry.json").is_file))  # its file system may be ahead

    def facts(self) -> dict[str, Any]:
        """Read what :meth:`commit` was told of the fit."""
        facts: dict[str, Any] = json.loads((self.folder / "entry.json").read_text())["facts"]
        return facts

    def begin(self) -> Path:
        """Make the folder to write into."""
        self.part = self.root / f".{self.folder.name}.{ask_rank_zero(time.time_ns)}.part"
        on_rank_zero(self._make)
        return self.part

    def _make(self) -> None:
        assert self.part is not None
        delete_abandoned(self.root.glob(".*.part"))
        self._lock = hold_part(self.part)
        with writing(self.part):
            self.part.mkdir()

    def commit(self, network: Network, facts: dict[str, Any]) -> None:
        """All is written: let others see it.

        Args:
            network: The fitted network that made the features.
            facts: Plain values to keep with them.
        """
        barrier()
        on_rank_zero(lambda: self._commit(network, facts))
        self.part = None

    def _commit(self, network: Network, facts: dict[str, Any]) -> None:
        assert self.part is not None
        heads = BytesIO()  # to a file, torch writes without saying what is wrong with it
        torch.save(network.heads.state_dict(), heads)
        facts = {**facts, "made by": _maker(network)}
        with writing(self.part):
            (self.part / "heads.pt").write_bytes(heads.getbuffer())
            (self.part / "entry.json").write_text(json.dumps({"facts": facts, "key": self.key}, indent=2) + "\n")
        if self.folder.is_dir() and not (self.folder / "entry.json").is_file():
            shutil.rmtree(self.folder)  # the rest of one that was deleted while somebody read it
        try:
            self.part.rename(self.folder)
        except OSError:
            if not (self.folder / "entry.json").is_file():
                raise
            shutil.rmtree(self.part, ignore_errors=True)  # another run was faster
        finally:
            let_go(self._lock)

    def give_up(self) -> None:
        """Delete what was written."""
        if self.part is not None and rank() == 0:
            shutil.rmtree(self.part, ignore_errors=True)
            let_go(self._lock)
        self.part = None

    def was_made_by(self, network: Network) -> bool:
        """Whether the features are there, and backbone and heads are those that made them, bit by bit."""
        return self.complete and bool(ask_rank_zero(lambda: self.facts()["made by"] == _maker(network)))


class ScoredRows:
    """Features of held-out or test images, which an entry's heads have made, as they come.

    Args:
        entry: A complete one.
        name: Name of the set of images.
        rows: n.
        dim: D.
        kind: How they are stored.
    """

    def __init__(self, entry: Entry, name: str, rows: int, dim: int, kind: FeatureType) -> None:
        self.path = entry.folder / f"{name}.bin"
        self._aside = entry.folder / f".{name}.{ask_rank_zero(time.time_ns)}.part"  # as no other run's
        self._lock: BaseFileLock | None = None
        self.size = rows * row_bytes(dim, kind)

        def make() -> None:
            delete_abandoned(entry.folder.glob(f".{name}.*.part"))
            check_space(entry.folder, self.size)
            self._lock = hold_part(self._aside)
            with writing(self._aside):
                self._aside.touch()

        on_rank_zero(make)
        check_shared(entry.folder)
        self._rows = open_rows(self._aside, rows, dim, kind)
        self._seen = torch.zeros(rows, dtype=torch.int64)

    def write(self, positions: Tensor, values: Tensor) -> None:
        """Write rows at their positions."""
        self._rows.write(positions, values)
        self._seen[positions.cpu()] += 1

    def close(self, keep: bool) -> None:
        """Close them, and keep them where that is asked and none is missing; all ranks together where ``keep``."""
        if keep:
            self._rows.sync()
            whole = bool((all_sum(self._seen) == 1).all())
            self._rows.close()
            on_rank_zero(lambda: self._settle(whole))
        else:
            self._rows.close()
            if rank() == 0:
                self._settle(False)

    def _settle(self, whole: bool) -> None:
        try:
            if whole and self._aside.stat().st_size == self.size:
                self._aside.rename(self.path)
            else:
                self._aside.unlink(missing_ok=True)
        finally:
            let_go(self._lock)


class StoredFeatures:
    """Reads single rows, as the items of a data set; each process, as a loader's worker, opens the file for itself.

    Args:
        path: The rows; ``None``: there is nothing to read, rows are empty.
        rows: n.
        dim: D.
        kind: How they are stored.
    """

    def __init__(self, path: Path | None, rows: int = 0, dim: int = 0, kind: FeatureType = "float32") -> None:
        self.path, self.rows, self.dim, self.kind = path, rows, dim, kind
        self._store: RowStore | None = None
        self._opened_by: int | None = None  # a forked process shares the position in an open file

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_store": None, "_opened_by": None}

    def __call__(self, item: int) -> Tensor:
        """Read a row ``(D,)``, float32."""
        if self.path is None:
            return torch.zeros(0)
        if self._store is None or self._opened_by != os.getpid():
            self._store = open_rows(self.path, self.rows, self.dim, self.kind, to_write=False)
            self._opened_by = os.getpid()
        return self._store.read(item, item + 1)[0].float()


def digest_of_weights(module: nn.Module) -> str:
    """A number for a module's parameters and buffers."""
    parts: list[object] = []
    for name, value in sorted(module.state_dict().items()):
        data = value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data
        parts += [f"{name} {tuple(value.shape)} {value.dtype}", data]
    return digest(*parts)


def size_in_bytes(root: Path) -> int:
    """What a store takes on the disk."""
    return sum(file.stat().st_size for file in root.rglob("*") if file.is_file())


def clean(root: Path) -> None:
    """Delete what is in a store, and nothing else that lies there.

    Raises:
        CxlpError: If a run is writing into it.
    """
    entries = [e for e in root.glob("*") if re.fullmatch("[0-9a-f]{14}", e.name) and (e / "features.bin").is_file()]
    if delete_abandoned([*root.glob(".*.part"), *(part for entry in entries for part in entry.glob(".*.part"))]):
        raise CxlpError(f"a run is writing into {root}: wait for it, or stop it")
    for folder in entries:
        shutil.rmtree(folder)
    if not any(root.iterdir()):
        root.rmdir()


def _maker(network: Network) -> str:
    return digest_of_weights(network.backbone) + digest_of_weights(network.heads)
