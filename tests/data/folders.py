"""Small folders of images."""

from pathlib import Path

import numpy as np

from cxlp.data.dataset import Sample
from tests.generate import write_image

DOT = np.zeros((4, 4, 3), np.uint8)


def fill(root: Path, *files: str) -> Path:
    for file in files:
        write_image(root / file, DOT)
    return root


def names(samples: list[Sample], root: Path) -> list[str]:
    return [sample.path.relative_to(root).as_posix() for sample in samples]
