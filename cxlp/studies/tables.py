"""The reports of a comparison: table, pictures and wandb run."""

import math
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import wandb

from cxlp.reports.figures import draw_costs, draw_differences, draw_sweep, draw_validations
from cxlp.reports.formatting import as_csv, as_markdown
from cxlp.reports.outputs import Outputs
from cxlp.runs.loggers import RunConfig
from cxlp.runs.wandb_runs import start_wandb
from cxlp.studies.evidence import NO_EVIDENCE, Evidence
from cxlp.studies.paired import COLUMNS
from cxlp.studies.rows import Row
from cxlp.studies.systems import BASELINE
from cxlp.utils.files import write_whole

#: The column of intervals.
_INTERVAL = "95% interval"


def table(
    rows: Sequence[Row],
    metric: str,
    reach: float | None = None,
    evidence: Evidence = NO_EVIDENCE,
) -> tuple[list[str], list[list[Any]]]:
    """Return the headings and the rows of the table as plain values, without empty columns.

    Args:
        rows: The systems, in the order of the table.
        metric: ``accuracy`` or ``mAP``.
        reach: Adds a column with the first epoch whose metric on the held-out images reaches this percentage.
        evidence: Paired tests, which add columns, and combinations, which add rows at the end.
    """
    cost = {"network ms": "network", "encoding ms": "encoding", "SVM ms": "classification"}
    columns: dict[str, Callable[[Row], Any]] = {"system": lambda row: row.name}
    columns[f"test {metric} %"] = lambda row: round(row.quality, 2)
    if any(row.deviation is not None for row in rows):
        columns["±"] = lambda row: _or_empty(row.deviation, 2)
    if any(row.interval for row in rows):
        columns[_INTERVAL] = lambda row: "{:.2f} to {:.2f}".format(*row.interval) if row.interval else ""
    if any(row.choice is not None for row in rows):
        columns["cv %"] = lambda row: _or_empty(row.choice, 2)
    if any(row.validations for row in rows):
        columns["val %"] = lambda row: _or_empty(row.validation, 2)
    if reach is not None:
        columns[f"epochs to {reach:g} %"] = lambda row: _or_empty(row.epochs_to(reach))
    if evidence.paired is not None:
        columns |= {head: lambda row, head=head: evidence.cell(row.name, head) for head in COLUMNS}  # type: ignore[misc]
    columns["size"] = lambda row: int(row.cost["dimension"])
    columns["passes"] = lambda row: int(row.cost["passes"])
    columns |= {head: lambda row, part=part: round(1000 * row.cost[part], 2) for head, part in cost.items()}  # type: ignore[misc]
    columns["x bare"] = lambda row: round(row.seconds / row.cost["bare pass"], 2)
    columns["kB"] = lambda row: round(row.row_bytes / 1000, 1)
    columns["peak MB"] = lambda row: round(row.peak_bytes / 1e6)
    columns["fit s"] = lambda row: round(row.fit_seconds, 1)
    values = [[value(row) for value in columns.values()] for row in rows]
    for made in evidence.combined:
        known = made.cells
        known[f"test {metric} %"] = known.pop("test", "")
        values.append([known[head] if head in known else evidence.cell(made.name, head) for head in columns])
    return list(columns), values


def _or_empty(value: float | None, digits: int | None = None) -> float | str:
    return "" if value is None else round(value, digits)


#: Notes on columns and pictures by the start of their names.
_NOTES = {
    "size": "size: dimensions of the vector. kB: size of a stored vector. passes, ms: forward passes and milliseconds "
    "per image, without decoding. x bare: the sum of these times divided by the time of a bare forward pass of one "
    "image up to the highest layer of the row; both times are medians of two to five alternating rounds with at most "
    "32 views at a time, a few seconds in total. peak MB: peak memory of the whole run. fit s: seconds from images to "
    "the solution, with gradient descent.",
    "±": "±: sample standard deviation (n - 1) over the seeds; the value before it is the mean. Costs are those of the "
    "first seed.",
    "95%": "95% interval: Wilson interval (accuracy) or bootstrap over images (mAP). Differences between systems that "
    "are tested on the same images are more certain than these intervals suggest.",
    "val %": "val %: accuracy or mAP of the held-out images in the best epoch, which is the tested one; mean over "
    "seeds.",
    "epochs to": "epochs to: the first epoch, counted from 0, in which the held-out images reach the percentage (with "
    "several seeds, on average); empty if none does. With a frozen start, epoch 0 is the frozen fit.",
    "validation.png": "validation.png: means over the seeds; the shaded range is from the lowest to the highest.",
}


