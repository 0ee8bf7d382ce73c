"""CUB-200-2011 ("Birds-200"): 11,788 pictures of 200 bird species, with boxes.

Wah, Branson, Welinder, Perona and Belongie, "The Caltech-UCSD Birds-200-2011 Dataset", 2011.
"""

from pathlib import Path
from typing import Any

from cxlp.data.datamodule import ImageDataModule
from cxlp.data.dataset import Sample, Split
from cxlp.data.download import Archive, obtain
from cxlp.data.lists import as_box, check_margin, check_totals, read_lines, require, widened
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
#: Images for training and test in the full release, by its own lists.
OFFICIAL_COUNTS: dict[Split, int] = {"train": 5994, "test": 5794}
LISTS = ("images.txt", "image_class_labels.txt", "train_test_split.txt", "classes.txt")


def read_cub200(folder: Path, bbox: bool, margin: float = 0.0) -> tuple[tuple[str, ...], dict[Split, list[Sample]]]:
    """Read the official lists.

    Args:
        folder: ``CUB_200_2011``, or a release of fewer classes in the same layout.
        bbox: Whether samples carry the bird's box.
        margin: What is added to the box, see :func:`~cxlp.data.lists.widened`.

    Returns:
        Class names such as ``001.Black_footed_Albatross``, and the samples by split.

    Raises:
        CxlpError: Names the list and the line that is wrong.
    """
    classes = _table(folder / "classes.txt")
    indices = {key: k for k, key in enumerate(classes)}
    images = _table(folder / "images.txt")
    labels = _table(folder / "image_class_labels.txt")
    is_training = _table(folder / "train_test_split.txt")
    boxes = _table(folder / "bounding_boxes.txt") if bbox else {}
    tables = {"image_class_labels": labels, "train_test_split": is_training} | (
        {"bounding_boxes": boxes} if bbox else {}
    )
    for name, table in tables.items():
        missing = images.keys() - table.keys()
        if missing:
            raise CxlpError(f"{folder / name}.txt has no line for image {min(missing, key=_numeric)} of images.txt")
        if extra := table.keys() - images.keys():
            raise CxlpError(f"{folder / name}.txt names image {min(extra, key=_numeric)}, which images.txt does not")
    samples: dict[Split, list[Sample]] = {"train": [], "test": []}
    for key, file in images.items():
        if labels[key] not in indices:
            list_ = folder / "image_class_labels.txt"
            raise CxlpError(f"{list_}: image {key} has class {labels[key]}, which is not in classes.txt")
        box = None
        if bbox:
            box = widened(as_box(boxes[key].split(), f"{folder / 'bounding_boxes.txt'}: image {key}"), margin)
        if is_training[key] not in ("0", "1"):
            list_ = folder / "train_test_split.txt"
            raise CxlpError(f"{list_}: image {key}: expected 0 or 1, got {is_training[key]!r}")
        split: Split = "train" if is_training[key] == "1" else "test"
        samples[split].append(Sample(folder / "images" / file, indices[labels[key]], box))
    check_totals(folder, tuple(classes.values()), samples, OFFICIAL_COUNTS, full=len(classes) == 200)
    return tuple(classes.values()), samples


class CUB200(ImageDataModule):
    """CUB-200-2011.

    Args:
        root: The folder ``CUB_200_2011``.
        bbox: Crop each image to the bird's box, in training and in test; belongs to every result.
        bbox_margin: What a crop keeps around the box, in parts of its width and height on each side.
        download: Fetch and unpack the data set (1.15 GB) where it is missing.
        **common: See :class:`~cxlp.data.datamodule.ImageDataModule`.
    """

    name = "CUB-200-2011"

    def __init__(
        self,
        root: str | Path = "data/CUB_200_2011",
        bbox: bool = False,
        bbox_margin: float = 0.0,
        download: bool = True,
        **common: Any,
    ) -> None:
        super().__init__(root, **common)
        check_margin(bbox_margin)
        self.bbox, self.bbox_margin, self.download = bbox, bbox_margin, download

    def prepare_data(self) -> None:
        """Download where the data set is missing, on one process per machine."""
        obtain(FILES, self.root, self.name, allowed=self.download)

    def read(self) -> tuple[tuple[str, ...], dict[Split, list[Sample]]]:
        """Read the official lists."""
        require(LISTS, self.root, FILES, self.name)
        return read_cub200(self.root, self.bbox, self.bbox_margin)


def _table(path: Path) -> dict[str, str]:
    """Lines ``key value``, the value to the end of the line."""
    table: dict[str, str] = {}
    for number, line in read_lines(path):
        key, _, value = line.partition(" ")
        if not value:
            raise CxlpError(f"{path}, line {number}: expected 'id value', got {line!r}")
        if key in table:
            raise CxlpError(f"{path}, line {number}: a second line for {key}")
        table[key] = value.strip()
    return table


def _numeric(key: str) -> tuple[int, str]:
    return (int(key) if key.isdigit() else 0, key)
