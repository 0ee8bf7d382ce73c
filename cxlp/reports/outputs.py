"""Secondary outputs of a run, such as tables and pictures, whose failure does not stop the run."""

import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class Outputs:
    """Writes secondary outputs. A failure is reported on stderr, once per output, and the run continues.

    Attributes:
        failed: Names of the outputs that could not be written.

    Example:
        >>> outputs = Outputs()
        >>> with outputs.attempt("report.html"):
        ...     Path("/no/such/folder/report.html").touch()
        >>> outputs.failed
        ['report.html']
    """

    def __init__(self) -> None:
        self.failed: list[str] = []

    @contextmanager
    def attempt(self, what: str) -> Iterator[None]:
        """Return a context manager for writing the output ``what``, which catches and reports exceptions."""
        try:
            yield
        except Exception as error:  # any kind: causes include disks, fonts, networks and file names
            if what not in self.failed:
                self.failed.append(what)
                print(f"error: {what} could not be written: {_described(error)}", file=sys.stderr)  # noqa: T201


def _described(error: Exception) -> str:
    """Describe an exception in one line; unless it is an ``OSError``, with its type and where it was raised."""
    said = " ".join(str(error).split())[:300]
    if isinstance(error, OSError) and said:
        return said
    frame = traceback.extract_tb(error.__traceback__)[-1]
    name = type(error).__name__
    return f"{f'{name}: {said}' if said else name} ({Path(frame.filename).name}, line {frame.lineno})"
