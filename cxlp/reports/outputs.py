"""Outputs that follow a result, each of which may fail without the others."""

import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class Outputs:
    """Makes outputs one by one: one that fails is named on stderr, once, and the work goes on.

    Attributes:
        failed: Names of the outputs that could not be made.

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
        """Make one output inside a ``with``."""
        try:
            yield
        except Exception as error:  # of any kind: it comes from disks, fonts, networks and names
            if what not in self.failed:
                self.failed.append(what)
                print(f"error: {what} could not be made: {_described(error)}", file=sys.stderr)  # noqa: T201


def _described(error: Exception) -> str:
    """Describe an exception in one line; one that is no system's failure, with its type and where it was raised."""
    said = " ".join(str(error).split())[:300]
    if isinstance(error, OSError) and said:
        return said
    frame = traceback.extract_tb(error.__traceback__)[-1]
    name = type(error).__name__
    return f"{f'{name}: {said}' if said else name} ({Path(frame.filename).name}, line {frame.lineno})"
