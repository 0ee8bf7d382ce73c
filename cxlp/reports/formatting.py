"""Tables as text, Markdown and CSV."""

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import stdev
from typing import Any, TextIO

from cxlp.utils.spelling import as_text, is_part, shown_names

#: Columns of tables that hold names of classes.
_CLASSES = ("class", "true", "answered", "taken for", "most often taken for")


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


def as_cells(values: Sequence[Sequence[Any]]) -> list[list[str]]:
    """Write the cells of a table as text; all rounded numbers of a column have as many decimals as one of them needs.

    >>> as_cells([["CL", 85.5], ["bilinear", 86.25], ["average", ""]])
    [['CL', '85.50'], ['bilinear', '86.25'], ['average', '']]
    """
    columns = []
    for column in zip(*values, strict=True):
        decimals = max((len(str(v).partition(".")[2]) for v in column if isinstance(v, float)), default=0)
        columns.append([f"{v:.{decimals}f}" if isinstance(v, float) else str(v) for v in column])
    return [list(row) for row in zip(*columns, strict=True)]


def as_markdown(heads: Sequence[str], values: Sequence[Sequence[Any]]) -> str:
    """Write a table in Markdown."""
    lines = [heads, ["---", *["---:"] * (len(heads) - 1)], *as_cells(values)]
    return "".join("| " + " | ".join(line) + " |\n" for line in lines)


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
