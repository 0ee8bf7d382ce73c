"""Pascal VOC 2007 classification: 9,963 photographs with any number of 20 kinds of objects.

Everingham, Van Gool, Williams, Winn and Zisserman, "The Pascal Visual Object Classes (VOC) Challenge",
IJCV 2010.
"""

from pathlib import Path
from typing import Any, Literal, get_args

from cxlp.data.benchmark import Benchmark
from cxlp.data.dataset import Content, Sample, Split
from cxlp.data.download import Archive
from cxlp.data.lists import check_totals, read_table
from cxlp.utils.errors import CxlpError

FILES = tuple(
    Archive(
        urls=(f"http://host.robots.ox.ac.uk/pascal/VOC/voc2007/{file}", f"https://pjreddie.com/media/files/{file}"),
        file=file,
        checksum=checksum,
        size=size,
        folders=("VOCdevkit/VOC2007",),
        marker=f"ImageSets/Main/aeroplane_{split}.txt",
    )
    for file, checksum, size, split in (
        ("VOCtrainval_06-Nov-2007.tar", "md5:c52e279531787c972589f7e41ab4ae64", "460 MB", "train"),
        ("VOCtest_06-Nov-2007.tar", "md5:b6e924de25625d8de591ea690078ad9f", "451 MB", "test"),
    )
)
CLASSES = (
    *("aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable", "dog"),
    *("horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor"),
)
OFFICIAL_COUNTS: dict[Split, int] = {"train": 2501, "val": 2510, "test": 4952}
Difficult = Literal["ignore", "negative", "positive"]


def read_voc2007(folder: Path, difficult: Difficult = "ignore") -> Content:
    """Read the official lists ``ImageSets/Main/<class>_<split>.txt``.

    Args:
        folder: The folder ``VOC2007``, or a subset of the images in the same layout.
        difficult: See :class:`VOC2007`.

    Returns:
        The 20 class names in alphabetical order, and the samples by split.

    Raises:
        CxlpError: If a list is wrong; the error names the list and the line.
    """
    values = {"1": 1, "-1": -1, "0": {"ignore": 0, "negative": -1, "positive": 1}[difficult]}

    def parse(line: str) -> tuple[str, int]:
        key, value = line.split()
        return key, values[value]

    samples: dict[Split, list[Sample]] = {}
    for split in OFFICIAL_COUNTS:
        paths = [folder / "ImageSets" / "Main" / f"{name}_{split}.txt" for name in CLASSES]
        tables = [read_table(path, "an image and 1, -1 or 0", parse) for path in paths]
        for path, table in zip(paths, tables, strict=True):
            for some, other, lacking in ((tables[0], table, path), (table, tables[0], paths[0])):
                if without := some.keys() - other.keys():
                    raise CxlpError(f"{lacking} has no line for image {min(without)}, which the other classes have")
        samples[split] = [
            Sample(folder / "JPEGImages" / f"{key}.jpg", tuple(table[key] for table in tables)) for key in tables[0]
        ]
    check_totals(folder, CLASSES, samples, OFFICIAL_COUNTS, full=False)
    return CLASSES, samples


class VOC2007(Benchmark):
    """Pascal VOC 2007 classification, 0.9 GB.

    ``validation: official`` trains on the list ``train`` and validates on ``val``; otherwise both are
    training images, as in published results, which train on ``trainval``.

    Args:
        root: The folder ``VOC2007``, into which both archives were unpacked.
        difficult: Label of an image for a class of which it shows only objects marked as difficult, in training and
            test. ``ignore``, the official protocol: the image is ignored for this class; ``negative``: the class is
            absent; ``positive``: it is present. Results of different choices are not comparable.
        **common: See :class:`~cxlp.data.benchmark.Benchmark`.
    """

    name = "Pascal VOC 2007"
    multi_label = True
    files = FILES
    lists = tuple(archive.marker for archive in FILES)

    def __init__(
        self, root: str | Path = "data/VOCdevkit/VOC2007", difficult: Difficult = "ignore", **common: Any
    ) -> None:
        super().__init__(root, **common)
        if difficult not in get_args(Difficult):
            raise CxlpError(f"data.difficult is {difficult!r}: it must be one of {', '.join(get_args(Difficult))}")
        self.difficult = difficult

    def read_lists(self) -> Content:
        """Read the official lists."""
        return read_voc2007(self.root, self.difficult)
