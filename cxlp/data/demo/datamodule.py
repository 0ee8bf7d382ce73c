"""The demo: ten invented bird species, drawn on first use, so that a first run needs no data."""

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
from cxlp.utils.main_script import starting_without_main
from cxlp.utils.progress import track

#: Images per species.
COUNTS: dict[Split, int] = {"train": 40, "test": 20}
#: Which version of the drawings the pictures are: raised with each change, so that old pictures are drawn again.
DRAWING = "cxlp demo birds, drawing 1\n"
STAMP = "drawing.txt"


class Demo(ImageDataModule):
    """Pictures of :data:`~cxlp.data.demo.birds.SPECIES`, the same ones on every machine with the same Pillow.

    Args:
        root: Where they are kept, ``root/{train,test}/<species>/NN.jpg``.
        **common: See :class:`~cxlp.data.datamodule.ImageDataModule`.
    """

    name = "demo"

    def __init__(self, root: str | Path = "data/demo", **common: Any) -> None:
        super().__init__(root, **common)

    def prepare_data(self) -> None:
        """Draw the pictures once, on one process per machine; written aside, renamed when whole."""
        if self._is_drawn():
            return
        if self.root.exists() and any(self.root.iterdir()) and not (self.root / STAMP).exists():
            raise CxlpError(
                f"demo: {self.root} holds something else than the demo pictures: move it away, or give another "
                "--data.root"
            )
        with locked(self.root.parent / f".{self.root.name}.lock", "the demo pictures"):
            if not self._is_drawn():  # another process may have been faster
                self._draw(self.root.parent / f".{self.root.name}.partial")

    def _draw(self, aside: Path) -> None:
        jobs = [
            (_path(aside, split, k, i), k, (s, k, i))
            for s, (split, count) in enumerate(COUNTS.items())
            for k in range(len(SPECIES))
            for i in range(count)
        ]
        try:
            shutil.rmtree(aside, ignore_errors=True)  # what a process that was killed has left
            # Not forked: this process may have threads, and a drawing one imports neither them nor torch.
            spawning = get_context("spawn")
            with starting_without_main(), ProcessPoolExecutor(usable_cores(), mp_context=spawning) as pool:
                drawn = pool.map(draw_file, jobs, chunksize=16)
                list(track(drawn, "Drawing the demo birds", len(jobs)))
            (aside / STAMP).write_text(DRAWING)
            if (self.root / STAMP).exists():  # an older drawing
                shutil.rmtree(self.root)
            elif self.root.exists():
                self.root.rmdir()
            aside.rename(self.root)
        finally:
            shutil.rmtree(aside, ignore_errors=True)

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
