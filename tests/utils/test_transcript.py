"""The content of log.txt."""

import errno
import os
import sys
import warnings
from pathlib import Path

import pytest
from rich.console import Console
from tqdm import tqdm

from cxlp.utils.progress import bar, say
from cxlp.utils.transcript import forget, keep, recording


def lines(file: Path) -> list[str]:
    """Return the lines after the title."""
    return file.read_text(encoding="utf-8").split("\n")[1:-1]


def test_all_output_is_recorded_including_output_before_the_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, streams = tmp_path / "log.txt", (sys.stdout, sys.stderr)
    with recording():
        say("before")
        say("to stderr", sys.stderr)
        keep(file, "train.py --config demo.yaml")
        sys.stdout.write("half")
        sys.stdout.flush()
        say(" a line")
        sys.stderr.write(warnings.formatwarning("odd", UserWarning, "a.py", 3, "x"))
        sys.stdout.write("no end")
    assert (sys.stdout, sys.stderr) == streams
    title = file.read_text().splitlines()[0]
    assert title.startswith("# 2") and title.endswith(" train.py --config demo.yaml")
    found = lines(file)
    assert found[:3] == ["before", "to stderr", "half a line"] and "a.py:3: UserWarning: odd" in found[3]
    said = capsys.readouterr()
    assert said.out == "before\nhalf a line\nno end" and said.err.startswith("to stderr\na.py:3: ")
    assert found[-1] == "no end"


def test_bars_and_colours_are_not_recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "log.txt"
    with recording():
        keep(file, "")
        monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
        with bar("Pooling", 3) as shown:
            shown.update(3)
        for _ in tqdm(range(3), desc="a user's own", file=sys.stderr):
            say("within")
        Console(force_terminal=True, file=sys.stdout).print("[bold red]red[/] and \N{GREEK SMALL LETTER ALPHA}")
        say("\x1b]8;;http://a\x1b\\link\x1b]8;;\x1b\\\x07 after")
    text = file.read_text(encoding="utf-8")
    assert "Pooling" not in text and not any(ord(letter) < 32 and letter != "\n" for letter in text)
    found = [line for line in lines(file) if "own" not in line]
    assert found == ["within", "within", "within", "red and \N{GREEK SMALL LETTER ALPHA}", "link after"]
    assert text.count("a user's own") == 1, "only its last state"


def test_bars_of_other_libraries_are_shown_at_once_and_not_buffered(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with recording():
        keep(tmp_path / "log.txt", "")
        sys.stdout.write("epoch")
        for step in range(1000):
            sys.stdout.write(f"\rstep {step}")
        assert capsys.readouterr().out.endswith("\rstep 998\rstep 999")
        assert len(vars(sys.stdout)["_begun"]) < 20  # otherwise each update takes longer than the one before
        for step in range(1000, 1003):
            sys.stdout.write(f"step {step}\r")
        sys.stdout.write("\n")
    assert capsys.readouterr().out == "step 1000\rstep 1001\rstep 1002\r\n"
    assert lines(tmp_path / "log.txt") == ["step 1002"]


def test_a_failure_is_recorded_and_a_second_session_is_appended(tmp_path: Path) -> None:
    file = tmp_path / "log.txt"
    with pytest.raises(ZeroDivisionError), recording():
        keep(file, "first")
        _ = 1 // 0
    found = lines(file)
    assert found[0] == "Traceback (most recent call last):" and found[-1].startswith("ZeroDivisionError: ")
    with recording():
        keep(file, "second")
        say("again")
    titles = [line for line in file.read_text().splitlines() if line.startswith("# ")]
    assert [title.rpartition(" ")[2] for title in titles] == ["first", "second"]
    assert lines(file)[-1] == "again"


def test_discarded_output_is_not_recorded(tmp_path: Path) -> None:
    file = tmp_path / "log.txt"
    keep(file, "nothing is recorded")
    assert not file.exists()
    with recording():
        keep(file, "")
        say("first")
        forget()
        file.unlink()
        say("second")
    assert not file.exists()


def test_two_runs_in_one_process_have_separate_logs(tmp_path: Path) -> None:
    with recording():
        say("for the first")
        keep(tmp_path / "a", "")
        say("more")
        keep(tmp_path / "b", "")
        say("for the second")
    assert lines(tmp_path / "a") == ["for the first", "more"] and lines(tmp_path / "b") == ["for the second"]


def test_a_full_disk_gives_one_warning_and_does_not_stop(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with recording() as transcript:
        keep(tmp_path / "log.txt", "")

        def full(text: str) -> None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        transcript._write = full  # type: ignore[method-assign]
        say("one")
        say("two")
        keep(tmp_path / "missing" / "log.txt", "")
    said = capsys.readouterr()
    assert said.out == "one\ntwo\n"
    first, second = said.err.splitlines()
    assert first == f"warning: {tmp_path}/log.txt cannot be written: No space left on device"
    assert second == "warning: log.txt cannot be written: No such file or directory"


def test_without_standard_streams_the_log_has_all_of_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", None)  # as after >&-
    monkeypatch.setattr(sys, "stderr", None)
    say("nobody listens")
    with recording():
        keep(tmp_path / "log.txt", "a run")
        sys.stdout.write("printed\n")
        say("said")
        with bar("Pooling", 3) as progress:
            progress.update()
    assert sys.stdout is None and sys.stderr is None
    assert lines(tmp_path / "log.txt") == ["printed", "said"]
