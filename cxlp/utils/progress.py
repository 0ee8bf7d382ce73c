"""How far a piece of work has come: a bar in a terminal or a notebook, a whole line now and then elsewhere."""

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

#: Seconds until a bar is drawn: what is done sooner needs none.
DELAY = 0.5
#: Seconds until the first line in a pipe, and the least between two of them.
PAUSE = 15.0
#: tqdm's own, whose rate never turns into seconds per item.
_FORMAT = "{l_bar}{bar}| {n_fmt}/{total_fmt} [{elapsed}<{remaining}, {rate_noinv_fmt}{postfix}]"
_OPEN_FORMAT = "{desc}: {n_fmt}{unit} [{elapsed}, {rate_noinv_fmt}{postfix}]"
#: The bars that are drawn in this process.
_DRAWN: list["TerminalBar"] = []


class Bar:
    """Progress that nobody sees; the base of those that are shown.

    Args:
        what: What is done, such as ``Pooling``.
        total: How many there are; ``None``: it is not known.
        unit: What is counted, such as ``images``; ``B``: bytes.
        start: How many were done before.
        to: Where it is shown.
    """

    def __init__(self, what: str, total: int | None, unit: str, start: int, to: TextIO) -> None:
        self.to = to
        self.what, self.total, self.unit, self.done = what, total, unit, start

    def update(self, count: int = 1) -> None:
        """Count what was done."""
        self.done += count

    def note(self, text: str) -> None:
        """Put figures behind the bar."""

    def close(self) -> None:
        """Remove the bar; a second call changes nothing."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()


class TerminalBar(Bar):
    """A line at the bottom of the terminal, or a bar in a notebook's cell, which vanishes in the end."""

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
        """Count what was done, and draw the bar where a tenth of a second has passed."""
        super().update(count)
        self._bar.update(count)

    def note(self, text: str) -> None:
        """Put figures behind the bar."""
        self._bar.set_postfix_str(text, refresh=False)

    def close(self) -> None:
        """Remove the bar."""
        if self in _DRAWN:
            _DRAWN.remove(self)
            self._bar.close()

    @property
    def is_visible(self) -> bool:
        """Whether it was drawn already."""
        return bool(self._bar.last_print_t >= self._bar.start_t + DELAY)

    def hide(self) -> None:
        """Make room for other text."""
        if self.is_visible:
            self._bar.clear()

    def draw(self) -> None:
        """Draw the bar as it is."""
        if self.is_visible:
            self._bar.refresh()


class LineBar(Bar):
    """Whole lines, the further apart the longer it takes: each after a quarter more of the time, at first 15 s."""

    def __init__(self, what: str, total: int | None, unit: str, start: int, to: TextIO) -> None:
        super().__init__(what, total, unit, start, to)
        self._first, self._begin = start, time.monotonic()
        self._due, self._note = self._begin + PAUSE, ""

    def update(self, count: int = 1) -> None:
        """Count what was done, and tell where it is time to."""
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
        """Have figures told with the next line."""
        self._note = text


def _drawing() -> Any:  # noqa: ANN401 (tqdm has no types)
    """What draws bars: in a notebook a widget, if its package is there."""
    if in_notebook() and find_spec("ipywidgets") is not None:
        from tqdm.notebook import tqdm as widget

        return widget
    return tqdm


def is_watched(stream: TextIO | None) -> bool:
    """Whether what is written to a stream is seen at once: on a terminal, or in a notebook; ``None``: it is closed."""
    return in_notebook() or (stream is not None and stream.isatty())


def bar(
    what: str,
    total: int | None = None,
    unit: str = "images",
    start: int = 0,
    hidden: bool = False,
    to: TextIO | None = None,
) -> Bar:
    """Begin to show progress.

    Args:
        what: What is done, such as ``Pooling``.
        total: How many there are; ``None``: it is not known.
        unit: What is counted, such as ``images``; ``B``: bytes.
        start: How many were done before.
        hidden: Show nothing.
        to: Where it is shown; ``None``: on standard error.
    """
    to = to or sys.stderr
    if hidden or to is None:
        return Bar(what, total, unit, start, to)
    if not is_watched(to):
        return LineBar(what, total, unit, start, to)
    return TerminalBar(what, total, unit, start, getattr(to, "recorded", to))  # a bar is not recorded


def track(
    items: Iterable[T], what: str, total: int | None = None, unit: str = "images", hidden: bool = False
) -> Iterator[T]:
    """Go through items with a bar."""
    with bar(what, total, unit, hidden=hidden) as progress:
        for item in items:
            yield item
            progress.update()


def write_above(stream: TextIO, text: str) -> None:
    """Write whole lines to a stream, above the bar if there is one."""
    drawn = list(_DRAWN)
    for each in drawn:
        each.hide()
    stream.write(text)
    stream.flush()
    for each in drawn:
        each.draw()


def say(line: str, to: TextIO | None = None) -> None:
    """Print a line that stays, above the bar if there is one; at once, also where it goes to a pipe.

    Where the pipe's reader has gone, as in ``train.py | head``, it is left out: nothing ends for that.

    Args:
        line: What to say.
        to: Where; ``None``: standard output.
    """
    stream = sys.stdout if to is None else to
    if stream is None:  # closed, as by `>&-`
        return
    with suppress(BrokenPipeError):
        stream.write(f"{line}\n") if hasattr(stream, "recorded") else write_above(stream, f"{line}\n")


def duration(seconds: float) -> str:
    """Format a time for people: ``4.2 s``, ``1:05``, ``2:00:00``."""
    return f"{seconds:.1f} s" if seconds < 59.95 else str(tqdm.format_interval(round(seconds))).lstrip("0")


def _forget_bars() -> None:
    """Leave bars to the process that drew them: a fork knows of them, too."""
    _DRAWN.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_bars)
