"""Metadata that cause errors in decoders, and orientation, in every format."""

import struct
import zlib
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from cxlp.data.decode import as_pixels, read_image
from cxlp.data.inspection import Kind, inspect_image
from cxlp.utils.errors import CxlpError
from tests.generate import Pixels, texture

PHOTO: Pixels = texture(0, 1, np.random.default_rng(0), 60, 40)


def encoded(form: str, pixels: Pixels = PHOTO, **options: Any) -> bytes:
    stream = BytesIO()
    Image.fromarray(pixels).save(stream, form, **options)
    return stream.getvalue()


def chunk(kind: bytes, data: bytes, broken: int = 0) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data) ^ broken)


def png(*chunks: bytes, at: int = 33) -> bytes:
    """Write a PNG with additional chunks after its header or elsewhere."""
    data = encoded("PNG")
    at %= len(data)
    return data[:at] + b"".join(chunks) + data[at:]


def jpeg(marker: int, data: bytes) -> bytes:
    """Write a JPEG with an additional segment at its beginning."""
    whole = encoded("JPEG")
    return whole[:2] + struct.pack(">BBH", 0xFF, marker, len(data) + 2) + data + whole[2:]


HUGE = zlib.compress(bytes(3_000_000))
MALFORMED = {
    "exif.png": png(chunk(b"eXIf", b"garbage")),
    "short exif.png": png(chunk(b"eXIf", b"II*\0")),
    "last exif.png": png(chunk(b"eXIf", b"garbage"), at=-12),
    "checksum exif.png": png(chunk(b"eXIf", b"II*\0", broken=1)),
    "icc.png": png(chunk(b"iCCP", b"x\0\0garbage")),
    "short icc.png": png(chunk(b"iCCP", b"x")),
    "method icc.png": png(chunk(b"iCCP", b"x\0\5abc")),
    "huge icc.png": png(chunk(b"iCCP", b"x\0\0" + HUGE)),
    "checksum icc.png": png(chunk(b"iCCP", b"x\0\0" + zlib.compress(b"abc"), broken=1)),
    "text.png": png(chunk(b"zTXt", b"x\0\0" + HUGE)),
    "last text.png": png(chunk(b"zTXt", b"x\0\0" + HUGE), at=-12),
    "resolution.png": png(chunk(b"pHYs", b"abc")),
    "exif.webp": encoded("WEBP", exif=b"Exif\0\0II*\0"),
    "icc.webp": encoded("WEBP", icc_profile=b"garbage", exif=b"garbage"),
    "exif.jpg": jpeg(0xE1, b"Exif\0\0garbage"),
    "short exif.jpg": jpeg(0xE1, b"Exif\0\0II*\0\xff\xff\xff\xff"),
    "icc.jpg": jpeg(0xE2, b"ICC_PROFILE\0\1\3abc"),
    "short icc.jpg": jpeg(0xE2, b"ICC_PROFILE\0"),
    "adobe.jpg": jpeg(0xEE, b"Adobe"),
    "jfif.jpg": jpeg(0xE0, b"JFIF"),
    "preview.jpg": jpeg(0xE2, b"MPF\0garbage"),
    "exif.tif": encoded("TIFF", tiffinfo={34665: 10**6}),
    "icc.tif": encoded("TIFF", icc_profile=b"garbage", tiffinfo={34665: 9}),
}
#: Pillow decodes these without a warning.
UNNOTICED = {
    *("icc.png", "short exif.jpg", "icc.jpg", "preview.jpg", "exif.tif", "icc.tif"),
}


@pytest.mark.parametrize("name", MALFORMED)
@pytest.mark.parametrize("box", [None, (3.0, 2.0, 50.0, 30.0)])
def test_malformed_metadata_lose_the_orientation_but_not_the_image(
    tmp_path: Path, name: str, box: tuple[float, float, float, float] | None
) -> None:
    path = tmp_path / name
    path.write_bytes(MALFORMED[name])
    form = {"png": "PNG", "webp": "WEBP", "jpg": "JPEG", "tif": "TIFF"}[name[-4:].strip(".")]
    (tmp_path / "plain").write_bytes(encoded(form))
    assert np.array_equal(read_image(path, box), read_image(tmp_path / "plain", box))
    assert [finding.kind for finding in inspect_image(path)[0]] == [Kind.METADATA] * (name not in UNNOTICED)


def test_files_with_other_damage_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a"
    for data in (png(chunk(b"iCCP", b"x")), jpeg(0xE2, b"ICC_PROFILE\0")):
        for length in (20, 60, len(data) // 2, len(data) - 40):
            path.write_bytes(data[:length])
            with pytest.raises(CxlpError, match="cannot decode image"):
                read_image(path)
    flipped = bytearray(png(chunk(b"eXIf", b"garbage")))
    flipped[len(flipped) // 2] ^= 0xFF
    path.write_bytes(flipped)
    with pytest.raises(CxlpError, match="cannot decode image"):
        read_image(path)


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "TIFF", "AVIF", "MPO"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_images_are_rotated_upright_and_boxes_are_in_stored_pixels(tmp_path: Path, form: str, orientation: int) -> None:
    # The brightness of each quarter identifies it.
    stored = np.kron(np.array([[250, 170], [90, 10]]), np.ones((20, 30)))[..., None].repeat(3, 2).astype(np.uint8)
    upright = {
        1: stored,
        2: stored[:, ::-1],
        3: stored[::-1, ::-1],
        4: stored[::-1],
        5: stored.transpose(1, 0, 2),
        6: np.rot90(stored, -1),
        7: stored[::-1, ::-1].transpose(1, 0, 2),
        8: np.rot90(stored, 1),
    }
    exif = Image.Exif()
    exif[0x0112] = orientation
    options: dict[str, Any] = {"tiffinfo": {0x0112: orientation}} if form == "TIFF" else {"exif": exif}
    (tmp_path / "a").write_bytes(encoded(form, stored, **options))

    def assert_same(found: Pixels, expected: Pixels) -> None:
        assert found.shape == expected.shape
        assert np.abs(found.astype(int) - expected).mean() < 4

    assert_same(read_image(tmp_path / "a"), upright[orientation])
    assert_same(read_image(tmp_path / "a", (0.0, 0.0, 60.0, 40.0)), stored)
    assert_same(read_image(tmp_path / "a", (30.0, 0.0, 30.0, 20.0)), stored[:20, 30:])
    with Image.open(tmp_path / "a") as image:
        assert_same(as_pixels(image), upright[orientation])
