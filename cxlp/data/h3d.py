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
#: Numbers of people in the paper. The archive separates the test people, but not training and validation.
OFFICIAL_COUNTS: dict[Split, int] = {"train": 2003, "val": 2010, "test": 4022}


def read_h3d(folder: Path, bbox: bool = True, margin: float = 0.0) -> Content:
    """Read the official lists ``{train,test}/labels.txt``.

    The paper has 2,003 people for training and 2,010 for validation, but their assignment was not published. By
    convention, the first 2,003 of the 4,013 people are ``train`` here. If the number of people listed is not 4,013,
    there is no ``val``.

    Args:
        folder: The folder ``attributes_dataset``, or a subset of the people in the same layout.
        bbox: Whether samples have the person's box. The box of 23 people is NaN; their samples are the whole image.
        margin: Margin around the box, see :func:`~cxlp.data.lists.widened`.

    Returns:
        The nine attributes, and the samples by split, with labels 1 (present), -1 (absent) and 0 (unspecified).

    Raises:
        CxlpError: If a list is wrong; the error names the list and the line.
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

    ``validation: official`` holds out 2,010 of the 4,013 training people, see :func:`read_h3d`.

    Args:
        root: The folder ``attributes_dataset``.
        bbox: Crop each image to the person's box, in training and test, as the benchmark intends: other people may be
            in the image, too.
        bbox_margin: Margin around the box on each side, as a fraction of its width and height.
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
    """Read lines of ``name x y w h`` and nine labels; the images are in the folder of the list."""
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
