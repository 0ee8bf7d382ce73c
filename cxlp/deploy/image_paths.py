"""Image files that paths, folders and patterns on a command line refer to."""

import glob
import io
import os
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

from cxlp.data.listing import is_picture
from cxlp.utils.errors import CxlpError


def image_paths(arguments: Iterable[str], lines: Iterable[str]) -> Iterator[str]:
    """Iterate lazily over the image files that arguments refer to, in order.

    Args:
        arguments: Files; folders, which are searched recursively in the order of names for images (see
            :func:`~cxlp.data.listing.is_picture`), without hidden files and links to folders; patterns such as
            ``shots/**/*.jpg``, for shells that do not expand them; or ``-`` for the paths in ``lines``.
        lines: Files and folders, one per line.

    Yields:
        Paths. A path that does not exist, a pattern without matches and a folder without images are yielded as they
        are, so that opening them raises an error.
    """
    for argument in arguments:
        if argument == "-":
            for line in lines:
                if name := line.rstrip("\r\n"):
                    yield from _files(name)
        elif glob.has_magic(argument) and not os.path.lexists(argument):
            matches = sorted(glob.iglob(argument, recursive=True))  # noqa: PTH207 (keeps paths relative)
            for match in matches or [argument]:
                yield from _files(match)
        else:
            yield from _files(argument)


def list_images(*paths: str | os.PathLike[str]) -> list[str]:
    """List the image files in folders and patterns, in the order in which a Predictor reads them."""
    return list(image_paths([os.fspath(path) for path in paths], ()))


def lines_of_stdin() -> Iterator[str]:
    """Iterate over the lines of the standard input as they arrive.

    Raises:
        CxlpError: If the standard input is closed or cannot be read.
    """
    if sys.stdin is None:
        raise CxlpError("-: paths are read from the standard input, but it is closed: give paths as arguments")
    if isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(encoding="utf-8", errors="surrogateescape")  # file names are bytes
    try:
        for number, line in enumerate(sys.stdin):
            yield line if number else line.removeprefix("\ufeff")  # byte order mark, written by Windows
    except OSError as error:
        raise CxlpError(f"-: the standard input cannot be read: {error.strerror}") from error


def _files(path: str) -> Iterator[str]:
    """Iterate over the images in a folder; yield the path itself for a file or a folder without images."""
    if not os.path.isdir(path):  # noqa: PTH112 (pathlib raises for invalid paths)
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
    except OSError:  # yield the folder, so that opening it raises the error
        yield folder
        return
    for entry in entries:
        if entry.name.startswith("."):
            continue
        if entry.is_dir(follow_symlinks=False):
            yield from _walk(entry.path)
        elif is_picture(Path(entry.path)):
            yield entry.path  # includes broken links, which are reported as missing
