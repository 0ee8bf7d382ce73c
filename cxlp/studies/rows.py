"""What the runs of a system have left: a row of a comparison's table."""

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

#: Phases of a run that are no part of fitting.
_NO_FIT = (
    "start-up", "test", "validation", "cost", "tables and pictures", "report", "other", "total", "since resumed",
)  # fmt: skip

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
