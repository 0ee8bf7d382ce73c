"""The inspection of single files and its findings."""

from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
from PIL import Image

from cxlp.data import inspection
from cxlp.data.decode import Box, read_image
from cxlp.data.inspection import Finding, Kind, inspect_image
from cxlp.data.jpeg_warnings import decode_all
from cxlp.utils.errors import CxlpError
from tests.generate import texture

PHOTO = texture(0, 3, np.random.default_rng(0), 60, 40)


def save(path: Path, mode: str = "RGB", form: str | None = None, **options: Any) -> Path:
    Image.fromarray(PHOTO).convert(mode).save(path, form, **options)
    return path


def said(path: Path, *boxes: Box) -> list[tuple[Kind, str]]:
    findings, digest = inspect_image(path, boxes)
    assert all(finding.where == str(path) for finding in findings)
    assert (digest is None) == any(finding.kind.stops for finding in findings)
    return [(finding.kind, finding.detail) for finding in findings]


@pytest.mark.parametrize("name", ["a.jpg", "A.JPEG", "a.png", "a.bmp", "a.tif", "a.webp", "without_ending"])
def test_ordinary_images_have_no_findings(tmp_path: Path, name: str) -> None:
    assert said(save(tmp_path / name, form=None if "." in name else "JPEG"), (0, 0, 60, 40), (5.5, 3, 20, 16)) == []


@pytest.mark.parametrize(
    ("mode", "name"),
    [
        ("L", "a.jpg"),
        ("1", "a.png"),
        ("CMYK", "a.jpg"),
        ("P", "a.png"),
        ("RGBA", "a.png"),
        ("LA", "a.png"),
        ("I;16", "a.png"),
        ("LAB", "a.tif"),
    ],
)
def test_unusual_modes_are_reported(tmp_path: Path, mode: str, name: str) -> None:
    Image.new(mode, (60, 40)).save(tmp_path / name)
    assert said(tmp_path / name) == [(Kind.COLOURS, f"mode {mode}")]


@pytest.mark.parametrize("content", ["GIF", "PNG", "BMP", "WEBP"])
def test_content_of_another_format_than_the_suffix_is_reported(tmp_path: Path, content: str) -> None:
    found = said(save(tmp_path / "a.jpg", form=content))
    assert (Kind.MISNAMED, f"{content} inside") in found
    assert {kind for kind, _ in found} <= {Kind.MISNAMED, Kind.COLOURS}


def test_a_preview_behind_a_jpeg_is_ordinary(tmp_path: Path) -> None:
    frames = [Image.fromarray(PHOTO), Image.fromarray(PHOTO[::2, ::2])]
    frames[0].save(tmp_path / "a.jpg", "MPO", save_all=True, append_images=frames[1:])
    with Image.open(tmp_path / "a.jpg") as image:
        assert image.format == "MPO"
    assert said(tmp_path / "a.jpg") == []


@pytest.mark.parametrize(("orientation", "turned"), [(1, False), (3, True), (6, True), (0, False)])
def test_rotated_images_are_reported(tmp_path: Path, orientation: int, turned: bool) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    expected = [(Kind.TURNED, f"orientation {orientation}")] if turned else []
    assert said(save(tmp_path / "a.jpg", exif=exif)) == expected
    # Boxes are in stored pixels: this one would cross the border of the upright picture.
    assert said(tmp_path / "a.jpg", (0, 0, 60, 40)) == expected


@pytest.mark.parametrize(
    ("box", "kinds"),
    [
        ((0, 0, 60, 40), []),
        ((-0.5, 0, 60, 40), [Kind.BOX_CLIPPED]),
        ((0, 0, 60, 40.5), [Kind.BOX_CLIPPED]),
        ((59, 39, 1, 1), []),
        ((59, 0, 50, 40), [Kind.BOX_CLIPPED]),
        ((60, 0, 10, 10), [Kind.BOX_OUTSIDE]),
        ((5, -30, 20, 20), [Kind.BOX_OUTSIDE]),
    ],
)
def test_boxes_are_compared_with_the_image_size(tmp_path: Path, box: Box, kinds: list[Kind]) -> None:
    found = said(save(tmp_path / "a.png"), (0, 0, 60, 40), box)
    assert [kind for kind, _ in found] == kinds
    assert all(text == "x {:g}, y {:g}, {:g} x {:g} in 60 x 40".format(*box) for _, text in found)


def test_files_that_stop_a_run_are_distinguished(tmp_path: Path) -> None:
    whole = save(tmp_path / "whole.jpg").read_bytes()
    (tmp_path / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "empty.jpg").touch()
    (tmp_path / "page.jpg").write_text("<html>404</html>")
    (tmp_path / "folder.jpg").mkdir()
    (tmp_path / "link.jpg").symlink_to("nowhere")
    Image.new("F", (20, 20)).save(tmp_path / "float.tif")
    found = {path.name: said(path) for path in sorted(tmp_path.iterdir())} | {"none.jpg": said(tmp_path / "none.jpg")}
    assert found.pop("whole.jpg") == []
    ((kind, reason),) = found.pop("cut.jpg")
    assert kind is Kind.TRUNCATED and reason.endswith(f"({len(whole) // 2:,} bytes)")
    ((kind, reason),) = found.pop("float.tif")
    assert kind is Kind.UNDECODABLE and reason.startswith("pixels are floating-point numbers of unknown range")
    assert found == {
        "empty.jpg": [(Kind.UNDECODABLE, "not an image (0 bytes)")],
        "page.jpg": [(Kind.UNDECODABLE, "not an image (16 bytes)")],
        "folder.jpg": [(Kind.MISSING, "")],
        "link.jpg": [(Kind.MISSING, "")],
        "none.jpg": [(Kind.MISSING, "")],
    }


def test_defects_are_the_files_that_loaders_refuse(tmp_path: Path) -> None:
    data = save(tmp_path / "whole.jpg").read_bytes()
    refused = []
    for length in range(0, len(data) + 1, len(data) // 20):
        path = tmp_path / f"{length}.jpg"
        path.write_bytes(data[:length])
        try:
            read_image(path)
        except CxlpError:
            refused.append(length)
        assert any(kind.stops for kind, _ in said(path)) == (length in refused)
    assert len(refused) >= 19


def test_a_decoder_that_raises_anything_is_a_defect(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inspection, "decode", Mock(side_effect=IndexError))
    ((kind, reason),) = said(save(tmp_path / "a.png"))
    assert kind is Kind.UNDECODABLE and reason.startswith("IndexError (")


def test_different_contents_have_different_digests(tmp_path: Path) -> None:
    one, same = save(tmp_path / "a.png"), save(tmp_path / "b.png")
    other = save(tmp_path / "c.png", "L")
    digests = [inspect_image(path)[1] for path in (one, same, other)]
    assert digests[0] == digests[1] != digests[2]


def test_findings_name_the_file(tmp_path: Path) -> None:
    path = save(tmp_path / "a.jpg", "L")
    assert inspect_image(path)[0] == [Finding(Kind.COLOURS, str(path), "mode L")]


@pytest.mark.parametrize("name", ["a.jpg", "a.png", "progressive.jpg"])
def test_a_file_is_opened_and_decoded_once(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    path = save(tmp_path / name, progressive=name == "progressive.jpg")
    opening, again = Mock(wraps=Image.open), Mock(wraps=decode_all)
    monkeypatch.setattr(Image, "open", opening)
    monkeypatch.setattr(inspection, "decode_all", again)
    assert said(path) == []
    assert opening.call_count == 1
    assert again.call_count == (name == "progressive.jpg"), "libjpeg reads the data that OpenCV has not decoded"
