"""The demo data set: ten invented bird species, drawn on first use, so that a first run needs no data."""

import shutil
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from cxlp.data.datamodule import ImageDataModule
from cxlp.data.dataset import Content, Sample, Split
from cxlp.data.demo.birds import SPECIES, draw_file
from cxlp.utils.distributed import usable_cores
from cxlp.utils.errors import CxlpError
from cxlp.utils.locking import locked
from cxlp.utils.main_script import without_main_script
from cxlp.utils.progress import track

#: Number of images per species.
COUNTS: dict[Split, int] = {"train": 40, "test": 20}
#: Version of the drawings, incremented with each change, so that outdated pictures are drawn again.
DRAWING = "cxlp demo birds, drawing 1\n"
STAMP = "drawing.txt"


class Demo(ImageDataModule):
    """Drawn images of ten invented bird species, identical on all machines with the same version of Pillow.

    Args:
        root: Folder of the pictures, ``root/{train,test}/<species>/NN.jpg``.
        **common: See :class:`~cxlp.data.datamodule.ImageDataModule`.
    """

    name = "demo"

    def __init__(self, root: str | Path = "data/demo", **common: Any) -> None:
        super().__init__(root, **common)

    def prepare_data(self) -> None:
        """Draw the pictures if they are missing, in one process per machine.

        They are written to a temporary folder, which is renamed once it is complete.
        """
        if self._is_drawn():
            return
        if self.root.exists() and any(self.root.iterdir()) and not (self.root / STAMP).exists():
            raise CxlpError(
                f"demo: {self.root} contains other files than the demo pictures: move the folder away, or choose "
                "another --data.root"
            )
        with locked(self.root.parent / f".{self.root.name}.lock", "the demo pictures"):
            if not self._is_drawn():  # another process may have drawn them meanwhile
                self._draw(self.root.parent / f".{self.root.name}.partial")

    def _draw(self, temporary: Path) -> None:
        jobs = [
            (_path(temporary, split, k, i), k, (s, k, i))
            for s, (split, count) in enumerate(COUNTS.items())
            for k in range(len(SPECIES))
            for i in range(count)
        ]
        try:
            shutil.rmtree(temporary, ignore_errors=True)  # left by a killed process
            # Spawn rather than fork, because this process may have threads. The new processes do not import torch.
            spawning = get_context("spawn")
            with without_main_script(), ProcessPoolExecutor(usable_cores(), mp_context=spawning) as pool:
                drawn = pool.map(draw_file, jobs, chunksize=16)
                list(track(drawn, "Drawing the demo birds", len(jobs)))
            (temporary / STAMP).write_text(DRAWING)
            if (self.root / STAMP).exists():  # pictures of an older version
                shutil.rmtree(self.root)
            elif self.root.exists():
                self.root.rmdir()
            temporary.rename(self.root)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)

    def _is_drawn(self) -> bool:
        stamp = self.root / STAMP
        return stamp.is_file() and stamp.read_text() == DRAWING

    def read(self) -> Content:
        """List the pictures."""
        samples: dict[Split, list[Sample]] = {
            split: [Sample(_path(self.root, split, k, i), k) for k in range(len(SPECIES)) for i in range(n)]
            for split, n in COUNTS.items()
        }
        return tuple(species.name for species in SPECIES), samples


def _path(root: Path, split: Split, species: int, number: int) -> Path:
    return root / split / SPECIES[species].name / f"{number:02d}.jpg"
