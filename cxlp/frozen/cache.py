"""A feature store that several runs share: each entry is keyed by everything that its features depend on."""

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
from cxlp.utils.locking import delete_abandoned, hold_part, release_lock


class Entry:
    """The features of one fit: a folder that exists only once it is complete.

    The folder holds the training features, the fitted heads of the network, and the features that these heads computed
    of other images. Everything is written under a temporary name and then renamed. The next run deletes the temporary
    files of a killed run. If two runs compute the same entry at the same time, both write it, and the entry that is
    complete first is kept. All ranks call each method together.

    Args:
        root: The folder that runs share.
        key: Returns everything that the features depend on, as plain values. Called on rank 0 only.

    Attributes:
        folder: Path of the entry once it is :attr:`complete`.
        part: Path of the temporary folder while the entry is written, otherwise ``None``.
    """

    def __init__(self, root: Path, key: Callable[[], dict[str, Any]]) -> None:
        self.root = root
        self.key: dict[str, Any] = {}

        def number() -> int:
            self.key = key()
            return int(digest(json.dumps(self.key, sort_keys=True), size=7), 16)

        self.folder = root / f"{ask_rank_zero(number):014x}"  # the same number on all ranks
        self.part: Path | None = None
        self._lock: BaseFileLock | None = None

    @property
    def complete(self) -> bool:
        """Whether the entry exists, as rank 0 sees it: file systems may differ between ranks for a while."""
        return bool(ask_rank_zero((self.folder / "entry.json").is_file))

    def facts(self) -> dict[str, Any]:
        """Return the facts that were passed to :meth:`commit`."""
        facts: dict[str, Any] = json.loads((self.folder / "entry.json").read_text())["facts"]
        return facts

    def begin(self) -> Path:
        """Create the temporary folder and return its path."""
        self.part = self.root / f".{self.folder.name}.{ask_rank_zero(time.time_ns)}.part"
        on_rank_zero(self._create_temporary)
        return self.part

    def _create_temporary(self) -> None:
        assert self.part is not None
        delete_abandoned(self.root.glob(".*.part"))
        self._lock = hold_part(self.part)
        with writing(self.part):
            self.part.mkdir()

    def commit(self, network: Network, facts: dict[str, Any]) -> None:
        """Complete the entry: rename the temporary folder, so that other runs see the entry.

        Args:
            network: The fitted network that computed the features.
            facts: Plain values to store with the features.
        """
        barrier()
        on_rank_zero(lambda: self._commit(network, facts))
        self.part = None

    def _commit(self, network: Network, facts: dict[str, Any]) -> None:
        assert self.part is not None
        heads = BytesIO()  # not to a file directly, because torch hides the reason if writing fails
        torch.save(network.heads.state_dict(), heads)
        facts = {**facts, "made by": _digest_of_network(network)}
        with writing(self.part):
            (self.part / "heads.pt").write_bytes(heads.getbuffer())
            (self.part / "entry.json").write_text(json.dumps({"facts": facts, "key": self.key}, indent=2) + "\n")
        if self.folder.is_dir() and not (self.folder / "entry.json").is_file():
            shutil.rmtree(self.folder)  # the rest of an entry that was deleted while a process read it
        try:
            self.part.rename(self.folder)
        except OSError:
            if not (self.folder / "entry.json").is_file():
                raise
            shutil.rmtree(self.part, ignore_errors=True)  # another run completed the entry first
        finally:
            release_lock(self._lock)

    def abort(self) -> None:
        """Delete the temporary folder."""
        if self.part is not None and rank() == 0:
            shutil.rmtree(self.part, ignore_errors=True)
            release_lock(self._lock)
        self.part = None

    def was_computed_by(self, network: Network) -> bool:
        """Return whether the entry is complete and this network, with equal weights bit by bit, computed it."""
        return self.complete and bool(ask_rank_zero(lambda: self.facts()["made by"] == _digest_of_network(network)))


