"""What came out of a comparison: rows of a table, and the table, pictures and wandb run made of them."""

import csv
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Any

import wandb

from cxlp.reports.figures import draw_costs, draw_differences, draw_sweep, draw_validations
from cxlp.reports.formatting import as_csv, as_markdown, spread
from cxlp.reports.history import by_epoch
from cxlp.runs.loggers import RunConfig, start_wandb
from cxlp.studies.systems import BASELINE
from cxlp.utils.errors import CxlpError
from cxlp.utils.files import write_whole

#: Phases of a run that are no part of fitting.
_NO_FIT = ("test", "pictures", "validation", "total", "since resumed")

#: What to do about a run whose files are broken.
_ANEW = "delete {}, and the same command does that run anew"


@dataclass(frozen=True)
class Row:
    """What came out of a system.

    Attributes:
        name: The system's.
        quality: Accuracy or mean average precision of the test images, in percent; of several seeds the mean.
        deviation: Of ``quality`` among the seeds (of the sample, n - 1); ``None``: there is one seed.
        cost: See :func:`cxlp.runs.cost.measure_cost`; as all that follows but ``per_class``, of the first seed.
        row_bytes: Of an image's stored features.
        peak_bytes: Most memory of the whole run.
        fit_seconds: From images to the solution.
        per_class: Accuracy or average precision by class, in percent; of several seeds the mean.
        validations: Of each seed, the same metric of the images held out, in percent, by epoch; empty: none are.
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

    @property
    def validation(self) -> float | None:
        """The best epoch's, which is the one that is tested; of several seeds the mean."""
        return mean(max(curve.values()) for curve in self.validations) if self.validations else None

    def epochs_to(self, percent: float) -> int | None:
        """The first epoch in which the seeds' mean validation reaches so much; ``None``: none does."""
        shared = sorted(set.intersection(*map(set, self.validations))) if self.validations else []
        return next((e for e in shared if mean(curve[e] for curve in self.validations) >= percent), None)

    @property
    def seconds(self) -> float:
        """Of a new image: views, forward passes, encoding, classification (decoding not counted)."""
        return self.cost["network"] + self.cost["encoding"] + self.cost["classification"]


def read_results(place: Path) -> dict[str, Any]:
    """Read the ``metrics.json`` of a run that is done.

    Raises:
        CxlpError: If it is not whole.
    """
    file = place / "metrics.json"
    try:
        found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        _ = found["metrics"].items()
    except (OSError, ValueError, TypeError, AttributeError, KeyError) as error:
        raise CxlpError(f"{file} is not what a run writes ({type(error).__name__}): {_ANEW.format(place)}") from error
    return found


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
        if f"test/{metric}" not in result["metrics"]:
            raise CxlpError(f"{place / 'metrics.json'} has no test/{metric}")
        if not {"cost", "memory", "seconds"} <= result.keys() or not (place / "per_class.csv").is_file():
            raise CxlpError(f"{place} lacks costs or per_class.csv: {_ANEW.format(place)}")
    quality = [100 * result["metrics"][f"test/{metric}"] for result in results]
    found = results[0]
    # Of a fit on features that an earlier run made, what they cost there belongs to it.
    earlier = found.get("features made by an earlier run", {})
    seconds = {**found["seconds"], **earlier.get("seconds", {})}
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
    )


def _per_class(places: Sequence[Path], column: str) -> dict[str, float]:
    found: dict[str, list[float]] = {}
    for place in places:
        with (place / "per_class.csv").open(newline="") as file:
            for record in csv.DictReader(file):
                if record[column]:
                    found.setdefault(record["class"], []).append(100 * float(record[column]))
    return {name: mean(values) for name, values in found.items()}


