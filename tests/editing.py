"""Changing lists, to see what is said of them."""

from collections.abc import Callable
from pathlib import Path


def edit(path: Path, change: Callable[[str], str]) -> None:
    """Replace a file's text, line ends as they are."""
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
