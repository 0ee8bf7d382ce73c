"""Decoding: the pixels of each kind of file, sizes, and errors."""

from pathlib import Path
from typing import Any
from unittest.mock import Mock

import cv2
import numpy as np
import pytest
from PIL import Image

from cxlp.data import decode
from cxlp.data.decode import Box, read_image
from cxlp.data.metadata import turn
from cxlp.utils.errors import CxlpError
from tests.generate import Pixels, texture, write_image

PHOTO: Pixels = cv2.GaussianBlur(texture(1, 3, np.random.default_rng(0), 301, 203), (0, 0), 1.5).astype(np.uint8)
# Kinds of JPEG; the fast decoder does not support the last two.
JPEGS: dict[str, dict[str, Any]] = {
    "ordinary": {},
    "whole colours": {"subsampling": 0},
    "restart markers": {"restart_marker_rows": 1},
    "grey": {"mode": "L"},
    "progressive": {"progressive": True},
    "print": {"mode": "CMYK"},
}


def write_jpeg(path: Path, mode: str = "RGB", pixels: Pixels = PHOTO, **options: Any) -> Path:
    Image.fromarray(pixels).convert(mode).save(path, format="JPEG", quality=95, **options)
    return path


def solid(mode: str, colour: Any, size: tuple[int, int] = (6, 4)) -> Image.Image:
    return Image.new(mode, size, colour)


@pytest.mark.parametrize(
    ("name", "mode", "colour", "expected"),
    [
        ("grey.jpg", "L", 77, (77, 77, 77)),
        ("grey_alpha.png", "LA", (77, 100), (77, 77, 77)),
        ("bilevel.png", "1", 1, (255, 255, 255)),
        ("alpha.png", "RGBA", (10, 20, 30, 0), (10, 20, 30)),
        ("print.jpg", "CMYK", (0, 255, 255, 0), (255, 0, 0)),
        ("grey16.png", "I;16", 0x8000, (128, 128, 128)),
        ("white16.tif", "I;16", 0xFFFF, (255, 255, 255)),
    ],
)
def test_modes_become_rgb(tmp_path: Path, name: str, mode: str, colour: Any, expected: tuple[int, ...]) -> None:
    solid(mode, colour).save(tmp_path / name)
    pixels = read_image(tmp_path / name)
    assert pixels.dtype == np.uint8
    assert pixels.shape == (4, 6, 3)
    assert np.abs(pixels.astype(int) - expected).max() <= 1


@pytest.mark.filterwarnings("error")
def test_palette_with_transparency_shows_its_colours(tmp_path: Path) -> None:
    image = solid("P", 1)
    image.putpixel((0, 0), 0)
    image.putpalette([255, 0, 0, 0, 128, 0])
    image.save(tmp_path / "palette.png", transparency=b"\x00\x80")
    pixels = read_image(tmp_path / "palette.png")
    assert pixels[0, 0].tolist() == [255, 0, 0]
    assert (pixels[1:] == (0, 128, 0)).all()


def test_16_bits_keep_their_shades(tmp_path: Path) -> None:
    ramp = np.linspace(0, 65535, 256).astype(np.uint16)
    Image.fromarray(np.tile(ramp, (4, 1))).save(tmp_path / "ramp.png")
    assert np.array_equal(read_image(tmp_path / "ramp.png")[0, :, 0], np.arange(256))


@pytest.mark.parametrize("content", ["GIF", "PNG", "BMP", "WEBP"])
def test_the_format_is_detected_by_content(tmp_path: Path, content: str) -> None:
    solid("RGB", (0, 0, 255)).save(tmp_path / "misnamed.jpg", format=content, lossless=True)
    assert (read_image(tmp_path / "misnamed.jpg") == (0, 0, 255)).all()


