"""Edits of lists, to test error messages, and archives of data sets in their published form."""

import tarfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from cxlp.utils.fetching import Remote


def edit(path: Path, change: Callable[[str], str]) -> None:
    """Replace a file's text without changing its line ends."""
    path.write_bytes(change(path.read_bytes().decode()).encode())


def edit_line(path: Path, number: int, change: Callable[[str], str]) -> None:
    """Replace a line, counted from 1."""

    def changed(text: str) -> str:
        lines = text.splitlines(keepends=True)
        lines[number - 1] = change(lines[number - 1])
        return "".join(lines)

    edit(path, changed)


def windows_ends(text: str) -> str:
    """Give a list a byte-order mark, CRLF, and a blank line at its end."""
    return "\ufeff" + "\r\n".join(text.splitlines()) + "\r\n\r\n"


def pack(archive: Path, members: dict[str, Path]) -> None:
    """Create a tar file with files and folders under the given names."""
    archive.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(archive, "w:gz" if archive.suffix == ".tgz" else "w") as tar:
        for name, path in members.items():
            tar.add(path, name)


def unverified(files: Sequence[Remote]) -> tuple[Remote, ...]:
    """Return the files without checksums and sizes, for small stand-ins."""
    return tuple(replace(file, checksum=None, size="small") for file in files)
