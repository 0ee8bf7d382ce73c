"""Figures and tables as text, Markdown and CSV."""

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import stdev
from typing import Any, TextIO


def as_text(metric: str, value: float) -> str:
    """Format a metric's value for people, proportions in percent."""
    return f"{value:.2%}" if "accuracy" in metric or "mAP" in metric else f"{value:.4g}"


def interval_as_text(metric: str, interval: Mapping[str, Any]) -> str:
    """Format an interval of ``metrics.json``, ``low``, ``high`` and ``by``, for people."""
    return f"{as_text(metric, interval['low'])} to {as_text(metric, interval['high'])} ({interval['by']})"


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
