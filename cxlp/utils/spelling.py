"""Uniform formatting of numbers and names for output."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

#: Matches names of metrics and columns whose values are proportions.
_PARTS = re.compile("accuracy|AP|probability|part of")
#: Matches the number at the start of a class name.
_NUMBER = re.compile(r"(\d+)([._ -]+)(?=[^\W\d_])")


def percent(part: float) -> str:
    """Format a proportion in percent."""
    return f"{part:.2%}"


def points(difference: float) -> str:
    """Format a difference of two proportions in percentage points."""
    return f"{round(100 * difference, 2) + 0.0:+.2f}"  # + 0.0 turns -0.00 into +0.00


def number(value: float) -> str:
    """Format a number with four significant digits, or as an integer with thousands separators.

    >>> number(0.372512), number(10.0), number(1117.3)
    ('0.3725', '10', '1,117')
    """
    return f"{value:,.0f}" if abs(value) >= 999.95 else f"{value:.4g}"


def as_text(metric: str, value: float) -> str:
    """Format the value of a metric, proportions in percent."""
    return percent(value) if is_part(metric) else number(value)


def is_part(metric: str) -> bool:
    """Return whether a metric or column is a proportion, such as an accuracy or a probability."""
    return _PARTS.search(metric) is not None


def span_as_text(metric: str, interval: Mapping[str, Any]) -> str:
    """Format the bounds ``low`` and ``high`` of an interval of ``metrics.json``."""
    return f"{as_text(metric, interval['low'])} to {as_text(metric, interval['high'])}"


def interval_as_text(metric: str, interval: Mapping[str, Any]) -> str:
    """Format an interval of ``metrics.json`` with its method ``by``."""
    return f"{span_as_text(metric, interval)} ({interval['by']})"


def shown_names(classes: Sequence[str]) -> list[str]:
    """Return readable names of all classes for text and pictures.

    Machine-readable files keep the original names. Underscores become spaces. Numbers at the start of all names are
    removed if they only enumerate the classes: a dot follows each number, or the numbers are consecutive from 0 or 1.
    If two names would become equal, all names are returned unchanged.

    >>> shown_names(["001.Black_footed_Albatross", "002.Laysan_Albatross"])
    ['Black footed Albatross', 'Laysan Albatross']
    """
    found = [match for name in classes if (match := _NUMBER.match(name))]
    numbers = sorted(int(match[1]) for match in found)
    counted = numbers in ([*range(len(classes))], [*range(1, len(classes) + 1)])
    numbered = len(found) == len(classes) and (counted or all(match[2].startswith(".") for match in found))
    spelled = [" ".join((_NUMBER.sub("", name, 1) if numbered else name).replace("_", " ").split()) for name in classes]
    return spelled if all(spelled) and len(set(spelled)) == len(set(classes)) else list(classes)
