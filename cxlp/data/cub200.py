"""CUB-200-2011 ("Birds-200"): 11,788 images of 200 bird species, with boxes.

Wah, Branson, Welinder, Perona and Belongie, "The Caltech-UCSD Birds-200-2011 Dataset", 2011.
"""

from pathlib import Path
from typing import Any

from cxlp.data.benchmark import Benchmark
from cxlp.data.dataset import Content, Sample, Split
from cxlp.data.download import Archive
from cxlp.data.lists import as_box, check_margin, check_totals, read_table, widened
from cxlp.utils.errors import CxlpError

FILES = (
    Archive(
        urls=("https://data.caltech.edu/records/65de6-vp158/files/CUB_200_2011.tgz?download=1",),
        file="CUB_200_2011.tgz",
        checksum="md5:97eceeb196236b17998738112f37df78",
        size="1.15 GB",
        folders=("CUB_200_2011",),
        marker="images.txt",
    ),
)
#: Numbers of images in the official lists of the full release.
OFFICIAL_COUNTS: dict[Split, int] = {"train": 5994, "test": 5794}
BOXES = "bounding_boxes.txt"


def read_cub200(folder: Path, bbox: bool, margin: float = 0.0) -> Content:
    """Read the official lists.

    Args:
        folder: The folder ``CUB_200_2011``, or a subset of its classes in the same layout.
        bbox: Whether samples have the bird's box.
        margin: Margin around the box, see :func:`~cxlp.data.lists.widened`.

    Returns:
        Class names such as ``001.Black_footed_Albatross``, and the samples by split.

    Raises:
        CxlpError: If a list is wrong; the error names the list and the line.
    """
    tables = {name: _table(folder / name) for name in (*CUB200.lists, *([BOXES] if bbox else []))}
    images, labels, is_training, classes = (tables[name] for name in CUB200.lists)
    for name, table in tables.items():
        if table is classes:
            continue
        if missing := images.keys() - table.keys():
            raise CxlpError(f"{folder / name} has no line for image {min(missing, key=_numeric)} of images.txt")
        if extra := table.keys() - images.keys():
            raise CxlpError(f"{folder / name} names image {min(extra, key=_numeric)}, which is not in images.txt")
    indices = {key: k for k, key in enumerate(classes)}
    samples: dict[Split, list[Sample]] = {"train": [], "test": []}
    for key, file in images.items():
        if labels[key] not in indices:
            list_ = folder / "image_class_labels.txt"
            raise CxlpError(f"{list_}: image {key} has class {labels[key]}, which is not in classes.txt")
        if is_training[key] not in ("0", "1"):
            list_ = folder / "train_test_split.txt"
            raise CxlpError(f"{list_}: image {key}: expected 0 or 1, got {is_training[key]!r}")
        box = widened(as_box(tables[BOXES][key].split(), f"{folder / BOXES}: image {key}"), margin) if bbox else None
        split: Split = "train" if is_training[key] == "1" else "test"
        samples[split].append(Sample(folder / "images" / file, indices[labels[key]], box))
    check_totals(folder, tuple(classes.values()), samples, OFFICIAL_COUNTS, full=len(classes) == 200)
    return tuple(classes.values()), samples


class CUB200(Benchmark):
    """CUB-200-2011, 1.15 GB.

    Args:
        root: The folder ``CUB_200_2011``.
        bbox: Crop each image to the bird's box, in training and test. Report it with every result.
        bbox_margin: Margin around the box on each side, as a fraction of its width and height.
        **common: See :class:`~cxlp.data.benchmark.Benchmark`.
    """

    name = "CUB-200-2011"
    files = FILES
    lists = ("images.txt", "image_class_labels.txt", "train_test_split.txt", "classes.txt")

    def __init__(
        self, root: str | Path = "data/CUB_200_2011", bbox: bool = False, bbox_margin: float = 0.0, **common: Any
    ) -> None:
        super().__init__(root, **common)
        check_margin(bbox_margin)
        self.bbox, self.bbox_margin = bbox, bbox_margin

    def read_lists(self) -> Content:
        """Read the official lists."""
        return read_cub200(self.root, self.bbox, self.bbox_margin)


def _table(path: Path) -> dict[str, str]:
    """Read lines ``id value``; the value extends to the end of the line."""

    def parse(line: str) -> tuple[str, str]:
        key, value = line.split(maxsplit=1)
        return key, value

    return read_table(path, "'id value'", parse)


def _numeric(key: str) -> tuple[int, str]:
    return (int(key) if key.isdigit() else 0, key)
