"""Progress bars in terminals, and lines in pipes."""

import io
import itertools
import re
import sys
import time
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
from tqdm import tqdm

from cxlp.utils import progress
from cxlp.utils.program import in_notebook
from cxlp.utils.progress import LineBar, TerminalBar, bar, duration, say, track


class Terminal(io.StringIO):
    """A stream that claims to be a terminal."""

    def isatty(self) -> bool:
        return True


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[float]]:
    """The time, in seconds."""
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    yield now


def test_in_a_pipe_progress_is_lines_at_growing_intervals(clock: list[float]) -> None:
    stream, times = io.StringIO(), []
    with bar("Pooling", 10_000, to=stream) as shown:
        assert isinstance(shown, LineBar)
        for _ in range(10_000):
            before = stream.tell()
            clock[0] += 1
            shown.update()
            if stream.tell() > before:
                times.append(clock[0] - 100)
    text = stream.getvalue()
    assert text.startswith("Pooling: 15 of 10,000 images in 15.0 s, 2:46:25 to go\n")
    assert not re.search(r"[\r\x1b]", text) and text.endswith("\n")
    assert times[:4] == [15, 30, 45, 60] and len(times) < 30
    assert all(later - earlier >= 15 for earlier, later in itertools.pairwise(times))


def test_short_work_prints_no_lines(clock: list[float]) -> None:
    stream = io.StringIO()
    with bar("Reading", 5, to=stream) as shown:
        for _ in range(5):
            clock[0] += 2
            shown.update()
    assert stream.getvalue() == ""


def test_lines_without_a_total_in_bytes_and_with_figures(clock: list[float]) -> None:
    stream = io.StringIO()
    with bar("a.tar", None, "B", start=1_000_000, to=stream) as shown:
        clock[0] += 20
        shown.update(2_000_000)
        clock[0] += 20
        shown.note("loss 0.5")
        shown.update(1_000_000)
    assert stream.getvalue().splitlines() == ["a.tar: 3.00MB in 20.0 s", "a.tar: 4.00MB in 40.0 s; loss 0.5"]


def test_a_terminal_shows_a_bar_and_keeps_lines_above_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "DELAY", 0.0)
    stream = Terminal()
    with bar("Pooling", 4, to=stream) as shown:
        assert isinstance(shown, TerminalBar)
        shown.update(2)
        say("epoch 1", stream)
    text = stream.getvalue()
    assert "Pooling:  50%" in text
    at = text.index("epoch 1\n")
    cleared = text[:at].rpartition("\r")[0].rpartition("\r")[2]
    assert cleared.strip() == "" and len(cleared) > 10, "the bar is erased before the line"
    assert "Pooling:  50%" in text[at:], "and drawn again after it"
    assert text.rpartition("\n")[2].rstrip(" ").endswith("\r"), "at the end it is erased"


def test_short_work_draws_no_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = Terminal()
    with bar("Pooling", 4, to=stream) as shown:
        shown.update(2)
        say("epoch 1", stream)
    assert stream.getvalue() == "epoch 1\n"


def test_a_notebook_has_widget_bars(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    class Widget(tqdm):  # type: ignore[misc] # (it has no types)
        made: ClassVar[list[Any]] = []

        def __init__(self, **options: Any) -> None:
            super().__init__(**options)
            self.made.append(options)

    assert not in_notebook()
    monkeypatch.setattr(progress, "DELAY", 0)
    shell = SimpleNamespace(kernel=object())
    monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(get_ipython=lambda: shell))
    assert in_notebook()
    with progress.bar("Pooling", 10) as shown:  # without ipywidgets: text, although stderr is not a terminal
        shown.update(4)
        shown._bar.refresh()  # type: ignore[attr-defined]
    assert "Pooling:  40%" in capsys.readouterr().err and not Widget.made
    monkeypatch.setattr(progress, "find_spec", lambda name: name)
    monkeypatch.setitem(sys.modules, "tqdm.notebook", SimpleNamespace(tqdm=Widget))
    with progress.bar("Pooling", 10) as shown:
        shown.update(4)
    assert [options["total"] for options in Widget.made] == [10]
    shell.kernel = None  # IPython in a terminal
    assert not in_notebook()


def test_hidden_bars_write_nothing() -> None:
    stream = Terminal()
    assert type(bar("Pooling", 4, to=stream, hidden=True)) is progress.Bar
    assert list(track(range(3), "Pooling", hidden=True)) == [0, 1, 2] and stream.getvalue() == ""


def test_a_closed_pipe_raises_no_error() -> None:
    class Closed(io.StringIO):
        def write(self, text: str) -> int:
            raise BrokenPipeError

    say("epoch 1", Closed())


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.04, "0.0 s"), (4.21, "4.2 s"), (59.96, "1:00"), (65, "1:05"), (7200, "2:00:00")]
)
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text
