"""MIT Indoor-67: 6,700 pictures of 67 kinds of rooms.

Quattoni and Torralba, "Recognizing Indoor Scenes", CVPR 2009.
"""

from pathlib import Path, PurePosixPath
from typing import Any

from cxlp.data.datamodule import ImageDataModule
from cxlp.data.dataset import Sample, Split
from cxlp.data.download import Archive, obtain
from cxlp.data.lists import check_totals, read_lines, require
from cxlp.utils.errors import CxlpError
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
#: Where the images lie in copies that were unpacked with the archive's own name.
NESTED = "indoorCVPR_09/Images"
#: Images for training and test, about 80 + 20 of each class (77 to 83 and 17 to 23).
OFFICIAL_COUNTS: dict[Split, int] = {"train": 5360, "test": 1340}


def read_mit67(folder: Path) -> tuple[tuple[str, ...], dict[Split, list[Sample]]]:
    """Read the official lists, which name 6,700 of the archive's 15,620 images.

    Args:
        folder: Has both lists, and the images in ``Images`` or ``indoorCVPR_09/Images``; fewer classes
            in the same layout are fine.

    Returns:
        Class names in alphabetical order, such as ``airport_inside``, and the samples by split.

    Raises:
        CxlpError: Names the list and the line that is wrong.
    """
    images = folder / NESTED if (folder / NESTED).is_dir() else folder / "Images"
    named = {split: _names(folder / remote.file) for split, remote in LISTS.items()}
    classes = sorted({name.parts[0] for names in named.values() for name in names})
    indices = {name: k for k, name in enumerate(classes)}
    samples = {
        split: [Sample(images / name, indices[name.parts[0]]) for name in names] for split, names in named.items()
    }
    check_totals(folder, classes, samples, OFFICIAL_COUNTS, full=len(classes) == 67)
    return tuple(classes), samples


class MIT67(ImageDataModule):
    """MIT Indoor-67.

    Args:
        root: The folder with ``Images``, ``TrainImages.txt`` and ``TestImages.txt``.
        download: Fetch and unpack the data set (2.4 GB) where it is missing.
        **common: See :class:`~cxlp.data.datamodule.ImageDataModule`.
    """

    name = "MIT Indoor-67"

    def __init__(self, root: str | Path = "data/mit67", download: bool = True, **common: Any) -> None:
        super().__init__(root, **common)
        self.download = download

    def prepare_data(self) -> None:
        """Download where the data set is missing, on one process per machine."""
        files = tuple(LISTS.values()) if (self.root / NESTED).is_dir() else FILES
        obtain(files, self.root, self.name, allowed=self.download)

    def read(self) -> tuple[tuple[str, ...], dict[Split, list[Sample]]]:
        """Read the official lists."""
        require([remote.file for remote in LISTS.values()], self.root, FILES, self.name)
        return read_mit67(self.root)


def _names(path: Path) -> list[PurePosixPath]:
    """Lines ``class/file``; files may have spaces in their names."""
    names: dict[PurePosixPath, int] = {}
    for number, line in read_lines(path):
        name = PurePosixPath(line)
        if len(name.parts) != 2 or name.is_absolute() or ".." in name.parts:
            raise CxlpError(f"{path}, line {number}: expected 'class/file', got {line!r}")
        if name in names:
            raise CxlpError(f"{path}, line {number}: {line} is in line {names[name]} already")
        names[name] = number
    return list(names)
