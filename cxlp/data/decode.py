"""Decoding of image files: upright, in RGB, cropped to a box, and no larger than needed."""

from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any, TypeVar

import cv2
import numpy as np
from PIL import Image, UnidentifiedImageError
from PIL.ImageFile import ImageFile
from PIL.JpegImagePlugin import JpegImageFile

from cxlp.data.metadata import orientation, turn, without_metadata
from cxlp.utils.errors import CxlpError

Box = tuple[float, float, float, float]
Result = TypeVar("Result")
Pixels = np.ndarray[Any, np.dtype[np.uint8]]

# There is one loading process per core: threads of OpenCV would compete with the other processes.
cv2.setNumThreads(0)

# OpenCV's flags by the factor by which JPEG decoders can reduce both sides.
_REDUCED = {
    1: cv2.IMREAD_COLOR,
    2: cv2.IMREAD_REDUCED_COLOR_2,
    4: cv2.IMREAD_REDUCED_COLOR_4,
    8: cv2.IMREAD_REDUCED_COLOR_8,
}
_END_OF_IMAGE = b"\xff\xd9"


def read_image(path: Path, box: Box | None = None, needed: int | None = None) -> Pixels:
    """Decode an image file upright and as RGB, and crop it to a box. The format is detected by content.

    A JPEG much larger than needed is decoded at 1/2, 1/4 or 1/8 of its size, which saves most of the time. For photos,
    the mean difference to resizing the full image is 2 of 255. An edge of the box moves by at most half a pixel of the
    result, as it does by rounding at full size.

    Args:
        path: The file.
        box: ``x, y, w, h`` in pixels of the file; clipped to the image, and at least one pixel large.
        needed: Smallest length in pixels of both sides of the result, if the file is large enough; ``None`` for the
            full size.

    Returns:
        ``(H, W, 3)`` uint8.

    Raises:
        CxlpError: If the file is missing, empty, truncated or not an image, or the box lies outside of the image.
    """
    try:
        pixels, scale, _ = with_image(path, lambda image: decode(path, image, box, needed))
    except FileNotFoundError as error:
        raise CxlpError(f"image not found: {path}") from error
    except IsADirectoryError as error:
        raise CxlpError(f"{path} is a folder, not an image") from error
    except PermissionError as error:
        raise CxlpError(f"cannot read image {path}: {error.strerror}") from error
    except Exception as error:  # decoders raise various exceptions for broken files
        reason = str(error).removesuffix(f" {str(path)!r}") or type(error).__name__  # Pillow repeats the path
        raise CxlpError(f"cannot decode image {path} ({path.stat().st_size} bytes): {reason}") from error
    if box is None:
        return pixels
    if is_outside((box[0] / scale, box[1] / scale, box[2] / scale, box[3] / scale), pixels.shape[1], pixels.shape[0]):
        raise CxlpError(f"the box {' '.join(f'{value:g}' for value in box)} lies outside of image {path}")
    left, top, right, bottom = _clip(box, pixels.shape[1], pixels.shape[0], scale)
    return np.ascontiguousarray(pixels[top:bottom, left:right])


def with_image(path: Path, use: Callable[[ImageFile], Result]) -> Result:
    """Open an image and call a function with it; if that fails, try once more without the image's metadata.

    Args:
        path: The file.
        use: The function, called with the open image.

    Raises:
        Exception: Any exception of the decoder.
    """
    try:
        with Image.open(path) as image:
            return use(image)
    except Exception as error:
        is_unreadable = isinstance(error, OSError) and error.errno is not None
        bare = None if is_unreadable else without_metadata(path.read_bytes())
        if bare is None:
            raise
        try:
            with Image.open(BytesIO(bare)) as image:
                return use(image)
        except Exception as other:  # the metadata are not the only cause
            raise (other if isinstance(error, UnidentifiedImageError) else error) from None


def as_pixels(image: Image.Image) -> Pixels:
    """Convert an image of Pillow to upright RGB as in :func:`read_image`, ``(H, W, 3)`` uint8.

    Raises:
        CxlpError: If the image cannot be decoded, or its pixels are floating-point numbers.
    """
    try:
        turned = orientation(image)
        return np.array(turn(image, _as_rgb(image), turned, upright=True))
    except (OSError, ValueError, SyntaxError) as error:
        raise CxlpError(f"cannot decode the image: {error}") from error


