"""Names of classes."""

import operator
from collections.abc import Sequence

from cxlp.utils.errors import CxlpError


def class_names(classes: int | Sequence[str]) -> Sequence[str]:
    """Return names of classes: the given names, or ``"0"``, ``"1"``, ... for a number (also of NumPy)."""
    try:
        return [str(k) for k in range(operator.index(classes))]  # type: ignore[arg-type]
    except TypeError:
        return classes  # type: ignore[return-value]


def check_class_names(classes: Sequence[str]) -> tuple[str, ...]:
    """Return class names as a tuple, after checking that there are names and that they are unique.

    Raises:
        CxlpError: If the names are a string, empty, or not unique.
    """
    if isinstance(classes, str):
        raise CxlpError(f"classes is {classes!r}: pass a list of class names")
    names = [str(name) for name in classes]
    if not names:
        raise CxlpError("classes is empty: pass at least one class name")
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:
        raise CxlpError(f"classes has {', '.join(map(repr, repeated))} more than once: give each class its own name")
    return tuple(names)


def first_names(classes: Sequence[str], most: int = 3) -> str:
    """Format the first names, with ``...`` if there are more."""
    return ", ".join(classes[:most]) + ", ..." * (len(classes) > most)
