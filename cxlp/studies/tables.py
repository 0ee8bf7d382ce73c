"""What came out of a comparison: rows of a table, and the table, pictures and wandb run made of them."""

import csv
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import mean
from typing import Any

import wandb

from cxlp.reports.figures import draw_costs, draw_differences, draw_sweep, draw_validations
from cxlp.reports.formatting import as_csv, as_markdown, spread
from cxlp.reports.history import by_epoch
from cxlp.reports.outputs import Outputs
from cxlp.runs.loggers import RunConfig
from cxlp.runs.wandb_runs import start_wandb
from cxlp.studies.choice import cross_validated
from cxlp.studies.evidence import NO_EVIDENCE, Evidence
from cxlp.studies.paired import COLUMNS
from cxlp.studies.systems import BASELINE
from cxlp.utils.errors import CxlpError
from cxlp.utils.files import write_whole

#: Phases of a run that are no part of fitting.
_NO_FIT = (
    "start-up", "test", "validation", "cost", "tables and pictures", "report", "other", "total", "since resumed",
)  # fmt: skip

#: The column of intervals.
_INTERVAL = "95% interval"
#: What to do about a run whose files are broken.
_ANEW = "delete {}, and the same command does that run anew"


@dataclass(frozen=True)
class Row:
    """What came out of a system.

    Attributes:
        name: The system's.
        quality: Accuracy or mean average precision of the test images, in percent; with several seeds the mean.
        deviation: Sample standard deviation (n - 1) of ``quality`` among the seeds; ``None``: there is one seed.
        cost: See :func:`cxlp.runs.cost.measure_cost`. The costs below, too, are those of the first seed.
        row_bytes: Bytes of an image's stored features.
        peak_bytes: The most memory that the whole run took.
        fit_seconds: Seconds from images to the solution.
        per_class: Accuracy or average precision by class, in percent; with several seeds the mean.
        validations: For each seed, the same metric of the held-out images, in percent, by epoch; empty: no images are
            held out.
        incomplete: Whether a run could not make an output beside its result.
        interval: Of one run, the ends of the 95 % interval of ``quality``, in percent, where it has one.
        choice: ``quality`` of the training images by cross-validation, in percent, see
            :func:`~cxlp.studies.choice.cross_validated`; with several seeds the mean.
        places: The folders of the runs' results.
    """

    name: str
    quality: float
    deviation: float | None
    cost: dict[str, float]
    row_bytes: int
    peak_bytes: int
    fit_seconds: float
    per_class: dict[str, float]
    validations: tuple[dict[int, float], ...] = ()
    incomplete: bool = False
    interval: tuple[float, float] | None = None
    choice: float | None = None
    places: tuple[Path, ...] = ()

    @property
    def ends(self) -> tuple[float, float] | None:
        """Ends of the error bar of ``quality``: of the interval or, of several seeds, one deviation to each side."""
        return (
            self.interval if self.deviation is None else (self.quality - self.deviation, self.quality + self.deviation)
        )

    @property
    def validation(self) -> float | None:
        """Validation of the best epoch, which is the one that is tested; with several seeds the mean."""
        return mean(max(curve.values()) for curve in self.validations) if self.validations else None

    def epochs_to(self, percent: float) -> int | None:
        """The first epoch in which the seeds' mean validation reaches so much; ``None``: none does."""
        shared = sorted(set.intersection(*map(set, self.validations))) if self.validations else []
        return next((e for e in shared if mean(curve[e] for curve in self.validations) >= percent), None)

    @property
    def seconds(self) -> float:
        """Seconds that a new image takes: views, forward passes, encoding, classification; not its decoding."""
        return self.cost["network"] + self.cost["encoding"] + self.cost["classification"]


def read_results(place: Path) -> dict[str, Any]:
    """Read the ``metrics.json`` of a run that is done.

    Raises:
        CxlpError: If it is not whole.
    """
    file = place / "metrics.json"
    try:
        found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        _ = found["metrics"].items(), is_incomplete(found)
    except (OSError, ValueError, TypeError, AttributeError, KeyError) as error:
        raise CxlpError(f"{file} is not what a run writes ({type(error).__name__}): {_ANEW.format(place)}") from error
    return found


def is_incomplete(results: Mapping[str, Any]) -> bool:
    """Whether a run could not make an output beside its result."""
    return bool(results.get("outputs", {}).get("failed"))


