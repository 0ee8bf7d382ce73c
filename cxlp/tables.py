"""What came out of a comparison: rows of a table, and the table, pictures and wandb run made of them."""

import csv
import io
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from pytorch_lightning.loggers import WandbLogger

from cxlp.callbacks import write_whole
from cxlp.errors import CxlpError
from cxlp.logging import RunConfig, build_loggers
from cxlp.reports import draw_costs, draw_differences, draw_sweep
from cxlp.representations.systems import BASELINE, RECALLED

#: Phases of a run that are no part of fitting.
_NO_FIT = ("test", "pictures", "validation", "total", "since resumed")

#: Heads of the table; the recalled column comes only with the paper's backbone.
RECALLED_HEAD = "paper (recalled, check the PDF)"


@dataclass(frozen=True)
class Row:
    """What came out of a system.

    Attributes:
        name: The system's.
        quality: Accuracy or mean average precision of the test images, in percent; of several seeds the mean.
        deviation: Of ``quality`` among the seeds (of the sample, n - 1); ``None``: there is one seed.
        cost: See :func:`cxlp.cost.measure_cost`; as all that follows but ``per_class``, of the first seed.
        row_bytes: Of an image's stored features.
        peak_bytes: Most memory of the whole run.
        fit_seconds: From images to the solution.
        per_class: Accuracy or average precision by class, in percent; of several seeds the mean.
    """

    name: str
    quality: float
    deviation: float | None
    cost: dict[str, float]
    row_bytes: int
    peak_bytes: int
    fit_seconds: float
    per_class: dict[str, float]

    @property
    def seconds(self) -> float:
        """Of a new image: views, forward passes, encoding, classification (decoding not counted)."""
        return self.cost["network"] + self.cost["encoding"] + self.cost["classification"]


def read_row(name: str, places: Sequence[Path], metric: str) -> Row:
    """Read what the runs of a system left.

    Args:
        name: The system's.
        places: The folders of its runs, one for each seed.
        metric: ``accuracy`` or ``mAP``.

    Raises:
        CxlpError: If a run has no such metric.
    """
    results = [json.loads((place / "metrics.json").read_text()) for place in places]
    for place, result in zip(places, results, strict=True):
        if f"test/{metric}" not in result["metrics"]:
            raise CxlpError(f"{place / 'metrics.json'} has no test/{metric}")
    quality = [100 * result["metrics"][f"test/{metric}"] for result in results]
    found = results[0]
    # Of a fit on features that an earlier run made, what they cost there belongs to it.
    earlier = found.get("features made by an earlier run", {})
    seconds = {**found["seconds"], **earlier.get("seconds", {})}
    return Row(
        name,
        mean(quality),
        spread(quality),
        found["cost"],
        found["cost"]["bytes"],
        max(found["memory"].get("peak_bytes", 0), earlier.get("peak_bytes", 0)),
        sum(spent for phase, spent in seconds.items() if phase not in _NO_FIT),
        _per_class(places, "AP" if metric == "mAP" else "accuracy"),
    )


def as_text(metric: str, value: float) -> str:
    """A metric's value for people: parts in percent."""
    return f"{value:.2%}" if "accuracy" in metric or "mAP" in metric else f"{value:.4g}"


def spread(values: Sequence[float]) -> float | None:
    """The standard deviation of a sample, with n - 1; ``None`` of a single value."""
    return stdev(values) if len(values) > 1 else None


def _per_class(places: Sequence[Path], column: str) -> dict[str, float]:
    found: dict[str, list[float]] = {}
    for place in places:
        with (place / "per_class.csv").open(newline="") as file:
            for record in csv.DictReader(file):
                if record[column]:
                    found.setdefault(record["class"], []).append(100 * float(record[column]))
    return {name: mean(values) for name, values in found.items()}


def table(rows: Sequence[Row], metric: str, data: str | None) -> tuple[list[str], list[list[Any]]]:
    """Tabulate rows, plain values; with a column of deviations where there are several seeds.

    Args:
        rows: In the order of the table.
        metric: ``accuracy`` or ``mAP``.
        data: The data set's name, for a column of recalled values; ``None``: no such column.
    """
    repeated = any(row.deviation is not None for row in rows)
    heads = [
        "system",
        f"{metric} %",
        *(["±"] if repeated else []),
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
                *(["" if row.deviation is None else round(row.deviation, 2)] if repeated else []),
                int(row.cost["dimension"]), int(row.cost["passes"]), *milliseconds,
                round(row.seconds / row.cost["bare pass"], 2),
                round(row.row_bytes / 1000, 1), round(row.peak_bytes / 1e6), round(row.fit_seconds, 1),
            ]
        )  # fmt: skip
    if data is not None:
        heads.append(RECALLED_HEAD)
        for record in values:
            record.append(RECALLED.get(record[0], {}).get(data, ""))
    return heads, values


def as_markdown(heads: Sequence[str], values: Sequence[Sequence[Any]]) -> str:
    """Write a table in Markdown."""
    lines = [heads, ["---", *["---:"] * (len(heads) - 1)], *values]
    return "".join("| " + " | ".join(map(str, line)) + " |\n" for line in lines)


def as_csv(heads: Sequence[str], values: Sequence[Sequence[Any]]) -> str:
    """Write a table as CSV."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([heads, *values])
    return text.getvalue()


def write_reports(
    folder: Path, metric: str, rows: Sequence[Row], data: str | None, option: str | None, run: RunConfig
) -> list[Path]:
    """Write table and pictures into a folder and into a wandb run.

    Args:
        folder: The comparison's.
        metric: ``accuracy`` or ``mAP``.
        rows: At least one.
        data: See :func:`table`.
        option: The option of a sweep; ``None``: the rows are systems.
        run: The wandb options of the runs.

    Returns:
        The files.
    """
    heads, values = table(rows, metric, data)
    note = (
        "\nsize: of the vector; kB: of a stored one; passes, ms: per image, decoding not counted; x bare: these ms "
        "together, in bare forward passes of one image up to the highest layer of the row; peak MB: of the whole run; "
        "fit s: from images to SVMs.\n"
    )
    if "±" in heads:
        note += (
            "\n±: standard deviation (n - 1) among the seeds, whose mean is before it; costs are of the first seed.\n"
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
    for name, text in files.items():
        write_whole(folder / name, text)
    for name, picture in pictures.items():
        write_whole(folder / name, picture)
    for logger in build_loggers(run, folder, None, 0):
        if isinstance(logger, WandbLogger):
            logger.log_table(
                "compare/results",
                columns=heads,
                data=[[math.nan if v == "" else v for v in record] for record in values],
            )
            for name in pictures:
                logger.log_image(f"compare/{Path(name).stem}", [str(folder / name)])
            logger.experiment.summary.update({f"{metric}/{row.name}": row.quality for row in rows})
            logger.experiment.finish()
    return [folder / name for name in (*files, *pictures)]
