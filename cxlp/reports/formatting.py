"""Figures, names and tables as text, Markdown and CSV."""

import csv
import io
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import stdev
from typing import Any, TextIO

#: What the names of metrics, and of columns, contain that are parts of 1.
_PARTS = re.compile("accuracy|AP|probability|part of")
#: Columns of tables that hold names of classes.
_CLASSES = ("class", "true", "answered", "taken for", "most often taken for")
#: A class's number before its name.
_NUMBER = re.compile(r"\d+[._ -]+(?=[^\W\d_])")


def percent(part: float) -> str:
    """Format a part of 1 for people."""
    return f"{part:.2%}"


def number(value: float) -> str:
    """Format any other number for people: four significant digits, or thousands in groups.

    >>> number(0.372512), number(10.0), number(1117.3)
    ('0.3725', '10', '1,117')
    """
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


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

    Underscores become spaces, and numbers go if each name begins with one. Names stay as they are where two of them
    would be spelled alike.

    >>> shown_names(["001.Black_footed_Albatross", "002.Laysan_Albatross"])
    ['Black footed Albatross', 'Laysan Albatross']
    """
    numbered = all(map(_NUMBER.match, classes))
    spelled = [" ".join((_NUMBER.sub("", name, 1) if numbered else name).replace("_", " ").split()) for name in classes]
    return spelled if all(spelled) and len(set(spelled)) == len(set(classes)) else list(classes)


def readable(rows: Iterable[Mapping[str, Any]], classes: Sequence[str]) -> list[dict[str, Any]]:
    """Spell classes, and parts of 1, for people in the rows of a test's tables.

    Args:
        rows: Cells by column.
        classes: The data set's names of all classes.
    """
    spelled = dict(zip(classes, shown_names(classes), strict=True))
    spelled = {f"no {name}": f"no {shown}" for name, shown in spelled.items()} | spelled

    def text(column: str, cell: Any) -> Any:  # noqa: ANN401 (any value of a table)
        if column in _CLASSES:
            return spelled.get(cell, cell)
        return as_text(column, float(cell)) if cell not in ("", None) and is_part(column) else cell

    return [{column: text(column, cell) for column, cell in row.items()} for row in rows]


def spread(values: Sequence[float]) -> float | None:
    """Compute the standard deviation of a sample, with n - 1; ``None`` for a single value."""
    return stdev(values) if len(values) > 1 else None


def as_markdown(heads: Sequence[str], values: Sequence[Sequence[Any]]) -> str:
    """Write a table in Markdown."""
    lines = [heads, ["---", *["---:"] * (len(heads) - 1)], *values]
    return "".join("| " + " | ".join(map(str, line)) + " |\n" for line in lines)


def as_csv(heads: Sequence[str], values: Sequence[Sequence[Any]]) -> str:
    """Write a table as CSV."""
    text = io.StringIO()
    csv_writer(text).writerows([heads, *values])
    return text.getvalue()


def csv_writer(file: TextIO) -> Any:  # noqa: ANN401 (csv does not export its class)
    """A ``csv.writer`` that ends lines with a line feed, and quotes carriage returns, too, which readers take for one.

    Python before 3.13 quotes only those letters that end a line.
    """
    return csv.writer(_LineFeeds(file), lineterminator="\r\n")


@dataclass(frozen=True)
class _LineFeeds:
    """Writes rows that end with a carriage return and a line feed without the former."""

    file: TextIO

    def write(self, row: str) -> int:
        return self.file.write(row.removesuffix("\r\n") + "\n")
