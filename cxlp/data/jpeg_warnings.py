"""Warnings of libjpeg about damaged JPEGs that decode nevertheless, with missing or wrong pixels.

libjpeg writes its warnings to the process's standard error, without the name of a file.
"""

import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryFile
from typing import BinaryIO, TextIO

import cv2
import numpy as np

_WARNING = re.compile(rb"^(?:Corrupt JPEG data: |Premature end of JPEG|Invalid |Inconsistent ).*\n?", re.MULTILINE)


def decode_all(path: Path) -> None:
    """Decode all the data of a JPEG with libjpeg, at an eighth of its size; ignore other files."""
    data = np.fromfile(path, np.uint8) if path.is_file() else np.zeros(0, np.uint8)
    if data[:2].tobytes() == b"\xff\xd8":
        cv2.imdecode(data, cv2.IMREAD_REDUCED_GRAYSCALE_8)


class Captured:
    """Captured standard error: libjpeg's warnings are collected, all other text is passed on.

    Attributes:
        stream: The original standard error, for progress bars.
    """

    def __init__(self, file: BinaryIO, stream: TextIO) -> None:
        self._file, self._read, self.stream = file, 0, stream

    def take(self) -> list[str]:
        """Return the warnings since the last call, one per entry."""
        self._file.seek(self._read)
        text = self._file.read()
        self._read += len(text)
        if rest := _WARNING.sub(b"", text):
            self.stream.write(rest.decode(errors="replace"))
            self.stream.flush()
        return [line.decode(errors="replace").strip() for line in _WARNING.findall(text)]


@contextmanager
def captured_warnings() -> Iterator[Captured]:
    """Capture the standard error of all threads of the process."""
    if sys.stderr is None:  # closed, as by `2>&-`
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
        sys.stderr = os.fdopen(2, "w", closefd=False)
    sys.stderr.flush()
    with TemporaryFile() as file, os.fdopen(os.dup(2), "w") as stream:
        os.dup2(file.fileno(), 2)
        captured = Captured(file, stream)
        try:
            yield captured
        finally:
            sys.stderr.flush()
            os.dup2(stream.fileno(), 2)
            captured.take()
