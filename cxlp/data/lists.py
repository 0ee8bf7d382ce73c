"""Reading of official lists: lines, boxes, and checks of totals."""

from collections.abc import Callable, Sequence
from math import isfinite
from pathlib import Path
from typing import TypeVar

from cxlp.data.dataset import Content, Sample, Split
from cxlp.data.decode import Box
from cxlp.utils.errors import CxlpError

Key = TypeVar("Key")
Value = TypeVar("Value")


def read_lines(path: Path) -> list[tuple[int, str]]:
    """Read the lines of a text file.

    Args:
        path: A text file in UTF-8, with or without carriage returns, a byte-order mark, and a final newline.

    Returns:
        The lines that are not blank, stripped of surrounding whitespace, and their numbers from 1.

    Raises:
        CxlpError: If the file does not exist, or is not text.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError as error:
        raise CxlpError(f"list not found: {path}") from error
    except UnicodeDecodeError as error:
        raise CxlpError(f"{path} is not a text in UTF-8: {error}") from error
    return [(number, line.strip()) for number, line in enumerate(text.split("\n"), 1) if line.strip()]


def read_table(path: Path, expected: str, parse: Callable[[str], tuple[Key, Value]]) -> dict[Key, Value]:
    """Read a text file with one line per key into a dictionary.

    Args:
        path: A text file.
        expected: Description of a line's format, for errors.
        parse: Returns key and value of a line, or raises ``ValueError`` or ``KeyError`` if its format is wrong.

    Raises:
        CxlpError: If the file does not exist or is not text, the format of a line is wrong, or a key is repeated; the
            error names the line.
    """
    table: dict[Key, Value] = {}
    for number, line in read_lines(path):
        try:
            key, value = parse(line)
        except (ValueError, KeyError) as error:
            raise CxlpError(f"{path}, line {number}: expected {expected}, got {line!r}") from error
        if key in table:
            raise CxlpError(f"{path}, line {number}: a second line for {key}: keep one")
        table[key] = value
    return table


def as_box(values: Sequence[str], where: str) -> Box:
    """Parse a box ``x y width height``.

    Args:
        values: Four numbers as text.
        where: File and line, for the error.

    Raises:
        CxlpError: If they are not a box.
    """
    try:
        x, y, w, h = (float(v) for v in values)
        if not all(map(isfinite, (x, y, w, h))) or w <= 0 or h <= 0:
            raise ValueError("not a box")
    except ValueError as error:
        raise CxlpError(f"{where}: expected 'x y width height', got {' '.join(values)!r}") from error
    return x, y, w, h


class TotalsError(CxlpError):
    """Raised if a release does not have the official numbers of images.

    Attributes:
        content: The content that was read nevertheless: class names, and the samples by split.
    """

    def __init__(self, message: str, content: Content) -> None:
        super().__init__(message)
        self.content = content


def check_totals(
    folder: Path,
    classes: Sequence[str],
    samples: dict[Split, list[Sample]],
    official: dict[Split, int],
    full: bool,
) -> None:
    """Check the numbers of images against the official ones.

    Subsets are allowed, for experiments and tests. But if a release has the official number of images in some split, or
    is known to be complete, all numbers must be the official ones.

    Args:
        folder: Folder of the data set, for the error.
        classes: Class names.
        samples: Samples by split.
        official: Official number of images by split.
        full: Whether the release is known to be complete.

    Raises:
        TotalsError: If numbers differ; the error names them.
    """
    found = {split: len(samples.get(split, [])) for split in official}
    if found != official and (full or any(found[split] == total for split, total in official.items())):
        have, should = (" + ".join(str(total) for total in totals.values()) for totals in (found, official))
        message = f"{folder}: {have} images, officially {should} ({' + '.join(official)})"
        raise TotalsError(message, (tuple(classes), samples))


def widened(box: Box, margin: float) -> Box:
    """Return a box that is enlarged on each side by ``margin`` times its width and height."""
    x, y, w, h = box
    return x - margin * w, y - margin * h, w * (1 + 2 * margin), h * (1 + 2 * margin)


def check_margin(margin: float) -> None:
    """Check that a margin leaves a box of positive size."""
    if not margin > -0.5:
        raise CxlpError(f"data.bbox_margin is {margin}: it must be greater than -0.5 (0: the box itself)")
