"""From arguments to image files: order, depth, patterns, stdin, and missing files."""

import itertools
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

from cxlp.deploy.image_paths import image_paths


@pytest.fixture
def shots(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with images at several depths, and other files."""
    images = ("b.JPG", "a/z.png", "a/y/x.webp", "a/[1].tif", "ä ö.jpeg")
    for name in (*images, "notes.txt", ".hidden.jpg", ".thumbs/t.jpg"):
        path = tmp_path / "shots" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    (tmp_path / "empty").mkdir()
    (tmp_path / "shots" / "gone.jpg").symlink_to("nowhere.jpg")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_folders_are_searched_in_order(shots: Path) -> None:
    (shots / "shots" / "loop").symlink_to(shots / "shots")
    inside = ["a/[1].tif", "a/y/x.webp", "a/z.png", "b.JPG", "gone.jpg", "ä ö.jpeg"]
    assert list(image_paths(["shots"], ())) == [f"shots/{name}" for name in inside]
    assert list(image_paths([str(shots / "shots")], ())) == [str(shots / "shots" / name) for name in inside]


def test_images_with_any_name_are_found(tmp_path: Path) -> None:
    for name in ("a.jfif", "b", "c.jpg_large", "notes"):
        (tmp_path / name).write_text("no picture")
    for name in ("b", "c.jpg_large"):
        Image.new("RGB", (4, 4)).save(tmp_path / name, "JPEG")
    assert list(image_paths([str(tmp_path)], ())) == [str(tmp_path / name) for name in ("a.jfif", "b", "c.jpg_large")]


def test_named_files_are_always_yielded(shots: Path) -> None:
    given = ["shots/notes.txt", "shots/.hidden.jpg", "none.jpg", "shots/b.JPG", "shots/b.JPG"]
    assert list(image_paths(given, ())) == given


def test_patterns(shots: Path) -> None:
    assert list(image_paths(["shots/**/*.png", "shots/?.JPG"], ())) == ["shots/a/z.png", "shots/b.JPG"]
    assert list(image_paths(["shots/[ab]"], ())) == ["shots/a/[1].tif", "shots/a/y/x.webp", "shots/a/z.png"]
    assert list(image_paths(["shots/a/[1].tif"], ())) == ["shots/a/[1].tif"], "a name that looks like a pattern"
    assert list(image_paths(["none/*.jpg"], ())) == ["none/*.jpg"], (
        "it is returned, so that opening it raises the error"
    )


def test_folders_without_images_are_returned(shots: Path) -> None:
    assert list(image_paths(["empty", "shots/.thumbs", "shots/a/y"], ())) == [
        "empty",
        "shots/.thumbs/t.jpg",
        "shots/a/y/x.webp",
    ]


def test_lines(shots: Path) -> None:
    lines = ["shots/b.JPG\n", "\n", " shots with blank \r\n", "shots/a/y\n", "*.jpg"]
    assert list(image_paths(["first.jpg", "-", "last.jpg"], lines)) == [
        "first.jpg",
        "shots/b.JPG",
        " shots with blank ",
        "shots/a/y/x.webp",
        "*.jpg",
        "last.jpg",
    ]


def test_lines_are_read_lazily() -> None:
    def endless() -> Iterator[str]:
        for k in itertools.count():
            assert k < 3
            yield f"{k}.jpg\n"

    assert list(itertools.islice(image_paths(["-"], endless()), 3)) == ["0.jpg", "1.jpg", "2.jpg"]