def read_row(name: str, places: Sequence[Path], metric: str) -> Row:
    """Read what the runs of a system left.

    Args:
        name: The system's.
        places: The folders of its runs, one for each seed.
        metric: ``accuracy`` or ``mAP``.

    Raises:
        CxlpError: If a run has no such metric, or its files are not whole.
    """
    results = [read_results(place) for place in places]
    for place, result in zip(places, results, strict=True):
        if result["metrics"].get(f"test/{metric}") is None:
            raise CxlpError(f"{place / 'metrics.json'} has no test/{metric}")
        if not {"cost", "memory", "seconds"} <= result.keys() or not (place / "per_class.csv").is_file():
            raise CxlpError(f"{place} lacks costs or per_class.csv: {_ANEW.format(place)}")
    quality = [100 * result["metrics"][f"test/{metric}"] for result in results]
    found = results[0]
    # Where the features are an earlier run's, what they cost there belongs to this fit.
    earlier = found.get("features made by an earlier run", {})
    seconds = {**found["seconds"], **earlier.get("seconds", {})}
    interval = found.get("intervals", {}).get(f"test/{metric}")
    chosen = [value for result in results if (value := cross_validated(result, metric)) is not None]
    # A refit, which holds nothing out, lies in the folder of the run that chose its epoch.
    curves = [by_epoch(place, f"val/{metric}") or by_epoch(place.parent, f"val/{metric}") for place in places]
    return Row(
        name,
        mean(quality),
        spread(quality),
        found["cost"],
        found["cost"]["bytes"],
        max(found["memory"].get("peak_bytes", 0), earlier.get("peak_bytes", 0)),
        sum(spent for phase, spent in seconds.items() if phase not in _NO_FIT),
        _per_class(places, "AP" if metric == "mAP" else "accuracy"),
        tuple({epoch: 100 * value for epoch, value in curve.items()} for curve in curves) if all(curves) else (),
        any(map(is_incomplete, results)),
        None if interval is None or len(places) > 1 else (100 * interval["low"], 100 * interval["high"]),
        100 * mean(chosen) if len(chosen) == len(results) else None,
        tuple(places),
    )


def _per_class(places: Sequence[Path], column: str) -> dict[str, float]:
    found: dict[str, list[float]] = {}
    for place in places:
        with (place / "per_class.csv").open(newline="", encoding="utf-8", errors="surrogateescape") as file:
            for record in csv.DictReader(file):
                if record[column]:
                    found.setdefault(record["class"], []).append(100 * float(record[column]))
    return {name: mean(values) for name, values in found.items()}


def table(
    rows: Sequence[Row],
    metric: str,
    reach: float | None = None,
    evidence: Evidence = NO_EVIDENCE,
) -> tuple[list[str], list[list[Any]]]:
    """Tabulate rows, plain values; with columns of deviations and validation where there are such.

    Args:
        rows: In the order of the table.
        metric: ``accuracy`` or ``mAP``.
        reach: A percentage of the images held out, for a column of the first epoch that has it; ``None``: no such
            column.
        evidence: Paired tests, for columns of their own, and combinations, for rows below the others.
    """
    cost = {"network ms": "network", "encoding ms": "encoding", "SVM ms": "classification"}
    columns: dict[str, Callable[[Row], Any]] = {"system": lambda row: row.name}
    columns[f"test {metric} %"] = lambda row: round(row.quality, 1)
    if any(row.deviation is not None for row in rows):
        columns["±"] = lambda row: _or_empty(row.deviation, 2)
    if any(row.interval for row in rows):
        columns[_INTERVAL] = lambda row: "{:.1f} to {:.1f}".format(*row.interval) if row.interval else ""
    if any(row.choice is not None for row in rows):
        columns["cv %"] = lambda row: _or_empty(row.choice, 1)
    if any(row.validations for row in rows):
        columns["val %"] = lambda row: _or_empty(row.validation, 1)
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


#: What columns mean, for those that are in the table.
_NOTES = {
    "size": "size: of the vector; kB: of a stored one; passes, ms: per image, decoding not counted; x bare: these ms "
    "together, in bare forward passes of one image up to the highest layer of the row; both are medians of two to five "
    "rounds in turn, of at most 32 views at a time, as many as take a few seconds; peak MB: of the whole run; fit s: "
    "from images to the solution, gradient epochs included.",
    "±": "±: standard deviation (n - 1) among the seeds, whose mean is before it; costs are of the first seed.",
    "95%": "95% interval: of the test images, by Wilson (accuracy) or a bootstrap over images (mAP). Systems that are "
    "tested on the same images differ by less than their intervals suggest.",
    "val %": "val %: accuracy or mAP of the held-out images in the best epoch, which is tested; the mean over seeds.",
    "epochs to": "epochs to: the first epoch, counted from 0, in which the held-out images reach the percentage (with "
    "several seeds, their mean in that epoch); empty: none. With a frozen start, epoch 0 is the frozen fit.",
    "validation.png": "validation.png: means over the seeds, shaded from the lowest to the highest.",
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
    """Write the table into a folder, then what may fail without it: pictures, and a wandb run.

    Args:
        folder: The comparison's.
        metric: ``accuracy`` or ``mAP``.
        rows: At least one.
        option: The option of a sweep; ``None``: the rows are systems or recipes.
        run: The wandb options of the runs.
        outputs: Notes what could not be made.
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
        seconds = [row.seconds for row in rows]
        pictures["accuracy_against_time.png"] = partial(draw_costs, names, quality, ends, seconds, y_label)
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
        (folder / name).unlink(missing_ok=True)  # that of an earlier comparison
        with outputs.attempt(name):
            write_whole(folder / name, draw())
            drawn.append(name)
    with outputs.attempt("the wandb run"):
        experiment = start_wandb(run, folder, "compare")
        if experiment is not None:
            # Where a number is missing; a text stays one.
            gaps = ["" if head in (_INTERVAL, *COLUMNS) else math.nan for head in heads]
            logged = [[gap if v == "" else v for gap, v in zip(gaps, record, strict=True)] for record in values]
            panels = {f"compare/{Path(name).stem}": wandb.Image(str(folder / name)) for name in drawn}
            experiment.log({"compare/results": wandb.Table(columns=[*heads], data=logged), **panels})
            experiment.summary.update({f"{metric}/{row.name}": row.quality for row in rows})
            experiment.finish()
    return [folder / name for name in (*files, *drawn)]
