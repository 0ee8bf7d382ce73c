"""The HTML page that compares several runs: metrics, differences of configs, validation curves, and classes."""

import csv
import io
import os
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

from cxlp.reports.charts import line_chart
from cxlp.reports.history import by_epoch
from cxlp.reports.page import ROWS, render
from cxlp.utils.files import write_whole
from cxlp.utils.spelling import as_text, interval_as_text, is_part, shown_names

#: Maximum number of classes in the table.
CLASSES = 1000


class Shown(NamedTuple):
    """A run on the page.

    Attributes:
        name: The run's name.
        folder: The run's folder.
        facts: The cells of the first table, by column.
        found: The content of ``metrics.json``.
    """

    name: str
    folder: Path
    facts: dict[str, str]
    found: dict[str, Any]

    def curve(self, metric: str) -> list[tuple[float, float]]:
        """Return a metric as points ``(epoch, value)``."""
        return [(float(epoch), value) for epoch, value in by_epoch(self.folder, metric).items()]

    @property
    def tested(self) -> Path:
        """The folder of the test's files, which is ``refit/`` for a run with a refit."""
        return self.folder / "refit" if (self.folder / "refit" / "metrics.json").is_file() else self.folder


def write_overview(
    path: Path,
    runs: Sequence[Shown],
    differing: Mapping[str, Sequence[str]],
    paired: Sequence[dict[str, str]] = (),
    note: str = "",
) -> None:
    """Write the page.

    Args:
        path: The output file.
        runs: At least one run.
        differing: The keys whose values differ among the configs, with a value for each run.
        paired: Rows of a table of paired tests.
        note: The note below that table.
    """
    write_whole(path, build_overview(path, runs, differing, paired, note))


def build_overview(
    path: Path,
    runs: Sequence[Shown],
    differing: Mapping[str, Sequence[str]],
    paired: Sequence[dict[str, str]],
    note: str,
) -> str:
    """Return the page of :func:`write_overview`; links to reports are relative to its path."""
    metrics = dict.fromkeys(name for run in runs for name in run.found.get("metrics", {}))
    names = [run.name for run in runs]
    return render(
        "overview.html",
        title=f"{len(runs)} runs",
        subtitle=f"{datetime.now():%Y-%m-%d %H:%M}",
        links={run.name: _link(run.tested / "report.html", path) for run in runs},
        runs=[{"run": run.name, **run.facts} for run in runs],
        bars=_bars(runs),
        paired=paired,
        note=note,
        metrics=[{"metric": name, **{run.name: _value(run, name) for run in runs}} for name in metrics],
        differing=[{"key": key, **dict(zip(names, values, strict=True))} for key, values in differing.items()],
        charts=[
            line_chart(name, {run.name: run.curve(name) for run in runs}, "epoch", parts=is_part(name))
            for name in ("val/accuracy", "val/mAP", "val/loss")
        ],
        times=[
            {"phase": phase, **{run.name: _seconds(run, phase) for run in runs}}
            for phase in dict.fromkeys(name for run in runs for name in run.found.get("seconds", {}))
        ],
        per_class=_per_class(runs),
        most_rows=ROWS,
    )


def _bars(runs: Sequence[Shown]) -> list[dict[str, Any]]:
    """Compute the bars of the intervals: positions in percent from the left, on a common scale."""
    found = []
    for run in runs:
        for name in ("test/accuracy", "test/mAP"):
            value, interval = run.found.get("metrics", {}).get(name), run.found.get("intervals", {}).get(name)
            if value is not None:
                low, high = (interval["low"], interval["high"]) if interval else (value, value)
                text = as_text(name, value) + (f", {interval_as_text(name, interval)}" if interval else "")
                found.append({"run": run.name, "low": low, "high": high, "value": value, "text": text})
                break
    if not found:
        return []
    least, most = min(bar["low"] for bar in found), max(bar["high"] for bar in found)
    span = (most - least) or 1.0

    def place(value: float) -> str:
        return f"{4 + 92 * (value - least) / span:.2f}%"

    return [{**bar, **{key: place(bar[key]) for key in ("low", "high", "value")}} for bar in found]


def _value(run: Shown, name: str) -> str:
    value = run.found.get("metrics", {}).get(name)
    return "" if value is None else as_text(name, value)


def _seconds(run: Shown, phase: str) -> str:
    spent = run.found.get("seconds", {}).get(phase)
    return "" if spent is None else f"{spent:.1f}"


def _per_class(runs: Sequence[Shown]) -> list[dict[str, str]]:
    """Return a row for each class, with a column of accuracy or average precision for each run."""
    rows: dict[str, dict[str, str]] = {}
    for run in runs:
        file = run.tested / "per_class.csv"
        text = file.read_text(encoding="utf-8", errors="replace") if file.is_file() else ""
        records = list(csv.DictReader(io.StringIO(text)))
        for record, name in zip(records, shown_names([record["class"] for record in records]), strict=True):
            column = "accuracy" if "accuracy" in record else "AP"
            value = record.get(column)
            rows.setdefault(name, {})[run.name] = as_text(column, float(value)) if value else ""
    return [{"class": name, **{run.name: found.get(run.name, "") for run in runs}} for name, found in rows.items()]


def _link(report: Path, page: Path) -> str:
    """Return a report's address relative to the page; empty if there is no report."""
    return Path(os.path.relpath(report, page.absolute().parent)).as_posix() if report.is_file() else ""
