"""How numbers and names are spelled for people: everywhere in the same way."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

#: What the names of metrics, and of columns, contain that are parts of 1.
_PARTS = re.compile("accuracy|AP|probability|part of")
#: A class's number before its name.
_NUMBER = re.compile(r"(\d+)([._ -]+)(?=[^\W\d_])")


def percent(part: float) -> str:
    """Format a part of 1 for people."""
    return f"{part:.2%}"


def points(difference: float) -> str:
    """Format a difference of two parts of 1 for people, in points of a hundred."""
    return f"{round(100 * difference, 2) + 0.0:+.2f}"  # of -0, too: +0.00


def number(value: float) -> str:
    """Format any other number for people: four significant digits, or thousands in groups.

    >>> number(0.372512), number(10.0), number(1117.3)
    ('0.3725', '10', '1,117')
    """
    return f"{value:,.0f}" if abs(value) >= 999.95 else f"{value:.4g}"


def as_text(metric: str, value: float) -> str:
    """Format a metric's value for people: everywhere in the same way, proportions in percent."""
    return percent(value) if is_part(metric) else number(value)


def is_part(metric: str) -> bool:
    """Whether a metric, or a column, is a part of 1, such as an accuracy, an average precision or a probability."""
    return _PARTS.search(metric) is not None


def span_as_text(metric: str, interval: Mapping[str, Any]) -> str:
    """Format the ends of an interval of ``metrics.json``, ``low`` and ``high``, for people."""
    return f"{as_text(metric, interval['low'])} to {as_text(metric, interval['high'])}"


def interval_as_text(metric: str, interval: Mapping[str, Any]) -> str:
    """Format an interval of ``metrics.json`` for people, with how it was found, ``by``."""
    return f"{span_as_text(metric, interval)} ({interval['by']})"


def shown_names(classes: Sequence[str]) -> list[str]:
    """Spell the names of all classes for people; files for programs keep the data set's own names.

    Underscores become spaces. Numbers go if each name begins with one and they only number the classes: a dot follows
    each, or they are 0, 1, 2 and so on, or 1, 2 and so on. Names stay as they are where two of them would be spelled
    alike.

    >>> shown_names(["001.Black_footed_Albatross", "002.Laysan_Albatross"])
    ['Black footed Albatross', 'Laysan Albatross']
    """
    found = [match for name in classes if (match := _NUMBER.match(name))]
    numbers = sorted(int(match[1]) for match in found)
    counted = numbers in ([*range(len(classes))], [*range(1, len(classes) + 1)])
    numbered = len(found) == len(classes) and (counted or all(match[2].startswith(".") for match in found))
    spelled = [" ".join((_NUMBER.sub("", name, 1) if numbered else name).replace("_", " ").split()) for name in classes]
    return spelled if all(spelled) and len(set(spelled)) == len(set(classes)) else list(classes)
