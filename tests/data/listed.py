"""A small data set with given samples."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cxlp.data.datamodule import ImageDataModule
from cxlp.data.dataset import Sample, Split
from tests.generate import texture, write_image


class Listed(ImageDataModule):
    """A data set with given samples."""

    name = "listed"

    def __init__(self, root: Path, counts: Sequence[int] = (8, 8), image_size: int | None = 16, **common: Any) -> None:
        super().__init__(root, image_size=image_size, **common)
        self.counts = counts

    def read(self) -> tuple[tuple[str, ...], dict[Split, list[Sample]]]:
        parts: dict[Split, list[Sample]] = {"train": [], "test": []}
        for k, count in enumerate(self.counts):
            for i in range(count + 2):
                path = self.root / f"{k}_{i}.png"
                if not path.exists():
                    write_image(path, texture(k, len(self.counts), np.random.default_rng((k, i)), 24, 24))
                parts["train" if i < count else "test"].append(Sample(path, k))
        return tuple(f"class {k}" for k in range(len(self.counts))), parts


def ready(root: Path, **arguments: Any) -> Listed:
    module = Listed(root, **({"num_workers": 0} | arguments))
    module.setup()
    return module
