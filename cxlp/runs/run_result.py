"""What a run has left, as an object."""

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
    """An interval of 95 % confidence, and the method that it is by."""

    low: float
    high: float
    by: str


class RunResult:
    """A run that has been tested: its metrics, its files, its network.

    Args:
        folder: The run's, such as ``runs/NAME``, or that of a test by ``cxlp test``.

    Attributes:
        folder: The one that holds the results, of a refit ``runs/NAME/refit``.
        metrics: Those of the tested checkpoint, by name: ``test/accuracy``, ``val/...``, ``frozen/...``.
        intervals: Intervals of 95 % confidence of the test's metrics.
        images: How many images there are, by split.
        seconds: How long each phase has taken.
        failed: Outputs beside the result that could not be made.

    Raises:
        CxlpError: If the folder holds no results.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        found = finished(Path(folder))
        if found is None:
            raise CxlpError(f"{os.fspath(folder)} holds no results of a run that has come to its end (metrics.json)")
        self.folder = found
        self._summary: dict[str, Any] = json.loads((found / "metrics.json").read_text())
        self.metrics: dict[str, float] = self._summary["metrics"]
        self.intervals = {name: Interval(**each) for name, each in self._summary.get("intervals", {}).items()}
        self.images: dict[str, int] = self._summary["images"]
        self.seconds: dict[str, float] = self._summary["seconds"]
        self.failed: Sequence[str] = tuple(self._summary["outputs"]["failed"])

    @property
    def checkpoint(self) -> Path:
        """The tested one.

        Raises:
            CxlpError: If the run has saved none.
        """
        path = self.folder / str(self._summary["tested"])  # absolute where another run's was tested
        if not path.is_file():
            raise CxlpError(f"{self.folder} has no tested checkpoint: it was not saved, or deleted")
        return path

    @property
    def report(self) -> Path:
        """``report.html``: all of it in one page."""
        return self.folder / "report.html"

    @property
    def predictions(self) -> Path:
        """``predictions.csv``: each test image with its truth and the most probable classes."""
        return self.folder / "predictions.csv"

    @cached_property
    def model(self) -> "Predictor":
        """The tested network, ready to use, on a GPU where there is one; read when it is first asked for."""
        from cxlp.deploy.loading import load

        return load(self.checkpoint, "auto")

    def __repr__(self) -> str:
        counts = ", ".join(f"{count:,} {split}" for split, count in self.images.items())
        rows = (" ".join(row).rstrip() for row in self._rows())
        return "\n".join([f"RunResult({str(self.folder)!r}): {counts} images", *rows])

    def _rows(self) -> list[tuple[str, str, str]]:
        """Name, value and interval of the metrics of test and validation."""
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
