"""Names of classes, as they are given."""

import operator
from collections.abc import Sequence

from cxlp.utils.errors import CxlpError


def numbered(classes: int | Sequence[str]) -> Sequence[str]:
    """Name classes of which only the number is given, perhaps one of NumPy's."""
    try:
        return [str(k) for k in range(operator.index(classes))]  # type: ignore[arg-type]
    except TypeError:
        return classes  # type: ignore[return-value]


def checked(classes: Sequence[str]) -> tuple[str, ...]:
    """Refuse names that are none, or that two classes share.

    Raises:
        CxlpError: Says which.
    """
    if isinstance(classes, str):
        raise CxlpError(f"classes is {classes!r}: give the names of the classes as a list")
    names = [str(name) for name in classes]
    if not names:
        raise CxlpError("classes is empty: a network has one class or more")
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:
        raise CxlpError(f"classes names {', '.join(map(repr, repeated))} more than once: each has its own name")
    return tuple(names)


def some(classes: Sequence[str], most: int = 3) -> str:
    """Write the first names."""
    return ", ".join(classes[:most]) + ", ..." * (len(classes) > most)
