"""Feature maps on disk, while they wait for their heads to be fitted."""

from collections.abc import Hashable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import reduce
from pathlib import Path

import torch
from torch import Tensor

from cxlp.frozen.store import RowStore, check_space
from cxlp.utils.distributed import on_rank_zero, rank
from cxlp.utils.profiling import PhaseTimes

#: Images read at a time.
STEP = 32


class MapStore:
    """The maps of this rank's images, one row each; a map that several heads take is kept once.

    Args:
        path: The file; it is made when the first images come, which tell the maps' sizes.
        images: How many images will come at most.
        names: For each head what tells its maps from others; the same name, the same map.

    Attributes:
        positions: The images' places among all training images, in the order in which they came.
        row_bytes: Bytes of an image's maps, 0 before the first images.
    """

    def __init__(self, path: Path, images: int, names: Sequence[Sequence[Hashable]]) -> None:
        self.path, self.images = path, images
        different = list(dict.fromkeys(name for part in names for name in part))
        self.places = [tuple(different.index(name) for name in part) for part in names]
        self.positions: list[int] = []
        self._rows: RowStore | None = None

    @property
    def row_bytes(self) -> int:
        """See the class."""
        return 0 if self._rows is None else self._rows.row_bytes

    def append(self, inputs: Sequence[tuple[Tensor, ...]], positions: Tensor) -> None:
        """Write a batch of images' maps.

        Args:
            inputs: For each head its maps ``(b * V, c, h, w)``, V views of each image.
            positions: ``(b,)``.
        """
        found: dict[int, Tensor] = {}  # each map once
        for places, maps in zip(self.places, inputs, strict=True):
            found.update(zip(places, maps, strict=True))
        different = [found[place] for place in sorted(found)]
        if self._rows is None:
            shapes = [(len(m) // len(positions), m.shape[2], m.shape[3], m.shape[1]) for m in different]
            self.shapes = [torch.Size(shape) for shape in shapes]  # (V, h, w, c)
            dtype = reduce(torch.promote_types, (m.dtype for m in different))  # the widest: none is rounded
            self._rows = RowStore(self.path, self.images, sum(shape.numel() for shape in self.shapes), dtype)
        rows = torch.cat([m.permute(0, 2, 3, 1).reshape(len(positions), -1) for m in different], dim=1)
        self._rows.write(torch.arange(len(self.positions), len(self.positions) + len(rows)), rows)
        self.positions += positions.tolist()

    def batches(self, device: torch.device) -> Iterator[tuple[Tensor, list[tuple[Tensor, ...]]]]:
        """Go through the images in the order in which they came.

        Yields:
            The images' positions, and for each head its maps, as they were given.
        """
        if self._rows is None:  # more ranks than images
            return
        for start in range(0, len(self.positions), STEP):
            positions = self.positions[start : start + STEP]
            rows = self._rows.read(start, start + len(positions)).to(device)
            parts = torch.split(rows, [shape.numel() for shape in self.shapes], dim=1)
            maps = [
                part.reshape(-1, *shape[1:]).permute(0, 3, 1, 2)  # (b V, c, h, w), channels last in memory
                for part, shape in zip(parts, self.shapes, strict=True)
            ]
            yield torch.tensor(positions), [tuple(maps[i] for i in places) for places in self.places]

    def delete(self) -> None:
        """Close and delete the file."""
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
