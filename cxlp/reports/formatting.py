"""Figures and tables as text, Markdown and CSV."""

import csv
import io
from collections.abc import Mapping, Sequence
from statistics import stdev
from typing import Any


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
    csv.writer(text, lineterminator="\n").writerows([heads, *values])
    return text.getvalue()
