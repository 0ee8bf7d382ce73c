"""The rows of a comparison's table, read from the output files of runs."""

import csv
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Any

from cxlp.reports.formatting import spread
from cxlp.reports.history import by_epoch
from cxlp.studies.choice import cross_validated
from cxlp.utils.errors import CxlpError

#: Phases of a run that are not part of the fit.
_NO_FIT = (
    "start-up", "test", "validation", "cost", "tables and pictures", "report", "other", "total", "since resumed",
)  # fmt: skip

#: Remedy for a run whose files are broken.
_REMEDY = "delete {} and repeat the command to do that run again"


@dataclass(frozen=True)
class Row:
    """The results of a system. With several seeds, metrics are means, and costs are from the first seed.

    Attributes:
        name: The system's name.
        quality: Accuracy or mean average precision of the test images, in percent.
        deviation: Sample standard deviation (n - 1) of ``quality`` over the seeds; ``None`` for one seed.
        cost: The result of :func:`cxlp.runs.cost.measure_cost`.
        row_bytes: Bytes of an image's stored features.
        peak_bytes: Peak memory of the whole run.
        fit_seconds: Duration of the fit, from images to the solution, in seconds.
        per_class: Accuracy or average precision by class, in percent.
        validations: For each seed, the metric of the held-out images by epoch, in percent; empty if no images are held
            out.
        incomplete: Whether a secondary output of a run could not be written.
        interval: For one run, the 95 % confidence interval of ``quality``, in percent, if it is defined.
        choice: Cross-validated metric of the training images, in percent, see
            :func:`~cxlp.studies.choice.cross_validated`.
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
        """Ends of the error bar of ``quality``: the interval, or for several seeds one standard deviation each way."""
        return (
            self.interval if self.deviation is None else (self.quality - self.deviation, self.quality + self.deviation)
        )

    @property
    def validation(self) -> float | None:
        """The validation metric of the best epoch, which is the tested one; the mean over the seeds."""
        return mean(max(curve.values()) for curve in self.validations) if self.validations else None

    def epochs_to(self, percent: float) -> int | None:
        """Return the first epoch whose validation metric, averaged over the seeds, reaches ``percent``, or ``None``."""
        shared = sorted(set.intersection(*map(set, self.validations))) if self.validations else []
        return next((e for e in shared if mean(curve[e] for curve in self.validations) >= percent), None)

    @property
    def seconds(self) -> float:
        """Seconds per new image for views, forward passes, encoding and classification, without decoding."""
        return self.cost["network"] + self.cost["encoding"] + self.cost["classification"]


def read_results(place: Path) -> dict[str, Any]:
    """Read the ``metrics.json`` of a finished run.

    Raises:
        CxlpError: If the file is broken.
    """
    file = place / "metrics.json"
    try:
        found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        _ = found["metrics"].items(), is_incomplete(found)
    except (OSError, ValueError, TypeError, AttributeError, KeyError) as error:
        raise CxlpError(f"{file} is broken ({type(error).__name__}): {_REMEDY.format(place)}") from error
    return found


def is_incomplete(results: Mapping[str, Any]) -> bool:
    """Return whether a secondary output of a run could not be written."""
    return bool(results.get("outputs", {}).get("failed"))


def read_row(name: str, places: Sequence[Path], metric: str) -> Row:
    """Read the results of a system's runs.

    Args:
        name: The system's name.
        places: The folders of the runs' results, one for each seed.
        metric: ``accuracy`` or ``mAP``.

    Raises:
        CxlpError: If a run lacks the metric, or its files are broken.
    """
    results = [read_results(place) for place in places]
    for place, result in zip(places, results, strict=True):
        if result["metrics"].get(f"test/{metric}") is None:
            raise CxlpError(f"{place / 'metrics.json'} has no test/{metric}: {_REMEDY.format(place)}")
        if not {"cost", "memory", "seconds"} <= result.keys() or not (place / "per_class.csv").is_file():
            raise CxlpError(f"{place} lacks costs or per_class.csv: {_REMEDY.format(place)}")
    quality = [100 * result["metrics"][f"test/{metric}"] for result in results]
    found = results[0]
    # If an earlier run computed the features, their cost is part of this fit.
    earlier = found.get("features made by an earlier run", {})
    seconds = {**found["seconds"], **earlier.get("seconds", {})}
    interval = found.get("intervals", {}).get(f"test/{metric}")
    chosen = [value for result in results if (value := cross_validated(result, metric)) is not None]
    # A refit holds no images out: its parent folder is the run with the validation curve.
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
