"""Your own images: a folder per class."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cxlp.data.datamodule import ImageDataModule
from cxlp.data.dataset import Content, Sample, Split
from cxlp.data.listing import check_folder, count_files, folders_in, pictures, subfolders
from cxlp.data.names import folded, notes_on_similar
from cxlp.data.split_folders import check_no_splits_in_class, find_splits, inner, split_of
from cxlp.data.splitting import check_fraction, split_off
from cxlp.utils.errors import CxlpError


class Folder(ImageDataModule):
    """Images in ``root/{train,val,test}/<class>/*``, or in ``root/<class>/*`` without splits.

    Splits may have other usual names, such as ``Training``, ``valid`` or ``seg_test``; a folder that looks like a split
    is never used as a class. ``val`` is optional; its images are held out unless ``validation`` is 0. Without ``test``,
    the images of ``val`` are the test set. Without splits, a test set is drawn.

    Args:
        root: Folder of the images.
        test_fraction: Fraction of each class for the test set if there are no folders for splits. The same images are
            drawn in every run.
        **common: See :class:`~cxlp.data.datamodule.ImageDataModule`.
    """

    name = "folder"
    holds_out_own = True

    def __init__(self, root: str | Path = "data/folder", test_fraction: float = 0.2, **common: Any) -> None:
        super().__init__(root, **common)
        check_fraction(test_fraction)
        self.test_fraction = test_fraction
        self.name = Path(os.path.abspath(self.root)).name or self.name  # noqa: PTH100 (pathlib's leaves `..` as it is)

    def read(self) -> Content:
        """List the images; classes are the names of the folders, sorted."""
        self.left_out.clear()
        self.notes.clear()
        layout = check_folder(self.root)
        folders = subfolders(self.root, self.left_out, "outside class folders")
        splits = find_splits(folders, self.root, layout, alone=not self.makes_split)
        if not splits and (odd := [path.name for path in folders if split_of(path.name) == "train"]):
            self.notes.append(f"folders used as classes, because there is no test folder: {', '.join(odd)}")
        if splits:
            for other in set(folders) - set(splits.values()):
                count_files(other, self.left_out, f"in {other.name}, beside the splits")
            return self._read_splits(splits)
        classes = {path.name: path for path in folders}
        if not classes:
            raise CxlpError(f"folder: no class folders in {self.root}; {layout}")
        if len(folders) == 1 and folders_in(folders[0]):
            raise CxlpError(
                f"folder: {self.root} contains only one folder: if it contains the classes or splits, set data.root: "
                f"{folders[0]}"
            )
        self._note_odd_classes(classes)
        samples = self._samples(classes, list(classes))
        self._check_filled(samples, classes)
        return tuple(classes), self._split(samples, list(classes))

    def _read_splits(self, splits: dict[Split, Path]) -> Content:
        folders = {}
        for split, path in splits.items():
            # List each folder only once, so that its files are not counted twice.
            for place in dict.fromkeys((path, inner(path))):
                found = subfolders(place, self.left_out, "outside class folders")
            folders[split] = {path.name: path for path in found}
        named = folders.get("train") or {name: path for found in folders.values() for name, path in found.items()}
        classes = sorted(named)
        self._note_odd_classes({name: named[name] for name in classes})
        if "test" in folders and not folders.get("val"):
            folders.pop("val", None)
        for split in folders:
            if not folders[split]:
                hint = f". To draw a test set from the training images, set data.root: {splits.get('train')}"
                raise CxlpError(
                    f"folder: no class folders in {splits[split]}, so its images have no labels"
                    f"{hint if folders.get('train') else ''}"
                )
            if strange := sorted(folders[split].keys() - named.keys()):
                same = {folded(name) for name in named} & {folded(name) for name in strange}
                hint = ". They differ only in case or in Unicode normalisation: rename the folders"
                raise CxlpError(
                    f"folder: {splits[split]} has classes that are missing in {splits['train'].name}: "
                    f"{', '.join(strange[:5])}{hint if same else ''}"
                )
        samples = {split: self._samples(found, classes) for split, found in folders.items()}
        if "train" in samples:
            self._check_filled(samples["train"], folders["train"])
        if odd := [f"{path.name} ({split})" for split, path in splits.items() if path.name != split]:
            self.notes.append(f"folders used as splits because of their names: {', '.join(odd)}")
        if "test" not in samples and "val" in samples:
            self.notes.append(f"there is no test folder: the test images are those of {splits['val']}")
            samples["test"] = samples.pop("val")
        return tuple(classes), samples

    def _note_odd_classes(self, classes: Mapping[str, Path]) -> None:
        """Add notes on classes of almost equal names, and on classes that may be splits: all hold the same folders."""
        self.notes += notes_on_similar(classes, "classes")
        below = [{path.name for path in folders_in(folder)} for folder in classes.values()]
        if len(classes) > 1 and len(shared := sorted(set.intersection(*below))) > 1:
            named, common = (", ".join(names[:5]) for names in (list(classes), shared))
            self.notes.append(
                f"the classes {named} all contain the folders {common}: if {common} are the classes and {named} the "
                "splits, call the splits train and test"
            )

    def _samples(self, folders: Mapping[str, Path], classes: Sequence[str]) -> list[Sample]:
        samples = []
        for k, name in enumerate(classes):
            found = pictures(folders[name], self.left_out) if name in folders else []
            if found:
                check_no_splits_in_class(folders[name], found)
            samples += [Sample(path, k) for path in found]
        return samples

    def _check_filled(self, samples: Sequence[Sample], folders: Mapping[str, Path]) -> None:
        used = {s.label for s in samples}
        if used and (empty := [str(path) for k, path in enumerate(folders.values()) if k not in used]):
            raise CxlpError(f"folder: no images in {', '.join(empty[:5])}: fill or remove empty class folders")

    def _split(self, samples: Sequence[Sample], classes: Sequence[str]) -> dict[Split, list[Sample]]:
        if not samples:
            return {"train": [], "test": []}
        if not self.makes_split:
            return {"train": list(samples)}
        # The seed is fixed, regardless of the run's seed, so that all runs have the same test set and can be compared.
        failure = f"folder: cannot split {self.root} into train and test"
        train, test = split_off(samples, classes, self.test_fraction, 0, failure)
        return {"train": train, "test": test}