def write_reports(
    folder: Path,
    metric: str,
    rows: Sequence[Row],
    option: str | None,
    run: RunConfig,
    outputs: Outputs,
    reach: float | None = None,
    evidence: Evidence = NO_EVIDENCE,
) -> list[Path]:
    """Write the table, then the pictures and a wandb run. A failure of these does not lose the table.

    Args:
        folder: The comparison's folder.
        metric: ``accuracy`` or ``mAP``.
        rows: At least one system.
        option: The option of a sweep; ``None`` if the rows are systems or recipes.
        run: The wandb options of the runs.
        outputs: Records secondary outputs that could not be written.
        reach: See :func:`table`.
        evidence: See :func:`table`.

    Returns:
        The files that were written.
    """
    heads, values = table(rows, metric, reach, evidence)
    quality, names, ends = [row.quality for row in rows], [row.name for row in rows], [row.ends for row in rows]
    bars = "standard deviation among seeds" if any(row.deviation for row in rows) else _INTERVAL
    y_label = f"{metric}, %" + (f" (bars: {bars})" if any(ends) else "")
    pictures: dict[str, Callable[[], bytes]] = {}
    if option is None:
        for what, costs, x_label in (
            ("time", [1000 * row.seconds for row in rows], "ms per image (views, network, encoding, classification)"),
            ("size", [row.row_bytes / 1000 for row in rows], "kB per image (its stored vector)"),
        ):
            pictures[f"accuracy_against_{what}.png"] = partial(
                draw_costs, names, quality, ends, costs, x_label, y_label
            )
    else:
        pictures["sweep.png"] = partial(draw_sweep, option, names, quality, ends, y_label)
    if len(rows) > 1:
        baseline = BASELINE if BASELINE in names else names[0]
        per_class = {row.name: row.per_class for row in rows}
        pictures["per_class.png"] = partial(draw_differences, per_class, baseline)
    curves = {row.name: row.validations for row in rows if any(len(curve) > 1 for curve in row.validations)}
    files: dict[str, str] = {"results.csv": as_csv(heads, values)}
    if curves:
        points = [
            [name, number, epoch, round(value, 2)]
            for name, seeds in curves.items()
            for number, curve in enumerate(seeds)
            for epoch, value in curve.items()
        ]
        files["validation.csv"] = as_csv(["system", "run", "epoch", f"val/{metric} %"], points)
        pictures["validation.png"] = partial(draw_validations, curves, metric, reach)
    notes = [
        *evidence.notes,
        *(note for key, note in _NOTES.items() if any(name.startswith(key) for name in (*heads, *pictures))),
    ]
    files = {"results.md": "\n".join([as_markdown(heads, values), *(f"{note}\n" for note in notes)]), **files}
    for name, text in files.items():
        write_whole(folder / name, text)
    drawn: list[str] = []
    for name, draw in pictures.items():
        (folder / name).unlink(missing_ok=True)  # a picture of an earlier comparison
        with outputs.attempt(name):
            write_whole(folder / name, draw())
            drawn.append(name)
    with outputs.attempt("the wandb run"):
        experiment = start_wandb(run, folder, "compare")
        if experiment is not None:
            # Missing numbers become NaN, missing texts stay empty.
            gaps = ["" if head in (_INTERVAL, *COLUMNS) else math.nan for head in heads]
            logged = [[gap if v == "" else v for gap, v in zip(gaps, record, strict=True)] for record in values]
            panels = {f"compare/{Path(name).stem}": wandb.Image(str(folder / name)) for name in drawn}
            experiment.log({"compare/results": wandb.Table(columns=[*heads], data=logged), **panels})
            experiment.summary.update({f"{metric}/{row.name}": row.quality for row in rows})
            experiment.finish()
    return [folder / name for name in (*files, *drawn)]
