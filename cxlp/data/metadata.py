"""Metadata of image files: the orientation, and how to decode a file whose metadata are malformed."""

import re
import struct

from PIL import ExifTags, Image

_PNG = b"\x89PNG\r\n\x1a\n"
#: Chunks that say what the pixels are; all others only add to them.
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
    """How a picture is to be turned, 1 to 8, by its EXIF data; 1: as it is; ``None``: they cannot be read.

    To be asked before the picture is loaded.

    Raises:
        Exception: Whatever the decoder of a PNG raises for its pixels.
    """
    if image.format == "PNG":
        image.load()  # EXIF data may follow the pixels, so Pillow looks for them there, too
    try:
        if "exif" in image.info:  # what Pillow stumbled over when it opened a JPEG, it does not tell again
            Image.Exif().load(image.info["exif"])
        found = image.getexif().get(ExifTags.Base.Orientation)
    except Exception:  # malformed: that costs the orientation, not the picture
        return None
    return int(found) if found in _TURNS else 1


def stored_size(image: Image.Image) -> tuple[int, int]:
    """Width and height of a picture that is open, as it is stored: Pillow gives a TIFF's as if it were upright."""
    is_turned = image.format == "TIFF" and orientation(image) in range(5, 9)
    return (image.height, image.width) if is_turned else image.size


def turn(image: Image.Image, pixels: Image.Image, orientation: int | None, upright: bool) -> Image.Image:
    """Turn a picture upright, or leave it as it is stored.

    Args:
        image: The file, as Pillow opened it.
        pixels: Its pixels, loaded and perhaps converted.
        orientation: As asked for before it was loaded.
        upright: Which of the two.
    """
    is_upright = image.format == "TIFF"  # the one format that Pillow itself turns, when it loads the pixels
    if upright == is_upright or orientation in (1, None):
        return pixels
    return pixels.transpose((_TURNS if upright else _BACK)[orientation])


def without_metadata(data: bytes) -> bytes | None:
    """Leave out what a PNG or a JPEG holds besides pixels: EXIF data, colour profiles, texts.

    Args:
        data: The file.

    Returns:
        The rest of it; ``None`` where it is neither, or where its parts cannot be told apart.
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
    """The chunks of a PNG by their kinds: length, kind, content, checksum."""
    found, place = [], len(_PNG)
    while place < len(data):
        (length,) = struct.unpack_from(">I", data, place)
        found.append((data[place + 4 : place + 8], data[place : place + 12 + length]))
        place += 12 + length
    return found


def _bare_jpeg(data: bytes) -> bytes:
    """A JPEG without its application segments and comments, but for Adobe's, which says what its colours mean."""
    kept, place = [data[:2]], 2
    while data[place + 1] != 0xDA:  # the compressed data begin
        marker, length = struct.unpack_from(">HH", data, place)
        segment = data[place : place + 2 + length]
        is_added = 0xFFE0 <= marker <= 0xFFEF or marker == 0xFFFE
        if not is_added or (marker == 0xFFEE and re.match(rb"....Adobe.{7}", segment, re.DOTALL)):
            kept.append(segment)
        place += 2 + length
    return b"".join([*kept, data[place:]])
