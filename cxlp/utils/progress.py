"""Progress of long operations, as a bar in a terminal or notebook and as occasional lines elsewhere."""

import os
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from importlib.util import find_spec
from types import TracebackType
from typing import Any, Self, TextIO, TypeVar

from tqdm import tqdm

from cxlp.utils.program import in_notebook

T = TypeVar("T")

#: Seconds until a bar is drawn. Shorter operations show no bar.
DELAY = 0.5
#: Seconds until the first line in a pipe, and minimum time between two lines.
PAUSE = 15.0
#: tqdm's format, with a rate that is never shown as seconds per item.
_FORMAT = "{l_bar}{bar}| {n_fmt}/{total_fmt} [{elapsed}<{remaining}, {rate_noinv_fmt}{postfix}]"
_OPEN_FORMAT = "{desc}: {n_fmt}{unit} [{elapsed}, {rate_noinv_fmt}{postfix}]"
#: Bars of this process that are open.
_DRAWN: list["TerminalBar"] = []


class Bar:
    """Base class of progress bars, which shows nothing.

    Args:
        what: Name of the operation, such as ``Pooling``.
        total: Number of items; ``None`` if unknown.
        unit: Unit of items, such as ``images``; ``B`` for bytes.
        start: Number of items that are already done.
        to: Output stream.
    """

    def __init__(self, what: str, total: int | None, unit: str, start: int, to: TextIO) -> None:
        self.to = to
        self.what, self.total, self.unit, self.done = what, total, unit, start

    def update(self, count: int = 1) -> None:
        """Add to the number of items that are done."""
        self.done += count

    def note(self, text: str) -> None:
        """Show a text, such as metrics, after the bar."""

    def close(self) -> None:
        """Remove the bar. A second call does nothing."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()


class TerminalBar(Bar):
    """Bar in the last line of the terminal or in a notebook cell, which is removed at the end."""

    def __init__(self, what: str, total: int | None, unit: str, start: int, to: TextIO) -> None:
        super().__init__(what, total, unit, start, to)
        in_bytes = unit == "B"
        self._bar: Any = _drawing()(
            total=total,
            initial=start,
            desc=what,
            unit=unit if in_bytes else f" {unit}",
            unit_scale=in_bytes,
            bar_format=_FORMAT if total is not None else _OPEN_FORMAT,
            file=to,
            leave=False,
            delay=DELAY,
            dynamic_ncols=True,
        )
        _DRAWN.append(self)

    def update(self, count: int = 1) -> None:
        """Add to the number of items that are done, and redraw the bar at most every tenth of a second."""
        super().update(count)
        self._bar.update(count)

    def note(self, text: str) -> None:
        """Show a text, such as metrics, after the bar."""
        self._bar.set_postfix_str(text, refresh=False)

    def close(self) -> None:
        """Remove the bar."""
        if self in _DRAWN:
            _DRAWN.remove(self)
            self._bar.close()

    @property
    def is_visible(self) -> bool:
        """Whether the bar has been drawn."""
        return bool(self._bar.last_print_t >= self._bar.start_t + DELAY)

    def hide(self) -> None:
        """Clear the bar to make room for other text."""
        if self.is_visible:
            self._bar.clear()

    def draw(self) -> None:
        """Redraw the bar."""
        if self.is_visible:
            self._bar.refresh()


class LineBar(Bar):
    """Progress as lines, the first after 15 s, later ones each time the elapsed time grows by a quarter."""

    def __init__(self, what: str, total: int | None, unit: str, start: int, to: TextIO) -> None:
        super().__init__(what, total, unit, start, to)
        self._first, self._begin = start, time.monotonic()
        self._due, self._note = self._begin + PAUSE, ""

    def update(self, count: int = 1) -> None:
        """Add to the number of items that are done, and print a line if one is due."""
        super().update(count)
        now = time.monotonic()
        if now < self._due:
            return
        spent = now - self._begin
        self._due = self._begin + max(1.25 * spent, spent + PAUSE)
        amount = tqdm.format_sizeof if self.unit == "B" else "{:,}".format
        counts = amount(self.done) if self.total is None else f"{amount(self.done)} of {amount(self.total)}"
        said = f"{self.what}: {counts}{self.unit if self.unit == 'B' else f' {self.unit}'} in {duration(spent)}"
        if self.total and self.done > self._first:
            said += f", {duration(spent * (self.total - self.done) / (self.done - self._first))} to go"
        print(said + (f"; {self._note}" if self._note else ""), file=self.to, flush=True)

    def note(self, text: str) -> None:
        """Add a text, such as metrics, to the next line."""
        self._note = text


def _drawing() -> Any:  # noqa: ANN401 (tqdm has no types)
    """Return the tqdm class: the widget in a notebook with ipywidgets, otherwise the one for terminals."""
    if in_notebook() and find_spec("ipywidgets") is not None:
        from tqdm.notebook import tqdm as widget

        return widget
    return tqdm


def is_watched(stream: TextIO | None) -> bool:
    """Return whether a stream is a terminal or belongs to a notebook. ``None`` is a closed stream."""
    return in_notebook() or (stream is not None and stream.isatty())


def bar(
    what: str,
    total: int | None = None,
    unit: str = "images",
    start: int = 0,
    hidden: bool = False,
    to: TextIO | None = None,
) -> Bar:
    """Return a new progress bar that suits the output stream.

    Args:
        what: Name of the operation, such as ``Pooling``.
        total: Number of items; ``None`` if unknown.
        unit: Unit of items, such as ``images``; ``B`` for bytes.
        start: Number of items that are already done.
        hidden: Show nothing.
        to: Output stream; ``None``: standard error.
    """
    to = to or sys.stderr
    if hidden or to is None:
        return Bar(what, total, unit, start, to)
    if not is_watched(to):
        return LineBar(what, total, unit, start, to)
    return TerminalBar(what, total, unit, start, getattr(to, "recorded", to))  # bars are not recorded


def track(
    items: Iterable[T], what: str, total: int | None = None, unit: str = "images", hidden: bool = False
) -> Iterator[T]:
    """Iterate over items with a progress bar."""
    with bar(what, total, unit, hidden=hidden) as progress:
        for item in items:
            yield item
            progress.update()


def write_above(stream: TextIO, text: str) -> None:
    """Write whole lines to a stream, above any open bars."""
    drawn = list(_DRAWN)
    for each in drawn:
        each.hide()
    stream.write(text)
    stream.flush()
    for each in drawn:
        each.draw()


def say(line: str, to: TextIO | None = None) -> None:
    """Print a line above any open bars and flush the stream, also for a pipe.

    If the pipe is closed, as in ``train.py | head``, the line is dropped without an error.

    Args:
        line: The line, without newline.
        to: Output stream; ``None``: standard output.
    """
    stream = sys.stdout if to is None else to
    if stream is None:  # closed, as by `>&-`
        return
    with suppress(BrokenPipeError):
        stream.write(f"{line}\n") if hasattr(stream, "recorded") else write_above(stream, f"{line}\n")


def duration(seconds: float) -> str:
    """Format a duration: ``4.2 s``, ``1:05``, ``2:00:00``."""
    return f"{seconds:.1f} s" if seconds < 59.95 else str(tqdm.format_interval(round(seconds))).lstrip("0")


def _forget_bars() -> None:
    """Forget the parent's bars in a forked process, since only the parent draws them."""
    _DRAWN.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_bars)
