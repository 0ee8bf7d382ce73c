"""Feature maps in memory and on disk, while they wait for their heads to be fitted."""

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

#: Most bytes of maps that stay in memory, over all processes of a machine; and at most this part of the free ones.
MOST_BYTES, PART = 2 << 30, 4


def memory_for_maps() -> int:
    """How many bytes of maps a process may hold in memory; all ranks call it together."""
    return min(MOST_BYTES, (free_memory() or 0) // PART) // local_world_size()


class MapStore:
    """The maps of this rank's images, batch by batch; a map that several heads take is kept once.

    Args:
        path: The file of what does not fit into memory; it is made when it is needed.
        images: How many images will come at most.
        names: For each head what tells its maps from others; the same name, the same map.
        memory: How many bytes stay in memory: the first batches.

    Attributes:
        memory: See above.
        positions: The images' places among all training images, in the order in which they came.
        row_bytes: Bytes of an image's maps, 0 before the first images.
    """

    def __init__(self, path: Path, images: int, names: Sequence[Sequence[Hashable]], memory: int) -> None:
        self.path, self.images, self.memory, self._left = path, images, memory, memory
        different = list(dict.fromkeys(name for part in names for name in part))
        self.places = [tuple(different.index(name) for name in part) for part in names]
        self.positions: list[int] = []
        self.row_bytes = 0
        self._sizes: list[int] = []  # of the batches
        self._held: list[list[Tensor]] = []  # the first batches: their maps (b V, h, w, c)
        self._rows: RowStore | None = None

    def append(self, inputs: Sequence[tuple[Tensor, ...]], positions: Tensor) -> None:
        """Keep a batch of images' maps.

        Args:
            inputs: For each head its maps ``(b * V, c, h, w)``, V views of each image.
            positions: ``(b,)``.
        """
        found: dict[int, Tensor] = {}  # each map once
        for places, maps in zip(self.places, inputs, strict=True):
            found.update(zip(places, maps, strict=True))
        # On the CPU and channels last, as the file has them, so that sums over them are the same to the last bit.
        different = [found[place].permute(0, 2, 3, 1).contiguous().cpu() for place in sorted(found)]
        if not self.positions:
            self.shapes = [torch.Size((len(m) // len(positions), *m.shape[1:])) for m in different]  # (V, h, w, c)
            self.dtype = reduce(torch.promote_types, (m.dtype for m in different))  # the widest: none is rounded
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
        """Go through the batches in the order in which they came.

        Yields:
            The images' positions, and for each head its maps, as they were given.
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
        """Forget the maps; close and delete the file."""
        self._held, self._sizes = [], []
        if self._rows is not None:
            self._rows.close()
            self._rows = None
            self.path.unlink(missing_ok=True)


@dataclass(frozen=True)
class HeadMaps:
    """What a head's fit reads when it solves, see :class:`~cxlp.heads.fitting.KeptMaps`.

    Attributes:
        maps: Those of all heads that have something to fit.
        place: The head's place among these heads.
        labels: Those of all training images.
        device: Where the maps are wanted.
        times: Gets the time of each phase.
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
        """Give room for a row of numbers for each of this rank's images."""
        path = self.maps.path.with_name(f"scratch-{rank()}.bin")
        store = RowStore(path, max(1, len(self.maps.positions)), width)
        try:
            on_rank_zero(lambda: check_space(path.parent, len(self.labels) * store.row_bytes))
            yield store
        finally:
            store.close()
            path.unlink()

    def measure(self, phase: str) -> AbstractContextManager[None]:
        """Time what runs inside a ``with``."""
        return self.times.measure(phase)