@pytest.mark.parametrize(
    ("box", "expected"),
    [
        ((1.0, 2.0, 3.0, 2.0), (slice(2, 4), slice(1, 4))),
        ((-5.0, -5.0, 7.0, 8.0), (slice(0, 3), slice(0, 2))),  # beyond the left and upper border
        ((4.0, 3.0, 50.0, 50.0), (slice(3, 8), slice(4, 10))),  # beyond the right and lower border
        ((0.6, 0.4, 2.0, 2.0), (slice(0, 2), slice(1, 3))),  # edges are rounded
        ((3.0, 3.0, 0.0, 0.0), (slice(3, 4), slice(3, 4))),  # at least one pixel
    ],
)
def test_boxes_are_clipped(tmp_path: Path, box: tuple[float, ...], expected: tuple[slice, slice]) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (8, 10, 3)).astype(np.uint8)
    x, y, w, h = box
    assert np.array_equal(read_image(write_image(tmp_path / "a.png", pixels), (x, y, w, h)), pixels[expected])


@pytest.mark.parametrize("box", [(90.0, 3.0, 5.0, 5.0), (3.0, 8.0, 5.0, 5.0), (-5.0, 3.0, 5.0, 5.0)])
def test_a_box_outside_the_image_is_refused(tmp_path: Path, box: tuple[float, float, float, float]) -> None:
    path = write_image(tmp_path / "a.png", np.zeros((8, 10, 3), np.uint8))
    with pytest.raises(CxlpError, match=f"the box {box[0]:g} {box[1]:g} 5 5 lies outside of image {path}"):
        read_image(path, box)


# Reduced decoding


def shrunk(pixels: Pixels, like: Pixels) -> Pixels:
    """Compute the mean of the area that each pixel covers."""
    result = cv2.resize(pixels, like.shape[1::-1], interpolation=cv2.INTER_AREA)
    assert result.dtype == np.uint8
    return result  # type: ignore[return-value]


def apart(one: Pixels, other: Pixels) -> float:
    return float(np.abs(one.astype(int) - other).mean())


@pytest.mark.parametrize("kind", JPEGS)
def test_full_size_is_what_pillow_decodes(tmp_path: Path, kind: str) -> None:
    path = write_jpeg(tmp_path / "a.jpg", **JPEGS[kind])
    with Image.open(path) as image:
        expected = np.asarray(image.convert("RGB"))
    # Other builds of libjpeg may round differently.
    assert np.abs(read_image(path).astype(int) - expected).max() <= 2


