"""MIT Indoor-67: 6,700 images of 67 kinds of rooms.

Quattoni and Torralba, "Recognizing Indoor Scenes", CVPR 2009.
"""

from pathlib import Path, PurePosixPath
from typing import Any

from cxlp.data.benchmark import Benchmark
from cxlp.data.dataset import Content, Sample, Split
from cxlp.data.download import Archive
from cxlp.data.lists import check_totals, read_table
from cxlp.utils.fetching import Remote

IMAGES = Archive(
    urls=("http://groups.csail.mit.edu/vision/LabelMe/NewImages/indoorCVPR_09.tar",),
    file="indoorCVPR_09.tar",
    checksum="sha1:0b252516e746ba428b96af408d2e8162d9b08ac5",
    size="2.4 GB",
    folders=("Images", "indoorCVPR_09/Images"),
    into="Images",
    marker="Images",
)
LISTS: dict[Split, Remote] = {
    "train": Remote(
        urls=("http://web.mit.edu/torralba/www/TrainImages.txt",),
        file="TrainImages.txt",
        checksum="md5:fd987513d0f623c424252770fac3f354",
        size=172_080,
    ),
    "test": Remote(
        urls=("http://web.mit.edu/torralba/www/TestImages.txt",),
        file="TestImages.txt",
        checksum="md5:f00bef137f39d51e4894303a7bf4c2d4",
        size=43_475,
    ),
}
FILES = (IMAGES, *LISTS.values())
#: Folder of the images if the archive was unpacked into a folder of its own name.
NESTED = "indoorCVPR_09/Images"
#: Official numbers of images, about 80 + 20 of each class (77 to 83 and 17 to 23).
OFFICIAL_COUNTS: dict[Split, int] = {"train": 5360, "test": 1340}


def read_mit67(folder: Path) -> Content:
    """Read the official lists, which name 6,700 of the archive's 15,620 images.

    Args:
        folder: Folder with both lists, and the images in ``Images`` or ``indoorCVPR_09/Images``, or with a subset of
            the classes in the same layout.

    Returns:
        Class names in alphabetical order, such as ``airport_inside``, and the samples by split.

    Raises:
        CxlpError: If a list is wrong; the error names the list and the line.
    """
    images = folder / NESTED if (folder / NESTED).is_dir() else folder / "Images"
    named = {split: read_table(folder / remote.file, "'class/file'", _named) for split, remote in LISTS.items()}
    classes = sorted({name.parts[0] for names in named.values() for name in names})
    indices = {name: k for k, name in enumerate(classes)}
    samples = {
        split: [Sample(images / name, indices[name.parts[0]]) for name in names] for split, names in named.items()
    }
    check_totals(folder, classes, samples, OFFICIAL_COUNTS, full=len(classes) == 67)
    return tuple(classes), samples


class MIT67(Benchmark):
    """MIT Indoor-67, 2.4 GB.

    Args:
        root: The folder with ``Images``, ``TrainImages.txt`` and ``TestImages.txt``.
        **common: See :class:`~cxlp.data.benchmark.Benchmark`.
    """

    name = "MIT Indoor-67"
    files = FILES
    lists = tuple(remote.file for remote in LISTS.values())

    def __init__(self, root: str | Path = "data/mit67", **common: Any) -> None:
        super().__init__(root, **common)
        if (self.root / NESTED).is_dir():
            self.files = tuple(LISTS.values())

    def read_lists(self) -> Content:
        """Read the official lists."""
        return read_mit67(self.root)


def _named(line: str) -> tuple[PurePosixPath, None]:
    """Parse ``class/file``; file names may contain spaces."""
    name = PurePosixPath(line)
    if len(name.parts) != 2 or name.is_absolute() or ".." in name.parts:
        raise ValueError(line)
    return name, None
