"""Reading the official lists: lines, boxes, totals."""

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
    """Read a list.

    Args:
        path: A text file; neither carriage returns nor a byte-order mark nor a missing last newline matter.

    Returns:
        The lines that are not blank, without the blanks around them, and their numbers from 1.

    Raises:
        CxlpError: If there is no such file, or it is no text.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError as error:
        raise CxlpError(f"list not found: {path}") from error
    except UnicodeDecodeError as error:
        raise CxlpError(f"{path} is no text: {error}") from error
    return [(number, line.strip()) for number, line in enumerate(text.split("\n"), 1) if line.strip()]


def read_table(path: Path, expected: str, parse: Callable[[str], tuple[Key, Value]]) -> dict[Key, Value]:
    """Read a list with one line for each of some keys.

    Args:
        path: A text file.
        expected: What a line looks like, for errors.
        parse: Makes key and value of a line; a ``ValueError`` or ``KeyError`` says that it has another form.

    Raises:
        CxlpError: If there is no such file, or it is no text; names a line of another form, and a second one for a key.
    """
    table: dict[Key, Value] = {}
    for number, line in read_lines(path):
        try:
            key, value = parse(line)
        except (ValueError, KeyError) as error:
            raise CxlpError(f"{path}, line {number}: expected {expected}, got {line!r}") from error
        if key in table:
            raise CxlpError(f"{path}, line {number}: a second line for {key}")
        table[key] = value
    return table


def as_box(values: Sequence[str], where: str) -> Box:
    """Read ``x y width height``.

    Args:
        values: Four numbers.
        where: What stands there, for the error.

    Raises:
        CxlpError: If they are no box.
    """
    try:
        x, y, w, h = (float(v) for v in values)
        if not all(map(isfinite, (x, y, w, h))) or w <= 0 or h <= 0:
            raise ValueError("no box")
    except ValueError as error:
        raise CxlpError(f"{where}: expected 'x y width height', got {' '.join(values)!r}") from error
    return x, y, w, h


class TotalsError(CxlpError):
    """A release that should have the official numbers of images has others.

    Attributes:
        content: What was read nevertheless: class names, and the samples by split.
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
    """Compare the numbers of images with the official ones.

    Releases of fewer images are fine: for trying things out, or in tests. One that has the official
    number in some split, or is known to be full, must have them all.

    Args:
        folder: The data set's, for the error.
        classes: Names.
        samples: By split.
        official: Totals by split.
        full: Whether the release is known to be the full one.

    Raises:
        TotalsError: Names the totals that differ.
    """
    found = {split: len(samples.get(split, [])) for split in official}
    if found != official and (full or any(found[split] == total for split, total in official.items())):
        have, should = (" + ".join(str(total) for total in totals.values()) for totals in (found, official))
        message = f"{folder}: {have} images, officially {should} ({' + '.join(official)})"
        raise TotalsError(message, (tuple(classes), samples))


def widened(box: Box, margin: float) -> Box:
    """A box with more of its surroundings: ``margin`` times its width and height on each side."""
    x, y, w, h = box
    return x - margin * w, y - margin * h, w * (1 + 2 * margin), h * (1 + 2 * margin)


def check_margin(margin: float) -> None:
    """Refuse a margin that would leave nothing of a box."""
    if not margin > -0.5:
        raise CxlpError(f"data.bbox_margin is {margin}: it must be greater than -0.5 (0: the box itself)")
