"""Detection of almost equal class names, which are probably two spellings of one class."""

import unicodedata
from collections.abc import Iterable, Iterator


def folded(name: str) -> str:
    """Return a name in lower case and normalised Unicode, as case-insensitive file systems compare it."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())


def notes_on_similar(names: Iterable[str], what: str) -> Iterator[str]:
    """Yield a note for each name that is almost equal to an earlier one.

    Args:
        names: Distinct names.
        what: Plural noun for the names, such as ``classes``.
    """
    spelled: dict[str, str] = {}
    numbers: dict[str, str] = {}
    for name in names:
        if (other := spelled.setdefault(folded(name), name)) != name:
            yield f"the {what} {other!r} and {name!r} differ only in case or in Unicode normalisation"
        elif name.isdecimal() and (other := numbers.setdefault(name.lstrip("0"), name)) != name:
            yield f"the {what} {other!r} and {name!r} are the same number"
