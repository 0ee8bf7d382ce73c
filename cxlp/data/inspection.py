"""One file under the magnifier: what loaders make of it, and whether they can.

Runs in processes of their own, which need not import torch.
"""

import hashlib
import warnings
from collections.abc import Sequence
from enum import Enum
from pathlib import Path
from typing import NamedTuple

from PIL import ExifTags, Image, UnidentifiedImageError

from cxlp.data.decode import Box, read_image
from cxlp.utils.errors import CxlpError

#: Sides shorter than this, in pixels, are worth a word: a picture or a crop of which networks see a blur.
SMALL = 16


class Kind(Enum):
    """Kinds of findings, what stops a run first; in the order in which they are shown."""

    LISTS = "lists", "a run stops and says so", True
    MISSING = "missing file", "a run stops and names it", True
    EMPTY = "empty file", "a run stops and names it", True
    TRUNCATED = "truncated file", "a run stops and names it", True
    UNDECODABLE = "undecodable file", "a run stops and names it", True
    SHARED = "same content in two splits", "nothing: scores would be too good", False
    REPEATED = "listed twice", "fitted or scored twice", False
    BOX_LIST = "boxes unreadable", "a run with --data.bbox true stops", False
    NO_TEST = "class without test images", "left out of means over classes", False
    UNSPECIFIED = "no label specified", "takes part in nothing", False
    NO_BOX = "no box", "the whole image is used", False
    BOX_OUTSIDE = "box beyond the picture", "the nearest pixels are used", False
    BOX_CLIPPED = "box crosses the border", "clipped to the picture", False
    BOX_SMALL = f"box under {SMALL} pixels", "enlarged", False
    TINY = f"image under {SMALL} pixels", "enlarged", False
    MISNAMED = "other format than its name's", "decoded by content", False
    FRAMES = "several frames", "the first one is used", False
    TURNED = "turned by EXIF", "turned upright; with a box, as stored", False
    GREY = "grey", "converted to RGB", False
    CMYK = "CMYK", "converted to RGB", False
    PALETTE = "palette", "converted to RGB", False
    DEEP = "16 bits", "scaled to 8 bits, converted to RGB", False
    ALPHA = "alpha channel", "dropped", False
    COLOURS = "other colour space", "converted to RGB", False
    WARNING = "decoder's warning", "used as it is decoded", False

    def __init__(self, what: str, effect: str, stops: bool) -> None:
        self.what, self.effect, self.stops = what, effect, stops


class Finding(NamedTuple):
    """Something to know of a data set.

    Attributes:
        kind: What kind of thing.
        where: The file, or the class.
        detail: What exactly; may be empty.
    """

    kind: Kind
    where: str
    detail: str = ""


class Inspection(NamedTuple):
    """What :func:`inspect_image` found.

    Attributes:
        findings: In no order.
        digest: Of the file's content; ``None`` where it cannot be decoded.
    """

    findings: list[Finding]
    digest: bytes | None


def inspect_image(path: Path, boxes: Sequence[Box] = ()) -> Inspection:
    """Decode a file as the loaders do, and say what is out of the ordinary. Never raises for what a file holds.

    Args:
        path: The file.
        boxes: Those that samples cut out of it, ``x, y, w, h`` in pixels.
    """
    size = 0
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            if not path.is_file():
                return Inspection([Finding(Kind.MISSING, str(path))], None)
            size = path.stat().st_size
            read_image(path)
            findings = _oddities(path, boxes)
            with path.open("rb") as file:
                digest = hashlib.file_digest(file, "sha256").digest()
        except Exception as error:  # whatever a decoder trips over stops a run, too
            return Inspection([_defect(path, size, error)], None)
    findings += [Finding(Kind.WARNING, str(path), text) for text in sorted({str(w.message) for w in caught})]
    return Inspection(findings, digest)


def _defect(path: Path, size: int, error: Exception) -> Finding:
    # read_image adds the path and the size to what the decoder said.
    cause = error.__cause__ if isinstance(error, CxlpError) and error.__cause__ else error
    if isinstance(cause, UnidentifiedImageError):
        return Finding(Kind.UNDECODABLE if size else Kind.EMPTY, str(path), f"no picture ({size:,} bytes)")
    kind = Kind.TRUNCATED if "truncated" in str(cause).lower() else Kind.UNDECODABLE
    return Finding(kind, str(path), f"{str(cause) or type(cause).__name__} ({size:,} bytes)")


def _oddities(path: Path, boxes: Sequence[Box]) -> list[Finding]:
    found: list[tuple[Kind, str]] = []
    with Image.open(path) as image:
        width, height = image.size
        named = Image.registered_extensions().get(path.suffix.lower(), image.format)
        # Cameras write JPEGs with a preview behind the picture, which Pillow calls MPO.
        content = "JPEG" if image.format == "MPO" else image.format
        if named != content:
            found.append((Kind.MISNAMED, f"{content} inside"))
        elif getattr(image, "n_frames", 1) > 1 and image.format != "MPO":
            found.append((Kind.FRAMES, f"{image.n_frames} frames"))  # type: ignore[attr-defined]
        if (orientation := image.getexif().get(ExifTags.Base.Orientation)) in range(2, 9):
            found.append((Kind.TURNED, f"orientation {orientation}"))
        if image.mode != "RGB":
            found.append((_colours(image), f"mode {image.mode}"))
    if min(width, height) < SMALL:
        found.append((Kind.TINY, f"{width} x {height}"))
    for box in boxes:
        x, y, w, h = box
        seen = [min(x + w, width) - max(x, 0), min(y + h, height) - max(y, 0)]
        said = f"x {x:g}, y {y:g}, {w:g} x {h:g} in {width} x {height}"
        if min(seen) <= 0:
            found.append((Kind.BOX_OUTSIDE, said))
            continue
        if x < 0 or y < 0 or x + w > width or y + h > height:
            found.append((Kind.BOX_CLIPPED, said))
        if min(seen) < SMALL:
            found.append((Kind.BOX_SMALL, said))
    return [Finding(kind, str(path), detail) for kind, detail in found]


def _colours(image: Image.Image) -> Kind:
    if image.mode.startswith("I"):
        return Kind.DEEP
    if image.mode in ("LA", "La", "PA", "RGBA", "RGBa"):
        return Kind.ALPHA
    return {"1": Kind.GREY, "L": Kind.GREY, "P": Kind.PALETTE, "CMYK": Kind.CMYK}.get(image.mode, Kind.COLOURS)