def decode(path: Path, image: ImageFile, box: Box | None = None, needed: int | None = None) -> tuple[Pixels, int, bool]:
    """Decode an open image as in :func:`read_image`, but without cropping.

    Args:
        path: The file.
        image: The image opened by Pillow.
        box: If given, the part within the box is as large as needed, rather than the whole image.
        needed: See :func:`read_image`.

    Returns:
        The pixels, upright, or with a box as stored; the divisor of their sides; and whether OpenCV decoded them.

    Raises:
        Exception: Any exception of the decoder.
    """
    scan = image.fp.tell() if image.fp else 0  # Pillow has read the header up to the compressed data
    scale = _reduction(image.size, box, needed) if isinstance(image, JpegImageFile) else 1
    turned = orientation(image)
    is_plain = image.format == "JPEG" and image.mode in ("RGB", "L") and not isinstance(image.fp, BytesIO)
    if is_plain and (turned in (1, None) or box is not None):
        pixels = _decode_jpeg(path, scan, scale)
        if pixels is not None:
            return pixels, scale, True
    if scale > 1:
        image.draft(None, (image.width // scale, image.height // scale))
    # EXIF data may rotate the image, but boxes are given in stored pixels.
    return np.array(turn(image, _as_rgb(image), turned, upright=box is None)), scale, False


def _reduction(size: tuple[int, int], box: Box | None, needed: int | None) -> int:
    """Return the largest divisor with which both sides of the box, or of the image, stay as large as needed."""
    if needed is not None:
        for scale in (8, 4, 2):
            width, height = (side // scale for side in size)
            if min(width, height) < needed:
                continue
            left, top, right, bottom = _clip(box, width, height, scale) if box else (0, 0, width, height)
            if min(right - left, bottom - top) >= needed:
                return scale
    return 1


def _decode_jpeg(path: Path, scan: int, scale: int) -> Pixels | None:
    """Decode a JPEG with OpenCV, which is faster than Pillow; return ``None`` for files that need Pillow.

    If a file is truncated, or a stray marker ends its data early, OpenCV fills in the missing pixels and only warns.
    Therefore it is used only for files that are a single scan of compressed data up to their end.

    Args:
        path: The file.
        scan: Offset of the compressed data.
        scale: Divisor of the sides.
    """
    data = np.fromfile(path, np.uint8)
    if not is_single_scan(data, scan):
        return None
    pixels: Pixels | None = cv2.imdecode(data, _REDUCED[scale] | cv2.IMREAD_IGNORE_ORIENTATION)  # type: ignore[assignment]
    if pixels is not None:
        cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB, dst=pixels)
    return pixels


def is_single_scan(data: Pixels, scan: int) -> bool:
    """Return whether a JPEG is a single scan of compressed data up to its end.

    Args:
        data: The file's bytes.
        scan: Offset of the compressed data.
    """
    # In compressed data, 0xFF is followed by 0, or begins a marker: restart (0xD0 to 0xD7) or end of image (0xD9).
    after = data[scan + 1 :][data[scan:-1] == 0xFF]
    markers = after[(after != 0) & (after & 0xF8 != 0xD0)]
    return data[-2:].tobytes() == _END_OF_IMAGE and markers.tobytes() == _END_OF_IMAGE[1:]


def is_outside(box: Box, width: int, height: int) -> bool:
    """Return whether no part of a box lies within an image of this size."""
    x, y, w, h = box
    return x >= width or y >= height or x + w <= 0 or y + h <= 0


def _as_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "RGB":
        return image
    if image.mode == "F":
        raise ValueError("pixels are floating-point numbers of unknown range: convert the image to 8 bits")
    if image.mode.startswith("I"):
        # 16 bits: Pillow's own conversion clips at 255, which makes nearly all pixels white.
        grey = np.clip(np.asarray(image, np.int64), 0, 65535) // 256
        return Image.fromarray(grey.astype(np.uint8)).convert("RGB")
    # Convert via RGBA, since palettes may have transparency; the alpha channel is dropped.
    return image.convert("RGBA").convert("RGB")


def _clip(box: Box, width: int, height: int, scale: int) -> tuple[int, int, int, int]:
    """Return left, top, right and bottom of a box, divided by ``scale`` and clipped to an image of this size."""
    x, y, w, h = (v / scale for v in box)
    left, top = (min(max(round(v), 0), limit - 1) for v, limit in ((x, width), (y, height)))
    right, bottom = (min(round(v), limit) for v, limit in ((x + w, width), (y + h, height)))
    return left, top, max(right, left + 1), max(bottom, top + 1)
