"""A published data set: files to download, and official lists."""

import os
from abc import abstractmethod
from collections import Counter
from pathlib import Path
from typing import Any

from cxlp.data.datamodule import ImageDataModule
from cxlp.data.dataset import Content
from cxlp.data.download import by_hand, missing, obtain
from cxlp.data.listing import folders_in, pictures
from cxlp.utils.errors import CxlpError
from cxlp.utils.fetching import Remote


class Benchmark(ImageDataModule):
    """A data set that is downloaded where it is missing, and whose lists say what is in which split.

    Args:
        root: Folder of the data set; one level up or down from there, it is found, too.
        download: Fetch and unpack the data set where it is missing.
        **common: See :class:`~cxlp.data.datamodule.ImageDataModule`.
    """

    #: What the data set is made of.
    files: tuple[Remote, ...]
    #: Its official lists: paths below the root.
    lists: tuple[str, ...]

    def __init__(self, root: str | Path, download: bool = True, **common: Any) -> None:
        super().__init__(root, **common)
        self.root = self._found()
        self.download = download

    def _found(self) -> Path:
        """Where the lists lie: the root, or else the one folder in it or around it that has them."""
        if not self._has_lists(self.root) and self.root.is_dir():
            near = [path for path in (self.root.absolute().parent, *folders_in(self.root)) if self._has_lists(path)]
            if len(near) == 1:
                return near[0]
        return self.root

    def _has_lists(self, folder: Path) -> bool:
        return all((folder / path).is_file() for path in self.lists)

    @abstractmethod
    def read_lists(self) -> Content:
        """Read the official lists, which are there."""

    def prepare_data(self) -> None:
        """Download where the data set is missing, on one process per machine."""
        obtain(self.files, self.root, self.name, allowed=self.download)

    def read(self) -> Content:
        """Read the official lists, and count the other pictures in the folder of theirs.

        Raises:
            CxlpError: If one is missing, and how to get it; or if they do not fit together.
        """
        lacking = [path for path in self.lists if not (self.root / path).is_file()]
        if lacking:
            how = by_hand(missing(self.files, self.root) or self.files, self.root)
            raise CxlpError(f"{self.name}: {', '.join(lacking)} not in {self.root}. {how}")
        content = self.read_lists()
        self.left_out.clear()
        listed = {sample.path.absolute() for part in content[1].values() for sample in part}
        listed = {path for path in listed if path.is_relative_to(self.root.absolute())}
        images = Path(os.path.commonpath([path.parent for path in listed])) if listed else None
        if images and images.is_dir() and (unlisted := len(set(pictures(images, Counter())) - listed)):
            self.left_out["pictures in no list"] = unlisted
        return content
