"""Listing images: by name or content, through links; all other files are counted."""

import os
from collections import Counter
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
from PIL import Image

from cxlp.data.decode import read_image
from cxlp.data.folder import Folder
from cxlp.data.listing import is_picture, pictures
from cxlp.utils.errors import CxlpError
from tests.data.folders import fill, names


def test_nested_and_uppercase_files_are_found_and_all_others_are_counted(tmp_path: Path) -> None:
    root = fill(
        tmp_path,
        *("train/a/1.JPG", "train/a/deep/er/2.Png", "train/b/1.png", "test/a/3.webp"),
        *("train/a/._1.jpg", "train/a/.thumbnails/1.jpg", "train/.git/x/1.png", "train/a/@eaDir/1.jpg/thumb.jpg"),
        *("loose.png", "train/loose.png", "predict/1.png", "predict/a/2.png", "train/a/1.jpg.part.png"),
    )
    for file in ("train/a/notes.txt", "train/a/table", "README.md", "train/b/2.txt", "__MACOSX"):
        (root / file).write_text("no image")
    (root / "train/a/1.jpg.part.png").rename(root / "train/a/1.jpg.part")
    (root / "train/a/folder.png").mkdir()
    module = Folder(root)
    classes, samples = module.read()
    assert classes == ("a", "b")
    assert names(samples["train"], root) == ["train/a/1.JPG", "train/a/deep/er/2.Png", "train/b/1.png"]
    assert names(samples["test"], root) == ["test/a/3.webp"]
    assert module.left_out == {
        "hidden": 5,
        "outside class folders (.png)": 2,
        "outside class folders (.md)": 1,
        "in predict, beside the splits": 2,
        "backups or partial files": 1,
        "non-image (.txt)": 2,
        "non-image (no suffix)": 1,
    }
    files = sum(path.is_file() for path in root.rglob("*"))
    assert files == sum(map(len, samples.values())) + module.left_out.total()
    (line,) = module.remarks()
    assert line.startswith(
        f"left out of {root}: 1 backups or partial files, 5 hidden, 2 in predict, beside the splits, "
    )


@pytest.mark.parametrize(
    ("name", "form"),
    [
        *(("a.jfif", "JPEG"), ("a.JPE", "JPEG"), ("a.pgm", "PPM"), ("a.avif", "AVIF"), ("a.jpg_large", "JPEG")),
        *(("a", "JPEG"), ("a", "PNG"), ("a.jp2", "JPEG2000"), ("a.tga", "TGA"), ("a.jpg?w=300", "WEBP")),
        *(("photo.2020-05-01", "GIF"), ("a.apng", "PNG"), ("a.dib", "BMP")),
    ],
)
def test_whatever_pillow_reads_is_an_image(tmp_path: Path, name: str, form: str) -> None:
    root = fill(tmp_path, "train/k/1.png", "test/k/1.png")
    Image.new("RGB", (4, 4), (9, 99, 199)).save(root / "train" / "k" / name, form)
    module = Folder(root)
    found = {sample.path.name: sample.path for sample in module.read()[1]["train"]}
    assert found.keys() == {"1.png", name} and not module.left_out
    assert read_image(found[name]).shape == (4, 4, 3)


def test_raw_camera_files_are_not_images_despite_their_previews(tmp_path: Path) -> None:
    root = fill(tmp_path, "train/k/1.png", "test/k/1.png")
    Image.new("RGB", (4, 4)).save(root / "train" / "k" / "a.nef", "TIFF")
    module = Folder(root)
    module.read()
    assert module.left_out == {"non-image (.nef)": 1}


def test_links_are_followed_but_not_in_circles(tmp_path: Path) -> None:
    root = fill(tmp_path / "root", "train/a/1.png", "train/b/1.png", "test/a/2.png")
    elsewhere = fill(tmp_path / "elsewhere", "3.png", "deep/4.png")
    (root / "train" / "a" / "more").symlink_to(elsewhere)
    (root / "train" / "a" / "loop").symlink_to("..")
    (elsewhere / "deep" / "back").symlink_to(root / "train" / "a")  # through another folder
    (root / "train" / "a" / "note").symlink_to("1.png")
    module = Folder(root, image_size=8)
    _, samples = module.read()
    assert names(samples["train"], root) == [
        *("train/a/1.png", "train/a/more/3.png", "train/a/more/deep/4.png", "train/a/note"),
        "train/b/1.png",
    ]
    assert module.left_out == {"links to folders that contain them": 1, "links to folders that were already read": 1}


