"""Your own images: a folder per class."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sklearn.model_selection import train_test_split

from cxlp.data.datamodule import ImageDataModule
from cxlp.data.dataset import Content, Sample, Split, rarest
from cxlp.data.decode import SUFFIXES
from cxlp.utils.errors import CxlpError
from cxlp.utils.program import train_program


class Folder(ImageDataModule):
    """Images in ``root/{train,test}/<class>/*``, or in ``root/<class>/*`` with a split made for you.

    Args:
        root: The folder.
        test_fraction: Without ``train`` and ``test`` folders: the part of each class that becomes the
            test set, the same in every run.
        **common: See :class:`~cxlp.data.datamodule.ImageDataModule`.
    """

    name = "folder"

    def __init__(self, root: str | Path = "data/folder", test_fraction: float = 0.2, **common: Any) -> None:
        super().__init__(root, **common)
        if not 0 < test_fraction < 1:
            raise CxlpError(f"test_fraction is {test_fraction}: it must lie between 0 and 1")
        self.test_fraction = test_fraction

    def read(self) -> Content:
        """List the images; classes are the names of the folders, sorted."""
        layout = (
            f"expected {self.root}/train/<class>/* and {self.root}/test/<class>/*, or {self.root}/<class>/* "
            f"(images: {', '.join(SUFFIXES)}). To try cxlp without any data: {train_program()} --config demo.yaml"
        )
        if not self.root.is_dir():
            is_file = "is a file, no folder" if self.root.exists() else "does not exist"
            raise CxlpError(f"folder: {self.root.absolute()} {is_file}; {layout}")
        has_split = {name for name in ("train", "test") if (self.root / name).is_dir()}
        if len(has_split) == 1:
            raise CxlpError(f"folder: {self.root} has {has_split.pop()} but not both train and test; {layout}")
        if has_split:
            train, test = _classes(self.root / "train"), _classes(self.root / "test")
            if strange := sorted(set(test) - set(train)):
                raise CxlpError(f"folder: {self.root}/test has classes that train has not: {', '.join(strange[:5])}")
            classes = tuple(train)
            samples: dict[Split, list[Sample]] = {
                "train": [sample for k, c in enumerate(classes) for sample in _samples(train[c], k)],
                "test": [sample for k, c in enumerate(classes) if c in test for sample in _samples(test[c], k)],
            }
        else:
            folders = _classes(self.root)
            classes = tuple(folders)
            samples = self._split(
                [sample for k, c in enumerate(classes) for sample in _samples(folders[c], k)], classes
            )
        if not classes:
            raise CxlpError(f"folder: no class folders in {self.root}; {layout}")
        used = {s.label for s in samples["train"]}
        parent = self.root / "train" if has_split else self.root
        if used and (empty := [str(parent / c) for k, c in enumerate(classes) if k not in used]):
            raise CxlpError(f"folder: no images in {', '.join(empty[:5])}: fill or remove empty class folders")
        return classes, samples

    def _split(self, samples: Sequence[Sample], classes: Sequence[str]) -> dict[Split, list[Sample]]:
        if not samples:
            return {"train": [], "test": []}
        try:
            # A fixed seed, not the run's: the test set must be the same in every run that is compared.
            train, test = train_test_split(
                samples, test_size=self.test_fraction, stratify=[s.label for s in samples], random_state=0
            )
        except ValueError as error:
            named = rarest([s.label for s in samples], classes)  # type: ignore[misc]
            raise CxlpError(f"folder: cannot split {self.root} into train and test{named}: {error}") from error
        return {"train": sorted(train), "test": sorted(test)}


def _classes(folder: Path) -> dict[str, Path]:
    """Class folders by name; hidden ones are not classes."""
    return {p.name: p for p in sorted(folder.iterdir()) if p.is_dir() and not p.name.startswith(".")}


def _samples(folder: Path, label: int) -> list[Sample]:
    """Images of a class, however deep; nothing hidden, such as a file manager's folder of thumbnails."""
    files = sorted(p for p in folder.rglob("*") if p.suffix.lower() in SUFFIXES and p.is_file())
    return [Sample(p, label) for p in files if not any(part.startswith(".") for part in p.relative_to(folder).parts)]