class ScoredRows:
    """Writes the features of validation or test images, batch by batch, into a complete entry.

    Args:
        entry: A complete entry, whose heads compute the features.
        name: Name of the set of images.
        rows: Number of images, n.
        dim: Dimension of the features, D.
        kind: Storage type of the features.
    """

    def __init__(self, entry: Entry, name: str, rows: int, dim: int, kind: FeatureType) -> None:
        self.path = entry.folder / f"{name}.bin"
        self._part = entry.folder / f".{name}.{ask_rank_zero(time.time_ns)}.part"  # a name that no other run has
        self._lock: BaseFileLock | None = None
        self.size = rows * row_bytes(dim, kind)

        def make() -> None:
            delete_abandoned(entry.folder.glob(f".{name}.*.part"))
            check_space(entry.folder, self.size)
            self._lock = hold_part(self._part)
            with writing(self._part):
                self._part.touch()

        on_rank_zero(make)
        check_shared(entry.folder)
        self._rows = open_rows(self._part, rows, dim, kind)
        self._seen = torch.zeros(rows, dtype=torch.int64)

    def write(self, positions: Tensor, values: Tensor) -> None:
        """Write rows at their positions."""
        self._rows.write(positions, values)
        self._seen[positions.cpu()] += 1

    def close(self, keep: bool) -> None:
        """Close the file and keep it if ``keep`` is true and no row is missing; otherwise delete it.

        With ``keep``, all ranks call this method together.
        """
        if keep:
            self._rows.sync()
            complete = bool((all_sum(self._seen) == 1).all())
            self._rows.close()
            on_rank_zero(lambda: self._rename_or_delete(complete))
        else:
            self._rows.close()
            if rank() == 0:
                self._rename_or_delete(False)

    def _rename_or_delete(self, complete: bool) -> None:
        try:
            if complete and self._part.stat().st_size == self.size:
                self._part.rename(self.path)
            else:
                self._part.unlink(missing_ok=True)
        finally:
            release_lock(self._lock)


class StoredFeatures:
    """Stored features as a data set of rows. Each process, such as a loader's worker, opens the file itself.

    Args:
        path: The file of the rows, or ``None`` for empty rows without a file.
        rows: Number of images, n.
        dim: Dimension of the features, D.
        kind: Storage type of the features.
    """

    def __init__(self, path: Path | None, rows: int = 0, dim: int = 0, kind: FeatureType = "float32") -> None:
        self.path, self.rows, self.dim, self.kind = path, rows, dim, kind
        self._store: RowStore | None = None
        # Process that opened the file: a forked process would share the position in it.
        self._opened_by: int | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_store": None, "_opened_by": None}

    def __call__(self, item: int) -> Tensor:
        """Return a row ``(D,)``, float32."""
        if self.path is None:
            return torch.zeros(0)
        if self._store is None or self._opened_by != os.getpid():
            self._store = open_rows(self.path, self.rows, self.dim, self.kind, to_write=False)
            self._opened_by = os.getpid()
        return self._store.read(item, item + 1)[0].float()


def digest_of_weights(module: nn.Module) -> str:
    """Return a digest of a module's parameters and buffers."""
    parts: list[object] = []
    for name, value in sorted(module.state_dict().items()):
        data = value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data
        parts += [f"{name} {tuple(value.shape)} {value.dtype}", data]
    return digest(*parts)


def size_in_bytes(root: Path) -> int:
    """Return the size of a store on the disk."""
    return sum(file.stat().st_size for file in root.rglob("*") if file.is_file())


def clean(root: Path) -> None:
    """Delete the entries of a store, and no other files in its folder.

    Raises:
        CxlpError: If a run is writing into the store.
    """
    entries = [e for e in root.glob("*") if re.fullmatch("[0-9a-f]{14}", e.name) and (e / "features.bin").is_file()]
    if delete_abandoned([*root.glob(".*.part"), *(part for entry in entries for part in entry.glob(".*.part"))]):
        raise CxlpError(f"a run is writing into {root}: wait for the run, or stop it")
    for folder in entries:
        shutil.rmtree(folder)
    if not any(root.iterdir()):
        root.rmdir()


def _digest_of_network(network: Network) -> str:
    return digest_of_weights(network.backbone) + digest_of_weights(network.heads)
