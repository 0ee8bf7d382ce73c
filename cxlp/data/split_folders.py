"""Detection of the folders of splits by their names."""

import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import get_args

from cxlp.data.dataset import Split
from cxlp.data.listing import folders_in
from cxlp.utils.errors import CxlpError

_NAMES: dict[Split, tuple[str, ...]] = {
    "train": ("train", "training", "trn", "trainval"),
    "val": ("val", "valid", "validation", "validate", "dev", "eval", "evaluation"),
    "test": ("test", "testing", "tst"),
}
#: Words that are ignored, alone or appended to the name of a split, as in ``Training Set`` and ``testimages``.
_FILLERS = (
    *("data", "dataset", "dir", "examples", "folder", "image", "images", "img", "imgs", "photos", "pictures"),
    *("samples", "set", "sets", "split", "splits"),
)
_WORDS = {name + end: split for split, names in _NAMES.items() for name in names for end in ("", *_FILLERS)}
_RENAME = (
    "If they are splits, call them train, val and test, and use the same class folders in each; if they are classes, "
    "give them other names"
)


def find_splits(folders: Sequence[Path], root: Path, layout: str, alone: bool = False) -> dict[Split, Path]:
    """Find the splits among the folders of a data set.

    A folder whose name only names a split (``train``, ``Testing``, ``valid_images``, ``test2017``) is a split. A folder
    whose name contains other words, too (``seg_train``), is a split if it has a class folder in common with another
    split. Ambiguous names raise an error.

    Args:
        folders: All folders in the root.
        root: The root, for errors.
        layout: The expected layout, for errors.
        alone: Whether a single split is sufficient.

    Returns:
        ``train`` with ``test``, ``val`` or both; empty if the folders are classes.

    Raises:
        CxlpError: If training or test images are missing, a split occurs twice, or a name may mean a split or a class.
    """
    named = {path: split for path in folders if (split := split_of(path.name))}
    sure = {path: split for path, split in named.items() if _is_unambiguous(path.name)}
    unsure = {path: split for path, split in named.items() if split not in sure.values()}
    kinds = set(named.values())
    if (kinds == {"val"} or (kinds == {"train"} and len(folders) > len(named))) and not any(map(folders_in, sure)):
        sure = {}  # a folder of images only may be a class, such as `valid` next to `fraud`, or `train` next to `bus`
    candidates = sure | unsure
    is_split = "train" in candidates.values() and len(set(candidates.values())) > 1
    if not sure and not is_split:
        _check_lookalikes(folders)
        return {}
    found = sure | {p: s for p, s in unsure.items() if any(_overlap(p, o) for o, t in candidates.items() if t != s)}
    if not _is_enough(found) and is_split:
        names = " and ".join(path.name for path in candidates)
        raise CxlpError(f"folder: {names} in {root} look like splits, but have no class folders in common. {_RENAME}")
    for split in get_args(Split):
        if len(twice := [path.name for path, other in found.items() if other == split]) > 1:
            raise CxlpError(f"folder: {' and '.join(twice)} in {root} both look like {split}: keep one; {layout}")
    splits = {split: path for path, split in found.items()}
    if not _is_enough(found) and not alone:
        only = f"; to draw a test set from its images, set data.root: {splits['train']}" if "train" in splits else ""
        raise CxlpError(
            f"folder: {root} has {' and '.join(path.name for path in found)} but not both train and test, and a folder "
            f"with the name of a split is never a class. If it is a class, give it another name{only}; {layout}"
        )
    return {split: splits[split] for split in get_args(Split) if split in splits}


def split_of(name: str) -> Split | None:
    """Return the split that a name means, or ``None``; ``trainval`` and ``train_val`` mean ``train``."""
    said = {_WORDS[token] for token in _tokens(name) if token in _WORDS}
    said -= {"val"} if "train" in said else set()
    return said.pop() if len(said) == 1 else None


def inner(split: Path) -> Path:
    """Return the folder with a split's classes: its only subfolder in ``seg_train/seg_train`` or ``train/images``."""
    below = folders_in(split)
    if len(below) == 1 and (
        split_of(below[0].name) == split_of(split.name) or set(_tokens(below[0].name)) <= {*_FILLERS}
    ):
        return below[0]
    return split


def check_no_splits_in_class(folder: Path, pictures: Iterable[Path]) -> None:
    """Check that a class has no folders ``<class>/.../{train,test}/*``, whose splits would be merged.

    Args:
        folder: Folder of the class.
        pictures: All images in it.

    Raises:
        CxlpError: If it has; the error names two of the folders.
    """
    splits: dict[Path, dict[Split, Path]] = defaultdict(dict)
    parents = {path.parent for path in pictures}
    for below in {p for parent in parents for p in (parent, *parent.parents) if folder in p.parents}:
        if split := split_of(below.name):
            splits[below.parent][split] = below
    for found in splits.values():
        if _is_enough({path: split for split, path in found.items()}):
            one, other, *_ = sorted(found.values())
            raise CxlpError(f"folder: {one} and {other} look like splits within a class. {_RENAME}")


def _tokens(name: str) -> list[str]:
    return re.findall(r"[a-z]+", re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name).lower())


def _is_unambiguous(name: str) -> bool:
    return all(token in _WORDS or token in _FILLERS for token in _tokens(name))


def _is_enough(found: dict[Path, Split]) -> bool:
    return "train" in found.values() and len(set(found.values())) > 1


def _overlap(one: Path, other: Path) -> bool:
    """Return whether two folders have subfolders of the same name."""
    names, others = ({path.name for path in folders_in(inner(folder))} for folder in (one, other))
    return bool(names & others)


def _check_lookalikes(folders: Sequence[Path]) -> None:
    """Check that there are no folders such as ``xtrain`` and ``xtest`` with class folders in common."""
    trains, tests = (
        [path for path in folders if re.search(what, path.name.lower())] for what in ("train", "test|val|dev")
    )
    for one in trains:
        for other in tests:
            if one != other and _overlap(one, other):
                raise CxlpError(f"folder: {one} and {other.name} look like splits. {_RENAME}")
