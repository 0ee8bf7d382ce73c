"""Pascal VOC 2007 classification: 9,963 photographs, any number of 20 kinds of objects in each.

Everingham, Van Gool, Williams, Winn and Zisserman, "The Pascal Visual Object Classes (VOC) Challenge",
IJCV 2010.
"""

from pathlib import Path
from typing import Any, Literal, get_args

from cxlp.data.datamodule import ImageDataModule
from cxlp.data.dataset import Sample, Split
from cxlp.data.download import Archive, obtain
from cxlp.data.lists import check_totals, read_lines, require
from cxlp.utils.errors import CxlpError

FILES = tuple(
    Archive(
        urls=(f"http://host.robots.ox.ac.uk/pascal/VOC/voc2007/{file}", f"https://pjreddie.com/media/files/{file}"),
        file=file,
        checksum=checksum,
        size=size,
        folders=("VOCdevkit/VOC2007",),
        marker=marker,
    )
    for file, checksum, size, marker in (
        (
            "VOCtrainval_06-Nov-2007.tar",
            "md5:c52e279531787c972589f7e41ab4ae64",
            "460 MB",
            "ImageSets/Main/aeroplane_train.txt",
        ),
        (
            "VOCtest_06-Nov-2007.tar",
            "md5:b6e924de25625d8de591ea690078ad9f",
            "451 MB",
            "ImageSets/Main/aeroplane_test.txt",
        ),
    )
)
CLASSES = (
    *("aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable", "dog"),
    *("horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor"),
)
OFFICIAL_COUNTS: dict[Split, int] = {"train": 2501, "val": 2510, "test": 4952}
Difficult = Literal["ignore", "negative", "positive"]


def read_voc2007(folder: Path, difficult: Difficult = "ignore") -> tuple[tuple[str, ...], dict[Split, list[Sample]]]:
    """Read the official lists ``ImageSets/Main/<class>_<split>.txt``.

    Args:
        folder: ``VOC2007``, or a release of fewer images in the same layout.
        difficult: See :class:`VOC2007`.

    Returns:
        The 20 class names in alphabetical order, and the samples by split.

    Raises:
        CxlpError: Names the list and the line that is wrong.
    """
    values = {"1": 1, "-1": -1, "0": {"ignore": 0, "negative": -1, "positive": 1}[difficult]}
    samples: dict[Split, list[Sample]] = {}
    for split in OFFICIAL_COUNTS:
        paths = [folder / "ImageSets" / "Main" / f"{name}_{split}.txt" for name in CLASSES]
        tables = [_table(path, values) for path in paths]
        for path, table in zip(paths, tables, strict=True):
            for some, other, lacking in ((tables[0], table, path), (table, tables[0], paths[0])):
                if without := some.keys() - other.keys():
                    raise CxlpError(f"{lacking} has no line for image {min(without)}, which the other classes have")
        samples[split] = [
            Sample(folder / "JPEGImages" / f"{key}.jpg", tuple(table[key] for table in tables)) for key in tables[0]
        ]
    check_totals(folder, CLASSES, samples, OFFICIAL_COUNTS, full=False)
    return CLASSES, samples


class VOC2007(ImageDataModule):
    """Pascal VOC 2007 classification.

    ``validation: official`` trains on the list ``train`` and validates on ``val``; otherwise both are
    training images, as in published results, which train on ``trainval``.

    Args:
        root: The folder ``VOC2007``, into which both archives were unpacked.
        difficult: What an image is for a class of which it shows only objects that are marked as
            difficult, in training and in scoring alike. ``ignore``, the official protocol: it takes
            part in nothing for that class. ``negative``: it counts as one without the class;
            ``positive``: as one with it. Results of different choices cannot be compared.
        download: Fetch and unpack the data set (0.9 GB) where it is missing.
        **common: See :class:`~cxlp.data.datamodule.ImageDataModule`.
    """

    name = "Pascal VOC 2007"
    multi_label = True

    def __init__(
        self,
        root: str | Path = "data/VOCdevkit/VOC2007",
        difficult: Difficult = "ignore",
        download: bool = True,
        **common: Any,
    ) -> None:
        super().__init__(root, **common)
        if difficult not in get_args(Difficult):
            raise CxlpError(f"data.difficult is {difficult!r}: it must be one of {', '.join(get_args(Difficult))}")
        self.difficult, self.download = difficult, download

    def prepare_data(self) -> None:
        """Download where the data set is missing, on one process per machine."""
        obtain(FILES, self.root, self.name, allowed=self.download)

    def read(self) -> tuple[tuple[str, ...], dict[Split, list[Sample]]]:
        """Read the official lists."""
        require([archive.marker for archive in FILES], self.root, FILES, self.name)
        return read_voc2007(self.root, self.difficult)


def _table(path: Path, values: dict[str, int]) -> dict[str, int]:
    """Lines ``000032  1``: the image's name and its label."""
    table: dict[str, int] = {}
    for number, line in read_lines(path):
        words = line.split()
        if len(words) != 2 or words[1] not in values:
            raise CxlpError(f"{path}, line {number}: expected an image and 1, -1 or 0, got {line!r}")
        if words[0] in table:
            raise CxlpError(f"{path}, line {number}: a second line for {words[0]}")
        table[words[0]] = values[words[1]]
    return table
