"""Checks of one image file: whether the loaders can decode it, and which conversions they make."""

import hashlib
from collections.abc import Sequence
from enum import Enum
from io import BytesIO
from pathlib import Path
from typing import NamedTuple

from PIL import Image, UnidentifiedImageError
from PIL.ImageFile import ImageFile

from cxlp.data.dataset import is_there
from cxlp.data.decode import Box, Pixels, decode, is_outside, with_image
from cxlp.data.jpeg_warnings import decode_all
from cxlp.data.metadata import orientation, stored_size


class Kind(Enum):
    """Kinds of findings in display order; those that stop a run come first.

    Attributes:
        what: Name of the kind.
        effect: Effect on a run.
        stops: Whether a finding of this kind stops every run.
    """

    LISTS = "lists", "a run stops and says so", True
    MISSING = "missing file", "a run stops and names it", True
    TRUNCATED = "truncated file", "a run stops and names it", True
    UNDECODABLE = "undecodable file", "a run stops and names it", True
    SHARED = "same image in two splits", "used in both: test results are too optimistic", False
    CONTRADICTED = "same image with different labels", "used with both: at least one label is wrong", False
    DUPLICATED = (
        "same image twice in a split",
        "used twice: held-out scores and the choice of C may be too optimistic",
        False,
    )
    REPEATED = "listed twice", "fitted or scored twice", False
    DAMAGED = "damaged JPEG", "decoded, but with missing or wrong pixels", False
    BOX_LIST = "boxes unreadable", "a run with --data.bbox true stops", False
    SINGLE = "class with one training image", "a run with model.frozen.c: auto or a held-out fraction stops", False
    NO_TEST = "class without test images", "left out of means over classes", False
    UNSPECIFIED = "no label specified", "ignored in training and test", False
    NO_BOX = "no box", "the whole image is used", False
    METADATA = "malformed metadata", "ignored: orientation and colour profile are unknown", False
    BOX_OUTSIDE = "box outside the image", "a run with --data.bbox true stops and names it", False
    BOX_CLIPPED = "box crosses the border", "clipped to the image", False
    MISNAMED = "format differs from suffix", "decoded by content", False
    TURNED = "rotated by EXIF", "rotated upright; with a box, used as stored", False
    COLOURS = "other than RGB", "converted to 8-bit RGB, alpha dropped", False

    def __init__(self, what: str, effect: str, stops: bool) -> None:
        self.what, self.effect, self.stops = what, effect, stops


class Finding(NamedTuple):
    """A finding in a data set.

    Attributes:
        kind: Kind of the finding.
        where: The file, or the class.
        detail: Details; may be empty.
    """

    kind: Kind
    where: str
    detail: str = ""


def inspect_image(path: Path, boxes: Sequence[Box] = ()) -> tuple[list[Finding], bytes | None]:
    """Decode a file like the loaders, and return its findings. No content of a file raises an error.

    Args:
        path: The file.
        boxes: Boxes of the samples of this file, ``x, y, w, h`` in pixels.

    Returns:
        The findings, and a digest of the pixels, or ``None`` if they cannot be decoded.
    """
    if not is_there(path):
        return [Finding(Kind.MISSING, str(path))], None
    try:
        odd, pixels = with_image(path, lambda image: _inspect(path, image, boxes))
        shown = hashlib.sha256(f"{pixels.shape}".encode())
        shown.update(pixels.data)
        return [Finding(kind, str(path), detail) for kind, detail in odd], shown.digest()
    except Exception as error:  # any exception of a decoder would also stop a run
        return [_defect(path, error)], None


def _defect(path: Path, error: Exception) -> Finding:
    reason = "not an image" if isinstance(error, UnidentifiedImageError) else str(error) or type(error).__name__
    kind = Kind.TRUNCATED if "truncated" in reason.lower() else Kind.UNDECODABLE
    return Finding(kind, str(path), f"{reason} ({path.stat().st_size:,} bytes)")


def _inspect(path: Path, image: ImageFile, boxes: Sequence[Box]) -> tuple[list[tuple[Kind, str]], Pixels]:
    """Return the findings in an open image, and its pixels."""
    found = _unusual_entries(path, image, boxes)  # before the pixels are loaded, which changes Pillow's attributes
    pixels, _, by_opencv = decode(path, image)
    if image.format in ("JPEG", "MPO") and not by_opencv:
        decode_all(path)  # for libjpeg's warnings, which Pillow suppresses
    return found, pixels


def _unusual_entries(path: Path, image: ImageFile, boxes: Sequence[Box]) -> list[tuple[Kind, str]]:
    found: list[tuple[Kind, str]] = []
    is_bare = isinstance(image.fp, BytesIO)  # the image could only be opened without its metadata
    turned = orientation(image)
    width, height = stored_size(image)
    named = Image.registered_extensions().get(path.suffix.lower(), image.format)
    # Cameras append a preview to JPEGs; Pillow calls this format MPO.
    content = "JPEG" if image.format == "MPO" else image.format
    if named != content:
        found.append((Kind.MISNAMED, f"{content} inside"))
    if turned is None or is_bare:
        found.append((Kind.METADATA, ""))
    elif turned > 1:
        found.append((Kind.TURNED, f"orientation {turned}"))
    if image.mode != "RGB":
        found.append((Kind.COLOURS, f"mode {image.mode}"))
    for x, y, w, h in boxes:
        said = f"x {x:g}, y {y:g}, {w:g} x {h:g} in {width} x {height}"
        if is_outside((x, y, w, h), width, height):
            found.append((Kind.BOX_OUTSIDE, said))
        elif x < 0 or y < 0 or x + w > width or y + h > height:
            found.append((Kind.BOX_CLIPPED, said))
    return found
