"""Storage of feature maps, in memory and on disk, until their heads are fitted."""

from collections.abc import Hashable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import reduce
from pathlib import Path

import torch
from torch import Tensor

from cxlp.frozen.store import RowStore, check_space
from cxlp.utils.distributed import local_world_size, on_rank_zero, rank
from cxlp.utils.memory import free_memory
from cxlp.utils.profiling import PhaseTimes

#: Upper bounds of the maps in memory over all processes of a machine: bytes, and divisor of the free memory.
MOST_BYTES, PART = 2 << 30, 4


def memory_for_maps() -> int:
    """Return how many bytes of maps a process may hold in memory; all ranks call this function together."""
    return min(MOST_BYTES, (free_memory() or 0) // PART) // local_world_size()


class MapStore:
    """Stores the maps of this rank's images, batch by batch; a map that several heads use is stored once.

    Args:
        path: File for the maps that do not fit into memory; created when it is needed.
        images: Upper bound of the number of images.
        names: For each head, an identifier of each of its maps. Equal identifiers mean the same map.
        memory: How many bytes, of the first batches, stay in memory.

    Attributes:
        memory: See above.
        positions: The images' positions among all training images, in the order of :meth:`append`.
        row_bytes: Bytes of one image's maps, 0 before the first batch.
    """

    def __init__(self, path: Path, images: int, names: Sequence[Sequence[Hashable]], memory: int) -> None:
        self.path, self.images, self.memory, self._left = path, images, memory, memory
        different = list(dict.fromkeys(name for part in names for name in part))
        self.places = [tuple(different.index(name) for name in part) for part in names]
        self.positions: list[int] = []
        self.row_bytes = 0
        self._sizes: list[int] = []  # batch sizes
        self._held: list[list[Tensor]] = []  # maps (b V, h, w, c) of the first batches
        self._rows: RowStore | None = None

    def append(self, inputs: Sequence[tuple[Tensor, ...]], positions: Tensor) -> None:
        """Store the maps of a batch of images.

        Args:
            inputs: For each head its maps ``(b * V, c, h, w)``, with V views of each image.
            positions: ``(b,)``, the images' positions among all training images.
        """
        found: dict[int, Tensor] = {}
        for places, maps in zip(self.places, inputs, strict=True):
            found.update(zip(places, maps, strict=True))
        # On the CPU and channels last, as in the file, so that sums over maps from memory and file are bitwise equal.
        different = [found[place].permute(0, 2, 3, 1).contiguous().cpu() for place in sorted(found)]
        if not self.positions:
            self.shapes = [torch.Size((len(m) // len(positions), *m.shape[1:])) for m in different]  # (V, h, w, c)
            self.dtype = reduce(torch.promote_types, (m.dtype for m in different))  # wide enough to round no map
            self.row_bytes = self.dtype.itemsize * sum(shape.numel() for shape in self.shapes)
        size = sum(m.nbytes for m in different)
        if self._rows is None and size <= self._left:
            self._left -= size
            self._held.append(different)
        else:
            if self._rows is None:
                width = sum(shape.numel() for shape in self.shapes)
                self._rows = RowStore(self.path, self.images, width, self.dtype)
            rows = torch.cat([m.view(len(positions), -1) for m in different], dim=1)
            self._rows.write(torch.arange(len(self.positions), len(self.positions) + len(rows)), rows)
        self.positions += positions.tolist()
        self._sizes.append(len(positions))

    def batches(self, device: torch.device) -> Iterator[tuple[Tensor, list[tuple[Tensor, ...]]]]:
        """Iterate over the batches in the order of :meth:`append`.

        Yields:
            The images' positions, and for each head its maps ``(b * V, c, h, w)``.
        """
        start = 0
        for number, size in enumerate(self._sizes):
            stop = start + size
            maps = self._held[number] if number < len(self._held) else self._read(start, stop)
            moved = [m.to(device).permute(0, 3, 1, 2) for m in maps]  # (b V, c, h, w), channels last in memory
            yield torch.tensor(self.positions[start:stop]), [tuple(moved[i] for i in places) for places in self.places]
            start = stop

    def _read(self, start: int, stop: int) -> list[Tensor]:
        assert self._rows is not None
        parts = torch.split(self._rows.read(start, stop), [shape.numel() for shape in self.shapes], dim=1)
        return [part.reshape(-1, *shape[1:]) for part, shape in zip(parts, self.shapes, strict=True)]

    def delete(self) -> None:
        """Delete the maps in memory and the file."""
        self._held, self._sizes = [], []
        if self._rows is not None:
            self._rows.close()
            self._rows = None
            self.path.unlink(missing_ok=True)


@dataclass(frozen=True)
class HeadMaps:
    """The stored maps of one head, for its fit; implements :class:`~cxlp.heads.fitting.KeptMaps`.

    Attributes:
        maps: The maps of all heads that need a fit.
        place: Index of the head among these heads.
        labels: Labels of all training images.
        device: Device of the maps that are returned.
        times: Collects the time of each phase.
    """

    maps: MapStore
    place: int
    labels: Tensor
    device: torch.device
    times: PhaseTimes

    def __iter__(self) -> Iterator[tuple[tuple[Tensor, ...], Tensor]]:
        for positions, waiting in self.maps.batches(self.device):
            yield waiting[self.place], positions

    @contextmanager
    def scratch(self, width: int) -> Iterator[RowStore]:
        """Yield temporary storage on disk with a row of ``width`` numbers for each of this rank's images."""
        path = self.maps.path.with_name(f"scratch-{rank()}.bin")
        store = RowStore(path, max(1, len(self.maps.positions)), width)
        try:
            on_rank_zero(lambda: check_space(path.parent, len(self.labels) * store.row_bytes))
            yield store
        finally:
            store.close()
            path.unlink()

    def measure(self, phase: str) -> AbstractContextManager[None]:
        """Return a context manager that measures the time of a phase."""
        return self.times.measure(phase)