def test_no_folder_is_read_twice_through_links(tmp_path: Path) -> None:
    root = fill(tmp_path, "cat/1.png", *(f"cat/{i}/1.png" for i in range(7)), "dog/1.png")
    for folder in ("cat", *(f"cat/{i}" for i in range(7))):
        for i in range(7):
            (root / folder / f"to {i}").symlink_to(root / "cat" / f"{i}")
    left_out: Counter[str] = Counter()
    files = [root / "cat" / "1.png", *(root / "cat" / f"{i}" / "1.png" for i in range(7))]
    assert pictures(root / "cat", left_out) == sorted(files)
    assert left_out.total() == 8 * 7
    (root / "cat" / "more").symlink_to("../dog")
    (root / "dog" / "more").symlink_to("../cat")
    fill(root, *(f"{c}/{i}.png" for c in ("cat", "dog") for i in range(2, 5)))
    with pytest.raises(CxlpError, match=r"/1\.png and .*/1\.png are the same file, under two classes"):
        Folder(root, image_size=8).setup()


@pytest.mark.parametrize("closed", [False, True])
def test_a_broken_link_does_not_hide_its_folder(tmp_path: Path, closed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    root = fill(tmp_path, "train/a/1.png", "train/b/1.png", "test/a/2.png")
    (root / "train" / "a" / "loop.png").symlink_to("loop.png")
    (root / "train" / "a" / "loop.txt").symlink_to("loop.txt")
    if closed:  # the result for a link into a folder that this process may not read
        stat = os.stat

        def refusing(path: Any, *rest: Any, **options: Any) -> Any:
            if str(path).endswith(("loop.png", "loop.txt")) and options.get("follow_symlinks", True):
                raise PermissionError(13, "Permission denied")
            return stat(path, *rest, **options)

        monkeypatch.setattr(os, "stat", refusing)
    module = Folder(root, image_size=8)
    with pytest.raises(CxlpError, match=r"1 of 4 images are missing, such as .*loop\.png"):
        module.setup()
    assert module.left_out == {"broken links": 1}


def test_a_hidden_link_is_not_followed(tmp_path: Path) -> None:
    root = fill(tmp_path / "root", "train/a/1.png", "test/a/2.png")
    (root / "train" / "a" / ".cache").symlink_to(fill(tmp_path / "large", *(f"{i}.png" for i in range(5))))
    (root / "other").symlink_to(tmp_path / "large")
    module = Folder(root)
    module.read()
    assert module.left_out == {"hidden": 1, "in other, beside the splits": 1}


@pytest.mark.parametrize(
    "text", ["P1 was photographed", "P1 1 2", "P6 12 12 255", "Pf 1 1", "BMW is a car", "GIF89a", "RIFFRAFFWEBP", "\n"]
)
def test_text_files_are_never_images(tmp_path: Path, text: str) -> None:
    fill(tmp_path, "1.png")
    for name in ("notes.txt", "ids.csv", "README"):
        (tmp_path / name).write_text(text)
    left_out: Counter[str] = Counter()
    assert pictures(tmp_path, left_out) == [tmp_path / "1.png"] and left_out.total() == 3


def test_a_file_that_may_not_be_read_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "open", Mock(side_effect=PermissionError(13, "Permission denied")))
    (tmp_path / "ids.csv").write_text("1")
    with pytest.raises(CxlpError, match=r"cannot read .*ids\.csv: Permission denied"):
        pictures(tmp_path, Counter())
    assert is_picture(tmp_path / "ids.csv"), "a command that continues after errors reports it"


@pytest.mark.parametrize("name", ["2.png", "annexed", "2.JFIF"])
def test_a_broken_link_is_a_missing_image(tmp_path: Path, name: str) -> None:
    root = fill(tmp_path, "train/a/1.png", "train/b/1.png", "test/a/2.png")
    (root / "train" / "a" / name).symlink_to("../../.git/annex/objects/1")
    with pytest.raises(CxlpError, match=rf"1 of 4 images are missing, such as .*{name} \(a link to .*objects/1, wh"):
        Folder(root, image_size=8).setup()
    (root / "train" / "a" / name).rename(root / "train" / "class")
    if "." not in name:
        with pytest.raises(CxlpError, match=r"train/class is a link to .*objects/1, .*: fetch it"):
            Folder(root).read()


def test_folders_that_cannot_be_listed_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = fill(tmp_path, "train/a/1.png", "train/a/session/2.png", "test/a/2.png")
    scandir = os.scandir

    def closed(path: Path) -> Any:
        if Path(path).name == "session":
            raise PermissionError(13, "Permission denied")
        return scandir(path)

    monkeypatch.setattr(os, "scandir", closed)
    with pytest.raises(CxlpError, match=r"cannot list .*/train/a/session: Permission denied"):
        Folder(root).read()
    for flat in ("session", "open"):
        fill(root / "flat", *(f"{flat}/{i}.png" for i in range(5)))
    with pytest.raises(CxlpError, match=r"cannot list .*/flat/session: Permission denied"):
        Folder(root / "flat").read()
