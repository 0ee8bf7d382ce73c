"""What a process prints, kept in a file: as a terminal would show it, without bars and control characters."""

import os
import re
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any, TextIO

from cxlp.utils.progress import write_above

#: Colours, movements of the cursor, links.
_CONTROL = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)|[@-Z\\-_])|[\x00-\x08\x0b-\x1f\x7f]")
_PRESENT: list["Transcript"] = []


class Transcript:
    """Keeps whole lines, in memory until it is known where they belong, then in a file, line by line."""

    def __init__(self) -> None:
        self._waiting: list[str] | None = []
        self._file: TextIO | None = None

    def open(self, path: Path, title: str) -> None:
        """Append what was said so far, and whatever will be, to a file."""
        self.close()
        said = "".join(self._waiting or ())
        self._waiting = None
        try:
            self._file = path.open("a", encoding="utf-8", errors="backslashreplace")
            self._write(f"# {datetime.now():%Y-%m-%d %H:%M:%S} {title}\n{said}")
        except OSError as error:
            self._fail(error)

    def forget(self) -> None:
        """Keep nothing, neither of what was said so far nor from now on."""
        self.close()
        self._waiting = None

    def add(self, text: str) -> None:
        """Take in whole lines."""
        lines = (_shown(line) for line in text.removesuffix("\n").split("\n"))
        kept = "".join(f"{line}\n" for line in lines if line is not None)
        if self._waiting is not None:
            self._waiting.append(kept)
        elif self._file is not None:
            try:
                self._write(kept)
            except OSError as error:
                self._fail(error)

    def close(self) -> None:
        """Close the file."""
        file, self._file = self._file, None
        if file is not None:
            file.close()

    def _write(self, text: str) -> None:
        assert self._file is not None
        self._file.write(text)
        self._file.flush()

    def _fail(self, error: OSError) -> None:
        """Tell once why there is no file, or no more of it: a run does not stop for that."""
        file, self._file = self._file, None
        stream = getattr(sys.stderr, "recorded", sys.stderr)
        name = "log.txt" if file is None else file.name
        write_above(stream, f"warning: {name} cannot be written: {error.strerror}\n")


def _shown(line: str) -> str | None:
    """What a terminal shows in the end of a line; ``None``: nothing, although there was something."""
    kept = _CONTROL.sub("", line.rstrip("\r").rpartition("\r")[2]).rstrip()
    return None if line and not kept else kept


class _Recorded:
    """A stream whose lines are recorded, and are written above the bar; a line goes on when it is whole.

    Args:
        stream: What it stands for.
        transcript: Takes the lines.
    """

    def __init__(self, stream: TextIO, transcript: Transcript) -> None:
        self.recorded = stream
        self._transcript, self._begun, self._told = transcript, "", 0

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401 (whatever streams have)
        return getattr(self.recorded, name)

    def write(self, text: str) -> int:
        """Take in text; returns its length."""
        self._begun += text
        whole, found, rest = self._begun.rpartition("\n")
        if found:
            told = self._told
            self._begun, self._told = rest, 0  # before a pipe is found to be closed
            self._transcript.add(f"{whole}\n")
            write_above(self.recorded, f"{whole}\n"[told:])
        elif "\r" in text:  # a bar of somebody else's, which Python's own streams write at once, too
            self.flush()
        return len(text)

    def writelines(self, lines: Any) -> None:  # noqa: ANN401 (as of any stream)
        """Take in several texts."""
        for line in lines:
            self.write(line)

    def end(self) -> None:
        """Write and record what there is of a line."""
        self.flush()
        begun, self._begun, self._told = self._begun, "", 0
        if begun:
            self._transcript.add(begun)

    def flush(self) -> None:
        """Write what there is of a line, such as a prompt."""
        if self._told < len(self._begun):
            self.recorded.write(self._begun[self._told :])
            # What the line's beginning was written over is told, and is never recorded.
            self._begun = self._begun[self._begun.rstrip("\r").rfind("\r") + 1 :]
            self._told = len(self._begun)
        self.recorded.flush()


@contextmanager
def recording() -> Iterator[Transcript]:
    """Record what is printed inside a ``with``, an exception that leaves it included.

    Standard output and standard error are replaced, and recorded also where there is none, as after ``>&-``. What
    libraries in C write, past Python, is not recorded.
    """
    transcript = Transcript()
    streams = sys.stdout, sys.stderr
    with Path(os.devnull).open("w", encoding="utf-8") as nowhere:
        recorded: Any = [_Recorded(nowhere if stream is None else stream, transcript) for stream in streams]
        sys.stdout, sys.stderr = recorded
        _PRESENT.append(transcript)
        try:
            yield transcript
        except BaseException as error:
            transcript.add("".join(traceback.format_exception(error)))
            raise
        finally:
            _PRESENT.remove(transcript)
            sys.stdout, sys.stderr = streams
            try:
                for stream in recorded:
                    stream.end()
            finally:
                transcript.close()


def keep(path: Path, title: str) -> None:
    """Append what is recorded, so far and from now on, to a file; where nothing is recorded, nothing happens.

    Args:
        path: The file.
        title: The first line says this, and the time.
    """
    if _PRESENT:
        _PRESENT[-1].open(path, title)


def forget() -> None:
    """Keep nothing of what is recorded, neither so far nor from now on."""
    if _PRESENT:
        _PRESENT[-1].forget()
