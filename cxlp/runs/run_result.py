"""The results of a finished run, as a Python object."""

import json
import os
from collections.abc import Sequence
from functools import cached_property
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from cxlp.runs.folder import finished
from cxlp.utils.errors import CxlpError
from cxlp.utils.spelling import as_text

if TYPE_CHECKING:
    from cxlp.deploy.predictor import Predictor


class Interval(NamedTuple):
    """A 95 % confidence interval, and the name of its method."""

    low: float
    high: float
    by: str


class RunResult:
    """Results of a finished run: its metrics, files and network.

    Args:
        folder: The run's folder, such as ``runs/NAME``, or the folder of a test by ``cxlp test``.

    Attributes:
        folder: The folder that contains the results; for a refit ``runs/NAME/refit``.
        metrics: Metrics of the tested checkpoint, by name: ``test/accuracy``, ``val/...``, ``frozen/...``.
        intervals: 95 % confidence intervals of the test's metrics.
        images: Number of images, by split.
        seconds: Duration of each phase, in seconds.
        failed: Optional outputs that could not be written.

    Raises:
        CxlpError: If the folder contains no results.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        found = finished(Path(folder))
        if found is None:
            raise CxlpError(f"{os.fspath(folder)} contains no results of a finished run (a complete metrics.json)")
        self.folder = found
        self._summary: dict[str, Any] = json.loads((found / "metrics.json").read_text())
        self.metrics: dict[str, float] = self._summary["metrics"]
        self.intervals = {name: Interval(**each) for name, each in self._summary.get("intervals", {}).items()}
        self.images: dict[str, int] = self._summary["images"]
        self.seconds: dict[str, float] = self._summary["seconds"]
        self.failed: Sequence[str] = tuple(self._summary["outputs"]["failed"])

    @property
    def checkpoint(self) -> Path:
        """Path of the tested checkpoint.

        Raises:
            CxlpError: If the run saved no checkpoint, or the checkpoint has been deleted.
        """
        path = self.folder / str(self._summary["tested"])  # an absolute path if another run's checkpoint was tested
        if not path.is_file():
            raise CxlpError(f"{self.folder} has no tested checkpoint: it was not saved or has been deleted")
        return path

    @property
    def report(self) -> Path:
        """Path of ``report.html``, which shows all results on one page."""
        return self.folder / "report.html"

    @property
    def predictions(self) -> Path:
        """Path of ``predictions.csv``: each test image with its true and its most probable classes."""
        return self.folder / "predictions.csv"

    @cached_property
    def model(self) -> "Predictor":
        """The tested network, ready to use, on a GPU if available; loaded at first access."""
        from cxlp.deploy.loading import load

        return load(self.checkpoint, "auto")

    def __repr__(self) -> str:
        counts = ", ".join(f"{count:,} {split}" for split, count in self.images.items())
        rows = (" ".join(row).rstrip() for row in self._rows())
        return "\n".join([f"RunResult({str(self.folder)!r}): {counts} images", *rows])

    def _rows(self) -> list[tuple[str, str, str]]:
        """Name, value and interval of each test and validation metric."""
        width = max((len(name) for name in self.metrics), default=0)
        rows = []
        for name, value in self.metrics.items():
            if value is not None and not name.startswith("frozen/"):
                own = self.intervals.get(name)
                low_high = f"({as_text(name, own.low)} to {as_text(name, own.high)}, {own.by})" if own else ""
                rows.append((f"  {name:{width}}", as_text(name, value), low_high))
        return rows

    def _repr_html_(self) -> str:
        rows = "".join(f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in row)}</tr>" for row in self._rows())
        return f"<table><caption>{escape(str(self.folder))}</caption>{rows}</table>"