def table(rows: Sequence[Row], metric: str, reach: float | None = None) -> tuple[list[str], list[list[Any]]]:
    """Tabulate rows, plain values; with columns of deviations and validation where there are such.

    Args:
        rows: In the order of the table.
        metric: ``accuracy`` or ``mAP``.
        reach: A percentage of the images held out, for a column of the first epoch that has it; ``None``: no such
            column.
    """
    repeated = any(row.deviation is not None for row in rows)
    validated = any(row.validations for row in rows)
    heads = [
        "system",
        f"{metric} %",
        *(["±"] if repeated else []),
        *(["val %"] if validated else []),
        *([] if reach is None else [f"epochs to {reach:g} %"]),
        "size",
        "passes",
        "network ms",
        "encoding ms",
        "SVM ms",
        "x bare",
        "kB",
        "peak MB",
        "fit s",
    ]
    values: list[list[Any]] = []
    for row in rows:
        milliseconds = [round(1000 * row.cost[part], 2) for part in ("network", "encoding", "classification")]
        values.append(
            [
                row.name, round(row.quality, 1),
                *([_or_empty(row.deviation, 2)] if repeated else []),
                *([_or_empty(row.validation, 1)] if validated else []),
                *([] if reach is None else [_or_empty(row.epochs_to(reach))]),
                int(row.cost["dimension"]), int(row.cost["passes"]), *milliseconds,
                round(row.seconds / row.cost["bare pass"], 2),
                round(row.row_bytes / 1000, 1), round(row.peak_bytes / 1e6), round(row.fit_seconds, 1),
            ]
        )  # fmt: skip
    return heads, values


def _or_empty(value: float | None, digits: int | None = None) -> float | str:
    return "" if value is None else round(value, digits)


def write_reports(
    folder: Path,
    metric: str,
    rows: Sequence[Row],
    option: str | None,
    run: RunConfig,
    reach: float | None = None,
) -> list[Path]:
    """Write table and pictures into a folder and into a wandb run.

    Args:
        folder: The comparison's.
        metric: ``accuracy`` or ``mAP``.
        rows: At least one.
        option: The option of a sweep; ``None``: the rows are systems or recipes.
        run: The wandb options of the runs.
        reach: See :func:`table`.

    Returns:
        The files.
    """
    heads, values = table(rows, metric, reach)
    note = (
        "\nsize: of the vector; kB: of a stored one; passes, ms: per image, decoding not counted; x bare: these ms "
        "together, in bare forward passes of one image up to the highest layer of the row; peak MB: of the whole run; "
        "fit s: from images to the solution, gradient epochs included.\n"
    )
    if "±" in heads:
        note += (
            "\n±: standard deviation (n - 1) among the seeds, whose mean is before it; costs are of the first seed.\n"
        )
    if "val %" in heads:
        note += "\nval %: of the images held out, in the epoch that was best on them, which is tested; mean of seeds.\n"
    if reach is not None:
        note += (
            "\nepochs to: the first epoch, from 0, in which the images held out have so much (of several seeds, their "
            "mean in that epoch); empty: none. From a frozen start, 0 is the frozen fit.\n"
        )
    files: dict[str, str] = {"results.md": as_markdown(heads, values) + note, "results.csv": as_csv(heads, values)}
    pictures: dict[str, bytes] = {}
    quality = [row.quality for row in rows]
    if option is None:
        pictures["accuracy_against_time.png"] = draw_costs(
            [row.name for row in rows], quality, [row.seconds for row in rows], metric
        )
    else:
        pictures["sweep.png"] = draw_sweep(option, [row.name for row in rows], quality, metric)
    baseline = BASELINE if any(row.name == BASELINE for row in rows) else rows[0].name
    if len(rows) > 1:
        pictures["per_class.png"] = draw_differences({row.name: row.per_class for row in rows}, baseline)
    curves = {row.name: row.validations for row in rows if any(len(curve) > 1 for curve in row.validations)}
    if curves:
        files["validation.csv"] = as_csv(
            ["system", "run", "epoch", f"val/{metric} %"],
            [
                [name, number, epoch, round(value, 2)]
                for name, seeds in curves.items()
                for number, curve in enumerate(seeds)
                for epoch, value in curve.items()
            ],
        )
        note += "\nvalidation.png: means over the seeds, shaded from the lowest to the highest.\n"
        files["results.md"] = as_markdown(heads, values) + note
        pictures["validation.png"] = draw_validations(curves, metric, reach)
    for name, text in files.items():
        write_whole(folder / name, text)
    for name, picture in pictures.items():
        write_whole(folder / name, picture)
    experiment = start_wandb(run, folder)
    if experiment is not None:
        logged = [[math.nan if v == "" else v for v in record] for record in values]
        panels = {f"compare/{Path(name).stem}": wandb.Image(str(folder / name)) for name in pictures}
        experiment.log({"compare/results": wandb.Table(columns=[*heads], data=logged), **panels})
        experiment.summary.update({f"{metric}/{row.name}": row.quality for row in rows})
        experiment.finish()
    return [folder / name for name in (*files, *pictures)]
