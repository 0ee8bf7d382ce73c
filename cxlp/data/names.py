"""Names of classes that are nearly the same: two of them are rather one class, spelled in two ways."""

import unicodedata
from collections.abc import Iterable, Iterator


def folded(name: str) -> str:
    """A name as file systems that do not distinguish case, or ways to write an accent, compare it."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())


def notes_of_alike(names: Iterable[str], what: str) -> Iterator[str]:
    """Yield a note for each name that is nearly the same as an earlier one.

    Args:
        names: Different ones.
        what: What they are, such as ``classes``.
    """
    spelled: dict[str, str] = {}
    numbers: dict[str, str] = {}
    for name in names:
        if (other := spelled.setdefault(folded(name), name)) != name:
            yield f"the {what} {other!r} and {name!r} differ only in case or in how letters are encoded"
        elif name.isdecimal() and (other := numbers.setdefault(name.lstrip("0"), name)) != name:
            yield f"the {what} {other!r} and {name!r} are the same number"
