"""H3D human attributes ("Attributes of People"): nine attributes of 8,035 people, with boxes.

Bourdev, Maji and Malik, "Describing People: A Poselet-Based Approach to Attribute Classification",
ICCV 2011.
"""

from pathlib import Path
from typing import Any

from cxlp.data.benchmark import Benchmark
from cxlp.data.dataset import Content, Sample, Split
from cxlp.data.decode import Box
from cxlp.data.download import Archive
from cxlp.data.lists import as_box, check_margin, check_totals, read_lines, widened
from cxlp.utils.errors import CxlpError

FILES = (
    Archive(
        urls=("https://www2.eecs.berkeley.edu/Research/Projects/CS/vision/shape/poselets/attributes_dataset.tgz",),
        file="attributes_dataset.tgz",
        checksum=None,
        size="size not published",
        folders=("attributes_dataset",),
        marker="train/labels.txt",
    ),
)
ATTRIBUTES = (
    *("is_male", "has_long_hair", "has_glasses", "has_hat", "has_t-shirt", "has_long_sleeves", "has_shorts"),
    *("has_jeans", "has_long_pants"),
)
#: The paper's; the archive says which people are for training or validation, and which for test.
OFFICIAL_COUNTS: dict[Split, int] = {"train": 2003, "val": 2010, "test": 4022}


def read_h3d(folder: Path, bbox: bool = True, margin: float = 0.0) -> Content:
    """Read the official lists ``{train,test}/labels.txt``.

    The paper has 2,003 people for training and 2,010 for validation, but nothing that was published says
    who is who: here, by convention, the first 2,003 of the 4,013 are ``train``. Where other than 4,013
    are listed, there is no ``val``.

    Args:
        folder: ``attributes_dataset``, or a release of fewer people in the same layout.
        bbox: Whether samples carry the person's box; where it is NaN, as for 23 people, all of the image.
        margin: What is added to the box, see :func:`~cxlp.data.lists.widened`.

    Returns:
        The nine attributes, and the samples by split, labelled 1 present, -1 absent, 0 unspecified.

    Raises:
        CxlpError: Names the list and the line that is wrong.
    """
    people, test = (_people(folder / path, bbox, margin) for path in H3D.lists)
    train = OFFICIAL_COUNTS["train"]
    samples: dict[Split, list[Sample]]
    if len(people) == train + OFFICIAL_COUNTS["val"]:
        samples = {"train": people[:train], "val": people[train:], "test": test}
    else:
        samples = {"train": people, "test": test}
    check_totals(folder, ATTRIBUTES, samples, OFFICIAL_COUNTS, full=False)
    return ATTRIBUTES, samples


class H3D(Benchmark):
    """H3D human attributes.

    ``validation: official`` validates on 2,010 of the 4,013 training people, see :func:`read_h3d`.

    Args:
        root: The folder ``attributes_dataset``.
        bbox: Crop each image to the person's box, in training and in test, as the benchmark is meant: the
            box is given, and others are in the picture, too.
        bbox_margin: What a crop keeps around the box, in parts of its width and height on each side.
        **common: See :class:`~cxlp.data.benchmark.Benchmark`.
    """

    name = "H3D attributes"
    multi_label = True
    files = FILES
    lists = ("train/labels.txt", "test/labels.txt")

    def __init__(
        self, root: str | Path = "data/attributes_dataset", bbox: bool = True, bbox_margin: float = 0.0, **common: Any
    ) -> None:
        super().__init__(root, **common)
        check_margin(bbox_margin)
        self.bbox, self.bbox_margin = bbox, bbox_margin

    def read_lists(self) -> Content:
        """Read the official lists."""
        return read_h3d(self.root, self.bbox, self.bbox_margin)


def _people(path: Path, bbox: bool, margin: float) -> list[Sample]:
    """Lines ``name x y w h`` and nine labels; the images lie beside the list."""
    people = []
    for number, line in read_lines(path):
        name, *words = line.split()
        box, labels = words[:4], words[4:]
        if len(labels) != len(ATTRIBUTES) or not set(labels) <= {"1", "-1", "0"}:
            raise CxlpError(
                f"{path}, line {number}: expected a name, a box of four numbers, and nine of 1, -1 or 0, got {line!r}"
            )
        there = _box(box, f"{path}, line {number}")
        crop = widened(there, margin) if bbox and there is not None else None
        people.append(Sample(path.parent / name, tuple(map(int, labels)), crop))
    return people


def _box(values: list[str], where: str) -> Box | None:
    if all(value.lower() == "nan" for value in values):
        return None
    return as_box(values, where)
