"""Checks of one image file: whether the loaders can decode it, and what they convert."""

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
    """Kinds of findings, in the order in which they are shown: first those that stop a run."""

    LISTS = "lists", "a run stops and says so", True
    MISSING = "missing file", "a run stops and names it", True
    TRUNCATED = "truncated file", "a run stops and names it", True
    UNDECODABLE = "undecodable file", "a run stops and names it", True
    SHARED = "same picture in two splits", "used in both: the scores are too good", False
    CONTRADICTED = "same picture with other labels", "used with both: at least one label is wrong", False
    DUPLICATED = (
        "same picture again in a split",
        "used twice: held-out scores and the choice of C may be too good",
        False,
    )
    REPEATED = "listed twice", "fitted or scored twice", False
    DAMAGED = "damaged JPEG", "decoded, with pixels that are missing or made up", False
    BOX_LIST = "boxes unreadable", "a run with --data.bbox true stops", False
    SINGLE = "class with one training image", "model.frozen.c: auto or a part held out stops a run", False
    NO_TEST = "class without test images", "left out of means over classes", False
    UNSPECIFIED = "no label specified", "takes part in nothing", False
    NO_BOX = "no box", "the whole image is used", False
    METADATA = "malformed metadata", "left out: orientation and colour profile are not known", False
    BOX_OUTSIDE = "box beyond the picture", "a run with --data.bbox true stops and names it", False
    BOX_CLIPPED = "box crosses the border", "clipped to the picture", False
    MISNAMED = "other format than its name's", "decoded by content", False
    TURNED = "turned by EXIF", "turned upright; with a box, as stored", False
    COLOURS = "other than RGB", "converted to RGB of 8 bits, alpha dropped", False

    def __init__(self, what: str, effect: str, stops: bool) -> None:
        self.what, self.effect, self.stops = what, effect, stops


class Finding(NamedTuple):
    """Something that is worth knowing of a data set.

    Attributes:
        kind: What kind of thing.
        where: The file, or the class.
        detail: What exactly; may be empty.
    """

    kind: Kind
    where: str
    detail: str = ""


def inspect_image(path: Path, boxes: Sequence[Box] = ()) -> tuple[list[Finding], bytes | None]:
    """Decode a file as the loaders do, and say what is out of the ordinary. Never raises for what a file holds.

    Args:
        path: The file.
        boxes: Those that samples cut out of it, ``x, y, w, h`` in pixels.

    Returns:
        The findings, and a digest of the pixels, which is ``None`` where they cannot be decoded.
    """
    if not is_there(path):
        return [Finding(Kind.MISSING, str(path))], None
    try:
        odd, pixels = with_image(path, lambda image: _inspect(path, image, boxes))
        shown = hashlib.sha256(f"{pixels.shape}".encode())
        shown.update(pixels.data)
        return [Finding(kind, str(path), detail) for kind, detail in odd], shown.digest()
    except Exception as error:  # whatever a decoder trips over stops a run, too
        return [_defect(path, error)], None


def _defect(path: Path, error: Exception) -> Finding:
    reason = "no picture" if isinstance(error, UnidentifiedImageError) else str(error) or type(error).__name__
    kind = Kind.TRUNCATED if "truncated" in reason.lower() else Kind.UNDECODABLE
    return Finding(kind, str(path), f"{reason} ({path.stat().st_size:,} bytes)")


def _inspect(path: Path, image: ImageFile, boxes: Sequence[Box]) -> tuple[list[tuple[Kind, str]], Pixels]:
    """What is out of the ordinary in a picture that is open, and its pixels."""
    found = _oddities(path, image, boxes)  # before its pixels are loaded, which changes what Pillow says of it
    pixels, _, by_opencv = decode(path, image)
    if image.format in ("JPEG", "MPO") and not by_opencv:
        decode_all(path)  # for libjpeg's warnings, which Pillow does not pass on
    return found, pixels


def _oddities(path: Path, image: ImageFile, boxes: Sequence[Box]) -> list[tuple[Kind, str]]:
    found: list[tuple[Kind, str]] = []
    is_bare = isinstance(image.fp, BytesIO)  # it could only be opened without its metadata
    turned = orientation(image)
    width, height = stored_size(image)
    named = Image.registered_extensions().get(path.suffix.lower(), image.format)
    # Cameras write JPEGs with a preview behind the picture, which Pillow calls MPO.
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