@pytest.mark.parametrize("kind", JPEGS)
@pytest.mark.parametrize(("needed", "scale"), [(100, 2), (40, 4), (20, 8)])
def test_a_reduced_image_is_close_to_the_resized_one(tmp_path: Path, kind: str, needed: int, scale: int) -> None:
    path = write_jpeg(tmp_path / "a.jpg", **JPEGS[kind])
    small = read_image(path, None, needed)
    assert small.shape == (-(-203 // scale), -(-301 // scale), 3)
    # The last row and column also cover the area beyond the picture.
    whole = read_image(path)[: 203 // scale * scale, : 301 // scale * scale]
    small = small[: 203 // scale, : 301 // scale]
    assert apart(small, shrunk(whole, small)) < 2
    assert apart(small[:, :-1], shrunk(whole, small)[:, 1:]) > 8, "the comparison detects a shift by one pixel"


@pytest.mark.parametrize(
    ("needed", "height"), [(None, 240), (241, 240), (121, 240), (120, 120), (61, 120), (60, 60), (30, 30), (1, 30)]
)
def test_sides_stay_as_large_as_needed(tmp_path: Path, needed: int | None, height: int) -> None:
    for name, width in (("wide", 320), ("long", 240)):
        pixels = texture(0, 1, np.random.default_rng(0), width, 560 - width)
        small = read_image(write_image(tmp_path / f"{name}.jpg", pixels), None, needed)
        assert min(small.shape[:2]) == height
        assert small.shape[0] * width == small.shape[1] * (560 - width)


def test_other_formats_keep_their_size(tmp_path: Path) -> None:
    for name in ("a.png", "a.webp", "a.bmp"):
        path = write_image(tmp_path / name, PHOTO)
        assert np.array_equal(read_image(path, None, 20), read_image(path))
        assert read_image(path, (20.0, 30.0, 250.0, 150.0), 20).shape == (150, 250, 3)


def test_a_reduced_image_is_rotated_upright(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    path = write_jpeg(tmp_path / "turned.jpg", exif=exif)
    upright = read_image(path, None, 100)
    assert upright.shape == (151, 102, 3)
    straight = read_image(write_jpeg(tmp_path / "straight.jpg"), None, 100)
    assert apart(upright, np.rot90(straight, -1)) < 0.1
    # Boxes are given in stored pixels.
    assert read_image(path, (0.0, 0.0, 301.0, 203.0), 100).shape == (102, 150, 3)


def test_the_first_of_several_images_in_a_file_is_used(tmp_path: Path) -> None:
    first = Image.fromarray(PHOTO)
    first.save(
        tmp_path / "a.jpg", format="MPO", save_all=True, append_images=[Image.new("RGB", (301, 203))], quality=95
    )
    small = read_image(tmp_path / "a.jpg", None, 100)
    assert apart(small, read_image(write_jpeg(tmp_path / "b.jpg"), None, 100)) < 0.1


@pytest.mark.parametrize("needed", [20, 45, 100])
def test_edges_of_boxes_move_by_half_a_returned_pixel_at_most(tmp_path: Path, needed: int) -> None:
    # Red encodes x and green y, so the outermost pixels show the positions of the edges.
    y, x = np.mgrid[:200, :240]
    path = tmp_path / "a.png"
    Image.fromarray(np.stack([x, y, 0 * x], axis=2).astype(np.uint8)).save(
        path, format="JPEG", quality=100, subsampling=0
    )
    rng = np.random.default_rng(needed)
    reduced = 0
    for _ in range(50):
        left, top = rng.uniform(5, 60, 2)
        width, height = rng.uniform(25, 130, 2)
        box: Box = (left, top, width, height)
        cut = read_image(path, box, needed)
        reduction = round(width / cut.shape[1])
        reduced += reduction > 1
        assert reduction == 1 or min(cut.shape[:2]) >= needed
        # A fully covered pixel is the mean of its area, whose centre is half its width from the edge.
        bound = reduction / 2 + 1.5  # the error of JPEG
        assert abs(cut[:, 0, 0].mean() + 0.5 - reduction / 2 - left) <= bound
        assert abs(cut[0, :, 1].mean() + 0.5 - reduction / 2 - top) <= bound
        assert abs(cut[:, -1, 0].mean() + 0.5 + reduction / 2 - left - width) <= bound
        assert abs(cut[-1, :, 1].mean() + 0.5 + reduction / 2 - top - height) <= bound
    assert 0 < reduced < 50 or needed != 45


def test_a_small_box_in_a_large_image_is_cropped_at_full_size(tmp_path: Path) -> None:
    path = write_jpeg(tmp_path / "a.jpg")
    whole = read_image(path)
    assert np.array_equal(read_image(path, (10.0, 20.0, 150.0, 78.0), 40), whole[20:98, 10:160])
    assert read_image(path, (10.0, 20.0, 150.0, 80.0), 40).shape == (40, 75, 3)


@pytest.mark.parametrize(("kind", "fast"), [(kind, kind not in ("progressive", "print")) for kind in JPEGS])
def test_ordinary_jpegs_use_the_fast_decoder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, fast: bool
) -> None:
    exif = Image.Exif()
    exif[0x0112] = 0  # no orientation, as in many real photos
    path = write_jpeg(tmp_path / "a.jpg", exif=exif, **JPEGS[kind])
    slow = Mock(wraps=turn)
    monkeypatch.setattr(decode, "turn", slow)
    read_image(path)
    assert slow.called != fast


def test_loading_processes_start_no_threads() -> None:
    assert cv2.getNumThreads() == 1


# Errors


def spoil(folder: Path, how: str) -> Path:
    path = write_image(folder / "whole.jpg", texture(0, 1, np.random.default_rng(0), 64, 64))
    data = path.read_bytes()
    content = {
        "truncated": data[: len(data) // 2],
        "empty": b"",
        "text": b"<html>404 Not Found</html>",
        "cut in the header": data[:40],
    }[how]
    (folder / "spoilt.jpg").write_bytes(content)
    return folder / "spoilt.jpg"


@pytest.mark.parametrize("how", ["truncated", "empty", "text", "cut in the header"])
def test_undecodable_files_are_named(tmp_path: Path, how: str) -> None:
    path = spoil(tmp_path, how)
    with pytest.raises(CxlpError, match="cannot decode image") as caught:
        read_image(path)
    assert str(path) in str(caught.value)
    assert f"({path.stat().st_size} bytes)" in str(caught.value)


def test_corrupt_png_folder_and_floating_point_are_named(tmp_path: Path) -> None:
    path = write_image(tmp_path / "a.png", texture(0, 1, np.random.default_rng(0), 64, 64))
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0xFF
    path.write_bytes(data)
    solid("F", 0.5).save(tmp_path / "float.tif")
    (tmp_path / "folder.jpg").mkdir()
    for name in ("a.png", "float.tif", "folder.jpg"):
        with pytest.raises(CxlpError, match=name):
            read_image(tmp_path / name)
    with pytest.raises(CxlpError, match=r"image not found: .*none\.jpg"):
        read_image(tmp_path / "none.jpg")


@pytest.mark.parametrize("kind", JPEGS)
@pytest.mark.parametrize("needed", [None, 20])
def test_jpeg_cut_off_anywhere_is_refused(tmp_path: Path, kind: str, needed: int | None) -> None:
    data = write_jpeg(tmp_path / "whole.jpg", **JPEGS[kind]).read_bytes()
    path = tmp_path / "cut.jpg"
    for length in [*range(1, len(data), len(data) // 60), len(data) - 2, len(data) - 1]:
        path.write_bytes(data[:length])
        with pytest.raises(CxlpError, match=r"cannot decode image .*cut\.jpg"):
            read_image(path, None, needed)
    path.write_bytes(data + b"\0\0")  # data that some cameras append are accepted
    assert np.array_equal(read_image(path, None, needed), read_image(tmp_path / "whole.jpg", None, needed))


def test_stray_marker_that_ends_the_data_early_is_refused(tmp_path: Path) -> None:
    data = write_jpeg(tmp_path / "a.jpg").read_bytes()
    middle = len(data) // 2
    path = tmp_path / "stray.jpg"
    path.write_bytes(data[:middle] + b"\xff\x46" + data[middle:])
    with pytest.raises(CxlpError, match=r"stray\.jpg.*broken data stream"):
        read_image(path)


def test_truncated_photo_of_voc_is_refused(real_data: Path) -> None:
    path = real_data / "VOCdevkit" / "VOC2007" / "JPEGImages" / "000001.jpg"
    if not path.exists():
        pytest.skip("no VOC photos in CXLP_REAL_DATA")
    for needed in (None, 100):
        with pytest.raises(CxlpError, match=r"000001\.jpg.*truncated"):
            read_image(path, None, needed)


def test_real_photos_decoded_at_reduced_size_are_close(real_data: Path) -> None:
    paths = sorted((real_data / "CUB_200_2011" / "images").glob("*/*.jpg"))[::20]
    distances = []
    for path in paths:
        whole, small = read_image(path), read_image(path, None, 120)
        distances.append(apart(small, shrunk(whole, small)))
    assert np.mean(distances) < 2.5
