"""Which folders are the splits of a data set, whatever they are called."""

import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from cxlp.data.dataset import Split
from cxlp.data.listing import is_hidden
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
    named = [found for path in folders if (found := _read(path)) is not None]
    sure = [f for f in named if not f.rest]
    if not any(f.split != "val" or _subfolders(f.path) for f in sure):
        sure = []  # `valid` may be a class, like `fraud`
    for one in (found for found in named if found.rest):
        others = [o for o in named if o.split != one.split]
        others = [o for o in others if o.rest == one.rest or (o in sure and _alike(o, one))]
        if others and not all(_subfolders(found.path) for found in (one, *others)):
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
        raise CxlpError(
            f"folder: {root} has {' and '.join(path.name for path in splits.values())} "
            f"but not both train and test, and what looks like a split is never a class; {layout}"
        )
    return splits


def inner(split: Path) -> Path:
    """The folder of a split that holds the classes: of ``seg_train/seg_train/<class>``, the second one."""
    below = _subfolders(split)
    if len(below) == 1 and (found := _read(below[0])) is not None and found.split == _role(split.name)[0]:
        return below[0]
    return split


def _read(path: Path) -> _Named | None:
    split, rest = _role(path.name)
    return None if split is None else _Named(path, split, rest)


def _role(name: str) -> tuple[Split | None, str]:
    words = re.findall(r"[a-z]+|[0-9]+", re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name).lower())
    words = [stem for word in words if (stem := word if word in _WORDS else _FILLERS.sub("", word))]
    said = {_WORDS[word] for word in words if word in _WORDS}
    if said == {"train", "val"}:  # fitted together
        said = {"train"}
    rest = " ".join(word for word in words if word not in _WORDS)
    return (said.pop(), rest) if len(said) == 1 else (None, rest)


def _subfolders(folder: Path) -> list[Path]:
    return [path for path in folder.iterdir() if path.is_dir() and not is_hidden(path.name)]


def _alike(one: _Named, other: _Named) -> bool:
    names, others = ({path.name for path in _subfolders(f.path)} for f in (one, other))
    return bool(names & others)


def _refuse_splits_in_classes(classes: Iterable[Path], layout: str) -> None:
    """Refuse ``<class>/{train,test}/*``: splits that would be thrown together."""
    below: dict[Split, list[Path]] = defaultdict(list)
    for path in classes:
        for folder in _subfolders(path):
            split, rest = _role(folder.name)
            if split is not None and not rest:
                below[split].append(folder)
    if below["train"] and (others := below["test"] + below["val"]):
        raise CxlpError(f"folder: {below['train'][0]} and {others[0]} look like splits within a class; {layout}")
