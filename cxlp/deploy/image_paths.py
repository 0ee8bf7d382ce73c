"""From what is said on a command line to the image files that it means."""

import glob
import io
import os
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

from cxlp.data.listing import is_picture
from cxlp.utils.errors import CxlpError


def image_paths(arguments: Iterable[str], lines: Iterable[str]) -> Iterator[str]:
    """Go through the images that arguments name, one by one and in order: no list of all of them is made.

    Args:
        arguments: Files; folders, which are gone through in the order of names, however deep, for pictures (by
            :func:`~cxlp.data.listing.is_picture`; nothing hidden, no links to folders); patterns such as
            ``shots/**/*.jpg``, for shells that do not expand them; ``-``: what ``lines`` name.
        lines: Files and folders, one a line.

    Yields:
        Paths. What does not exist, a pattern that nothing matches, and a folder without images stand for
        themselves, so that whoever opens them finds out.
    """
    for argument in arguments:
        if argument == "-":
            for line in lines:
                if name := line.rstrip("\r\n"):
                    yield from _files(name)
        elif glob.has_magic(argument) and not os.path.lexists(argument):
            matches = sorted(glob.iglob(argument, recursive=True))  # noqa: PTH207 (absolute or relative, as it is given)
            for match in matches or [argument]:
                yield from _files(match)
        else:
            yield from _files(argument)


def list_images(*paths: str | os.PathLike[str]) -> list[str]:
    """List the images that files, folders and patterns name, in the order in which a Predictor takes them."""
    return list(image_paths([os.fspath(path) for path in paths], ()))


def lines_of_stdin() -> Iterator[str]:
    """Read the lines of the standard input as they come.

    Raises:
        CxlpError: If there is none, as where a shell has closed it.
    """
    if sys.stdin is None:
        raise CxlpError("-: paths are read from the standard input, but it is closed")
    if isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(encoding="utf-8", errors="surrogateescape")  # names of files are bytes
    try:
        for number, line in enumerate(sys.stdin):
            yield line if number else line.removeprefix("\ufeff")  # a byte-order mark, of Windows
    except OSError as error:
        raise CxlpError(f"-: the standard input cannot be read: {error.strerror}") from error


def _files(path: str) -> Iterator[str]:
    """The file itself, or the images in a folder; the folder itself where there are none."""
    if not os.path.isdir(path):  # noqa: PTH112 (pathlib's raises for what cannot be a path)
        yield path
        return
    images = _walk(path)
    first = next(images, None)
    if first is None:
        yield path
    else:
        yield first
        yield from images


def _walk(folder: str) -> Iterator[str]:
    try:
        with os.scandir(folder) as found:
            entries = sorted(found, key=lambda entry: entry.name)
    except OSError:  # for whoever opens it to say why
        yield folder
        return
    for entry in entries:
        if entry.name.startswith("."):
            continue
        if entry.is_dir(follow_symlinks=False):
            yield from _walk(entry.path)
        elif is_picture(Path(entry.path)):
            yield entry.path  # also a link to nothing: it is missing
