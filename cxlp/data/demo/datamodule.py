"""The demo: ten invented bird species, drawn on first use, so that a first run needs no data."""

import shutil
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

from tqdm import tqdm

from cxlp.data.datamodule import ImageDataModule
from cxlp.data.dataset import Sample, Split
from cxlp.data.demo.birds import SPECIES, draw_file
from cxlp.utils.distributed import usable_cores
from cxlp.utils.errors import CxlpError

#: Images per species.
COUNTS: dict[Split, int] = {"train": 40, "test": 20}
#: Which drawing the pictures are of: to be raised where it changes, so that old pictures are drawn anew.
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
        stamp = self.root / STAMP
        if self.root.exists() and any(self.root.iterdir()) and not stamp.exists():
            raise CxlpError(
                f"demo: {self.root} holds something else than the demo pictures: move it away, or give another "
                "--data.root"
            )
        self.root.parent.mkdir(parents=True, exist_ok=True)
        aside = Path(mkdtemp(prefix=".demo-", dir=self.root.parent))
        try:
            jobs = [
                (_path(aside, split, k, i), k, (list(COUNTS).index(split), k, i))
                for split, n in COUNTS.items()
                for k in range(len(SPECIES))
                for i in range(n)
            ]
            # Not forked: this process may have threads, and a drawing one imports neither them nor torch.
            with ProcessPoolExecutor(usable_cores(), mp_context=get_context("spawn")) as pool:
                list(tqdm(pool.map(draw_file, jobs, chunksize=16), total=len(jobs), desc="Drawing the demo birds"))
            (aside / STAMP).write_text(DRAWING)
            aside.chmod(0o755)
            try:
                if stamp.exists() and not self._is_drawn():  # of an older drawing
                    shutil.rmtree(self.root)
                elif self.root.exists():
                    self.root.rmdir()
                aside.rename(self.root)
            except OSError:
                # Another run was faster: its pictures are the same.
                if not self._is_drawn():
                    raise
        finally:
            shutil.rmtree(aside, ignore_errors=True)

    def _is_drawn(self) -> bool:
        stamp = self.root / STAMP
        return stamp.is_file() and stamp.read_text() == DRAWING

    def read(self) -> tuple[tuple[str, ...], dict[Split, list[Sample]]]:
        """List the pictures."""
        samples: dict[Split, list[Sample]] = {
            split: [Sample(_path(self.root, split, k, i), k) for k in range(len(SPECIES)) for i in range(n)]
            for split, n in COUNTS.items()
        }
        return tuple(species.name for species in SPECIES), samples


def _path(root: Path, split: Split, species: int, number: int) -> Path:
    return root / split / SPECIES[species].name / f"{number:02d}.jpg"
