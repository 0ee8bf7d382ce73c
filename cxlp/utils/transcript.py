"""Log file of a process's output, without progress bars and control characters."""

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

#: Control sequences: colours, cursor movements, links.
_CONTROL = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)|[@-Z\\-_])|[\x00-\x08\x0b-\x1f\x7f]")
_PRESENT: list["Transcript"] = []


class Transcript:
    """Recorder of whole lines, in memory until a file is opened, then line by line in the file."""

    def __init__(self) -> None:
        self._waiting: list[str] | None = []
        self._file: TextIO | None = None

    def open(self, path: Path, title: str) -> None:
        """Append all lines recorded so far, and all later lines, to a file."""
        self.close()
        said = "".join(self._waiting or ())
        self._waiting = None
        try:
            self._file = path.open("a", encoding="utf-8", errors="backslashreplace")
            self._write(f"# {datetime.now():%Y-%m-%d %H:%M:%S} {title}\n{said}")
        except OSError as error:
            self._fail(error)

    def forget(self) -> None:
        """Discard the lines recorded so far, and stop recording."""
        self.close()
        self._waiting = None

    def add(self, text: str) -> None:
        """Record whole lines."""
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
        """Warn once that the file cannot be written, and continue without it."""
        file, self._file = self._file, None
        stream = getattr(sys.stderr, "recorded", sys.stderr)
        name = "log.txt" if file is None else file.name
        write_above(stream, f"warning: {name} cannot be written: {error.strerror}\n")


def _shown(line: str) -> str | None:
    """Return a line as a terminal finally shows it, or ``None`` if only control characters were written."""
    kept = _CONTROL.sub("", line.rstrip("\r").rpartition("\r")[2]).rstrip()
    return None if line and not kept else kept


class _Recorded:
    """Stream whose complete lines are recorded and written above progress bars.

    Args:
        stream: The original stream.
        transcript: The recorder.
    """

    def __init__(self, stream: TextIO, transcript: Transcript) -> None:
        self.recorded = stream
        self._transcript, self._begun, self._told = transcript, "", 0

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401 (any attribute of a stream)
        return getattr(self.recorded, name)

    def write(self, text: str) -> int:
        """Write text and return its length."""
        self._begun += text
        whole, found, rest = self._begun.rpartition("\n")
        if found:
            told = self._told
            self._begun, self._told = rest, 0  # before writing, which fails for a closed pipe
            self._transcript.add(f"{whole}\n")
            write_above(self.recorded, f"{whole}\n"[told:])
        elif "\r" in text:  # a progress bar of another library, written at once as Python's own streams do
            self.flush()
        return len(text)

    def writelines(self, lines: Any) -> None:  # noqa: ANN401 (as of any stream)
        """Write several texts."""
        for line in lines:
            self.write(line)

    def end(self) -> None:
        """Write and record an incomplete last line."""
        self.flush()
        begun, self._begun, self._told = self._begun, "", 0
        if begun:
            self._transcript.add(begun)

    def flush(self) -> None:
        """Write an incomplete line, such as a prompt."""
        if self._told < len(self._begun):
            self.recorded.write(self._begun[self._told :])
            # Text before a carriage return is overwritten in the terminal. It is written, but not recorded.
            self._begun = self._begun[self._begun.rstrip("\r").rfind("\r") + 1 :]
            self._told = len(self._begun)
        self.recorded.flush()


@contextmanager
def recording() -> Iterator[Transcript]:
    """Context that records all printed output, and the traceback of an exception that leaves the context.

    Standard output and standard error are replaced. They are recorded even if they are closed, as after ``>&-``. Output
    of C libraries, which bypasses Python, is not recorded.
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
    """Append the recorded output, so far and from now on, to a file; do nothing outside :func:`recording`.

    Args:
        path: Path of the file.
        title: Title for the first line, which also contains the time.
    """
    if _PRESENT:
        _PRESENT[-1].open(path, title)


def forget() -> None:
    """Discard the recorded output so far, and stop recording."""
    if _PRESENT:
        _PRESENT[-1].forget()
