"""Metadata of image files: EXIF orientation, and removal of malformed metadata."""

import re
import struct

from PIL import ExifTags, Image

_PNG = b"\x89PNG\r\n\x1a\n"
#: Chunks needed to decode the pixels; all other chunks are metadata.
_PIXELS_OF_PNG = {b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND"}
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_BACK = {**_TURNS, 6: Image.Transpose.ROTATE_90, 8: Image.Transpose.ROTATE_270}


def orientation(image: Image.Image) -> int | None:
    """Return the EXIF orientation of an image, 1 (upright) to 8, or ``None`` if its EXIF data are malformed.

    Call this function before the pixels are loaded.

    Raises:
        Exception: Any exception of the decoder of a PNG, whose pixels are loaded here.
    """
    if image.format == "PNG":
        image.load()  # EXIF data may follow the pixels; Pillow reads them only then
    try:
        if "exif" in image.info:  # Pillow hides errors in the EXIF data of a JPEG after opening it
            Image.Exif().load(image.info["exif"])
        found = image.getexif().get(ExifTags.Base.Orientation)
    except Exception:  # malformed EXIF data: the orientation is unknown, but the image can be used
        return None
    return int(found) if found in _TURNS else 1


def stored_size(image: Image.Image) -> tuple[int, int]:
    """Return width and height of an open image as stored; for a TIFF, Pillow's are those after rotation."""
    is_turned = image.format == "TIFF" and orientation(image) in range(5, 9)
    return (image.height, image.width) if is_turned else image.size


def turn(image: Image.Image, pixels: Image.Image, orientation: int | None, upright: bool) -> Image.Image:
    """Rotate an image upright, or return it as stored.

    Args:
        image: The image opened by Pillow.
        pixels: Its pixels, loaded and possibly converted.
        orientation: Result of :func:`orientation` before the pixels were loaded.
        upright: Whether to return the image upright rather than as stored.
    """
    is_upright = image.format == "TIFF"  # the only format that Pillow itself rotates when it loads the pixels
    if upright == is_upright or orientation in (1, None):
        return pixels
    return pixels.transpose((_TURNS if upright else _BACK)[orientation])


def without_metadata(data: bytes) -> bytes | None:
    """Remove EXIF data, colour profiles and texts from a PNG or JPEG.

    Args:
        data: Bytes of the file.

    Returns:
        Bytes of the file without metadata, or ``None`` if it is neither a PNG nor a JPEG, or cannot be parsed.
    """
    try:
        if data.startswith(_PNG):
            return _PNG + b"".join(chunk for kind, chunk in _chunks(data) if kind in _PIXELS_OF_PNG)
        if data.startswith(b"\xff\xd8"):
            return _bare_jpeg(data)
    except (struct.error, IndexError):
        return None
    return None


def _chunks(data: bytes) -> list[tuple[bytes, bytes]]:
    """Return the chunks of a PNG (length, type, content, checksum), each with its type."""
    found, place = [], len(_PNG)
    while place < len(data):
        (length,) = struct.unpack_from(">I", data, place)
        found.append((data[place + 4 : place + 8], data[place : place + 12 + length]))
        place += 12 + length
    return found


def _bare_jpeg(data: bytes) -> bytes:
    """Return a JPEG without comments and application segments except Adobe's, which defines its colour space."""
    kept, place = [data[:2]], 2
    while data[place + 1] != 0xDA:  # start of the compressed data
        marker, length = struct.unpack_from(">HH", data, place)
        segment = data[place : place + 2 + length]
        is_added = 0xFFE0 <= marker <= 0xFFEF or marker == 0xFFFE
        if not is_added or (marker == 0xFFEE and re.match(rb"....Adobe.{7}", segment, re.DOTALL)):
            kept.append(segment)
        place += 2 + length
    return b"".join([*kept, data[place:]])
