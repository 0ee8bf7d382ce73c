"""Tables formatted as text, Markdown and CSV."""

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import stdev
from typing import Any, TextIO

from cxlp.utils.spelling import as_text, is_part, shown_names

#: Columns of tables that contain names of classes.
_CLASSES = ("class", "true", "answered", "taken for", "most often taken for")


def readable(rows: Iterable[Mapping[str, Any]], classes: Sequence[str]) -> list[dict[str, Any]]:
    """Make the rows of a test's tables readable: shorten names of classes, and show fractions in percent.

    Args:
        rows: Cells by column.
        classes: The names of all classes of the data set.
    """
    spelled = dict(zip(classes, shown_names(classes), strict=True))
    spelled = {f"no {name}": f"no {shown}" for name, shown in spelled.items()} | spelled

    def text(column: str, cell: Any) -> Any:  # noqa: ANN401 (any value of a table)
        if column in _CLASSES:
            return spelled.get(cell, cell)
        return as_text(column, float(cell)) if cell not in ("", None) and is_part(column) else cell

    return [{column: text(column, cell) for column, cell in row.items()} for row in rows]


def spread(values: Sequence[float]) -> float | None:
    """Compute the sample standard deviation (n - 1); ``None`` for a single value."""
    return stdev(values) if len(values) > 1 else None


def as_cells(values: Sequence[Sequence[Any]]) -> list[list[str]]:
    """Format the cells of a table as text. All floats of a column have the same number of decimals.

    >>> as_cells([["CL", 85.5], ["bilinear", 86.25], ["average", ""]])
    [['CL', '85.50'], ['bilinear', '86.25'], ['average', '']]
    """
    columns = []
    for column in zip(*values, strict=True):
        decimals = max((len(str(v).partition(".")[2]) for v in column if isinstance(v, float)), default=0)
        columns.append([f"{v:.{decimals}f}" if isinstance(v, float) else str(v) for v in column])
    return [list(row) for row in zip(*columns, strict=True)]


def as_markdown(heads: Sequence[str], values: Sequence[Sequence[Any]]) -> str:
    """Format a table as Markdown."""
    lines = [heads, ["---", *["---:"] * (len(heads) - 1)], *as_cells(values)]
    return "".join("| " + " | ".join(line) + " |\n" for line in lines)


def as_csv(heads: Sequence[str], values: Sequence[Sequence[Any]]) -> str:
    """Format a table as CSV."""
    text = io.StringIO()
    csv_writer(text).writerows([heads, *values])
    return text.getvalue()


def csv_writer(file: TextIO) -> Any:  # noqa: ANN401 (csv does not export its class)
    """Return a ``csv.writer`` that ends lines with a line feed, and also quotes cells with carriage returns.

    Readers treat an unquoted carriage return as the end of a line. Python before 3.13 quotes only characters of the
    line terminator.
    """
    return csv.writer(_LineFeeds(file), lineterminator="\r\n")


@dataclass(frozen=True)
class _LineFeeds:
    """Removes the carriage return from the end of each row that is written."""

    file: TextIO

    def write(self, row: str) -> int:
        return self.file.write(row.removesuffix("\r\n") + "\n")
