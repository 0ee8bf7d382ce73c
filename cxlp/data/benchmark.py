"""Base of the published data sets: files to download, and official lists."""

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
    """A data set that is downloaded if it is missing, with official lists of the images of each split.

    Args:
        root: Folder of the data set. The data set is also found one level above or below this folder.
        download: Download and unpack the data set if it is missing.
        **common: See :class:`~cxlp.data.datamodule.ImageDataModule`.
    """

    #: Files to download.
    files: tuple[Remote, ...]
    #: Paths of the official lists below the root.
    lists: tuple[str, ...]

    def __init__(self, root: str | Path, download: bool = True, **common: Any) -> None:
        super().__init__(root, **common)
        self.root = self._found()
        self.download = download

    def _found(self) -> Path:
        """Return the folder of the lists: the root, or else the only folder in or around it that has them."""
        if not self._has_lists(self.root) and self.root.is_dir():
            near = [path for path in (self.root.absolute().parent, *folders_in(self.root)) if self._has_lists(path)]
            if len(near) == 1:
                return near[0]
        return self.root

    def _has_lists(self, folder: Path) -> bool:
        return all((folder / path).is_file() for path in self.lists)

    @abstractmethod
    def read_lists(self) -> Content:
        """Read the official lists, whose files exist."""

    def prepare_data(self) -> None:
        """Download the data set if it is missing, in one process per machine."""
        obtain(self.files, self.root, self.name, allowed=self.download)

    def read(self) -> Content:
        """Read the official lists, and count the images in the same folder that no list names.

        Raises:
            CxlpError: If a list is missing, with how to get it; or if the lists are inconsistent.
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
            self.left_out["images in no list"] = unlisted
        return content
