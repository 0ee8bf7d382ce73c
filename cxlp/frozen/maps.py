"""Feature maps on disk, while they wait for their head to be fitted."""

from collections.abc import Hashable, Iterator, Sequence
from functools import reduce
from pathlib import Path

import torch
from torch import Tensor

from cxlp.frozen.store import RowStore

#: Images read at a time.
STEP = 32


class MapStore:
    """The maps of images, one row each; a map that several heads take is kept once.

    Args:
        path: The file.
        images: How many images will come.
        names: For each head what tells its maps from others; the same name, the same map.
        batch: How many images are in ``first``.
        first: The first batch: for each head its maps ``(b * V, c, h, w)``, V views of each image. It is an
            example only, and not written.
    """

    def __init__(
        self,
        path: Path,
        images: int,
        names: Sequence[Sequence[Hashable]],
        batch: int,
        first: Sequence[tuple[Tensor, ...]],
    ) -> None:
        self.names = list(dict.fromkeys(name for part in names for name in part))
        self.places = [tuple(self.names.index(name) for name in part) for part in names]
        different = self._different(first)
        self.shapes = [(len(m) // batch, m.shape[2], m.shape[3], m.shape[1]) for m in different]  # (V, h, w, c)
        self.sizes = [v * h * w * c for v, h, w, c in self.shapes]
        dtype = reduce(torch.promote_types, (m.dtype for m in different))  # the widest: none is rounded
        self.rows = RowStore(path, images, sum(self.sizes), dtype)
        self.count = 0

    def append(self, inputs: Sequence[tuple[Tensor, ...]]) -> None:
        """Write a batch of images' maps."""
        flat = [
            m.permute(0, 2, 3, 1).reshape(-1, size)  # (b, V h w c)
            for m, size in zip(self._different(inputs), self.sizes, strict=True)
        ]
        rows = torch.cat(flat, dim=1)
        self.rows.write(torch.arange(self.count, self.count + len(rows)), rows)
        self.count += len(rows)

    def batches(self, device: torch.device) -> Iterator[tuple[int, list[tuple[Tensor, ...]]]]:
        """Go through the images in the order in which they came.

        Yields:
            The number of the first image, and for each head its maps, as they were given.
        """
        for start in range(0, self.count, STEP):
            rows = self.rows.read(start, min(start + STEP, self.count)).to(device)
            maps = [
                part.reshape(-1, *shape[1:]).permute(0, 3, 1, 2)  # (b V, c, h, w), channels last in memory
                for part, shape in zip(torch.split(rows, self.sizes, dim=1), self.shapes, strict=True)
            ]
            yield start, [tuple(maps[i] for i in places) for places in self.places]

    def delete(self) -> None:
        """Close and delete the file."""
        self.rows.close()
        self.rows.path.unlink(missing_ok=True)

    def _different(self, inputs: Sequence[tuple[Tensor, ...]]) -> list[Tensor]:
        """The maps by name, each once."""
        found: dict[int, Tensor] = {}
        for places, maps in zip(self.places, inputs, strict=True):
            found.update(zip(places, maps, strict=True))
        return [found[place] for place in range(len(self.names))]
