"""Which folders are the splits of a data set, whatever they are called."""

import re
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, get_args

from cxlp.data.dataset import Split
from cxlp.data.listing import folders_in
from cxlp.utils.errors import CxlpError

_WORDS: dict[str, Split] = {
    **dict.fromkeys(("train", "training", "trn", "trainval"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "validate", "dev", "eval", "evaluation"), "val"),
    **dict.fromkeys(("test", "testing", "tst"), "test"),
}
#: Words that say nothing, alone or at another one's end, as in ``Training Set`` and ``testimages``.
_FILLERS = re.compile(r"(?:data|dataset|examples|images?|imgs?|photos?|pictures|samples|sets?|splits?)$")


class _Named(NamedTuple):
    """What a folder's name says.

    Attributes:
        path: The folder.
        split: Which split it looks like.
        rest: What else the name holds, such as ``seg`` of ``seg_train``; empty: it says nothing but the split.
    """

    path: Path
    split: Split
    rest: str

    @property
    def stem(self) -> str:
        """The rest without numbers, which may differ between the splits: ``01_train``, ``02_test``."""
        return re.sub(r"[0-9 ]", "", self.rest)


def find_splits(folders: Sequence[Path], root: Path, layout: str) -> dict[Split, Path]:
    """Tell the splits among the folders of a data set.

    A folder is a split whose name says just that (``train``, ``Testing``, ``valid_images``); or that and something else
    (``seg_train``) where another one says the same of another split and both hold folders. So ``bullet_train`` and
    ``test tube`` are classes, and so is ``valid`` beside ``fraud``.

    Args:
        folders: All folders in the root.
        root: For errors.
        layout: What is expected, for errors.

    Returns:
        ``train`` and ``test``, ``val`` or both; nothing where the folders are classes.

    Raises:
        CxlpError: If training or test images are missing, a split is there twice, or each class has splits of its own.
    """
    named = [_Named(path, split, rest) for path in folders for split, rest in [_read(path.name)] if split is not None]
    sure = [found for found in named if not found.rest]
    kinds = {found.split for found in sure}
    beside_others = len(kinds) == 1 and len(folders) > len(sure)
    if (kinds == {"val"} or beside_others) and not any(folders_in(found.path) for found in sure):
        sure = []  # `valid` may be a class, like `fraud`, or `train` beside `bus`: it holds pictures as these do
    for one in (found for found in named if found.rest):
        others = [o for o in named if o.split != one.split]
        others = [o for o in others if o.stem == one.stem or (o in sure and _alike(o, one))]
        if others and not all(folders_in(found.path) for found in (one, *others)):
            alike = f"{one.path} and {others[0].path.name}"
            raise CxlpError(f"folder: {alike} look like splits, but hold no class folders; {layout}")
        sure += [one] if others else []
    if not sure:
        _refuse_splits_in_classes(folders, layout)
        return {}
    splits: dict[Split, Path] = {}
    for path, split, _ in sure:
        if split in splits:
            raise CxlpError(f"folder: {splits[split]} and {path.name} both look like {split}: keep one; {layout}")
        splits[split] = path
    if "train" not in splits or len(splits) == 1:
        alone = f". To have a split made of its images, set data.root: {splits['train']}" if "train" in splits else ""
        raise CxlpError(
            f"folder: {root} has {' and '.join(path.name for path in splits.values())} "
            f"but not both train and test, and what looks like a split is never a class; {layout}{alone}"
        )
    return {split: splits[split] for split in get_args(Split) if split in splits}


def inner(split: Path) -> Path:
    """The folder of a split that holds the classes: ``seg_train/seg_train`` or ``train/images``, if it has no other."""
    below = folders_in(split)
    if len(below) == 1 and _read(below[0].name) in (_read(split.name), (_read(split.name)[0], ""), (None, "")):
        return below[0]
    return split


def _read(name: str) -> tuple[Split | None, str]:
    """Which split a name looks like, and what else it says."""
    words = re.findall(r"[a-z]+|[0-9]+", re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name).lower())
    words = [part for word in words for part in _parts(word)]
    said = {_WORDS[word] for word in words if word in _WORDS}
    if said == {"train", "val"}:  # fitted together
        said = {"train"}
    rest = " ".join(word for word in words if word not in _WORDS)
    return (said.pop(), rest) if len(said) == 1 else (None, rest)


def _parts(word: str) -> list[str]:
    """A word without fillers; ``xtrain`` is two."""
    if word not in _WORDS:
        word = _FILLERS.sub("", word)
    glued = re.fullmatch(r"(.+)(train|test)", word)
    return list(glued.groups()) if glued and word not in _WORDS else [word] if word else []


def _alike(one: _Named, other: _Named) -> bool:
    names, others = ({path.name for path in folders_in(f.path)} for f in (one, other))
    return bool(names & others)


def _refuse_splits_in_classes(classes: Sequence[Path], layout: str) -> None:
    """Refuse ``<class>/{train,test}/*``: splits that would be thrown together."""
    if len(classes) == 1:  # it is rather the root
        return
    below: dict[Split, list[Path]] = defaultdict(list)
    for path in classes:
        for folder in folders_in(path):
            split, rest = _read(folder.name)
            if split is not None and not rest:
                below[split].append(folder)
    if below["train"] and (others := below["test"] + below["val"]):
        raise CxlpError(f"folder: {below['train'][0]} and {others[0]} look like splits within a class; {layout}")
