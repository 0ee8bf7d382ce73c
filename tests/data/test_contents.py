"""Images are recognised by content, so that no run is tested on its own training images."""

import hashlib
import re
import shutil
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from PIL import Image

from cxlp.data import datamodule
from cxlp.data.contents import Content, read_content, read_contents
from cxlp.data.cub200 import CUB200
from cxlp.data.decode import read_image
from cxlp.data.folder import Folder
from cxlp.utils import progress
from tests.editing import edit_line
from tests.generate import write_folder


def ready(root: Path) -> Folder:
    module = Folder(root)
    module.setup()
    return module


def seen_by(root: Path, earlier: Path) -> int:
    """Count the test images of one folder on which a run on another folder was trained."""
    return int(torch.isin(ready(root).fingerprints("test"), ready(earlier).fingerprints("train")).sum())


def test_training_images_are_recognised_in_another_root_position_or_split(tmp_path: Path) -> None:
    root = write_folder(tmp_path / "a", train=5, test=2, size=8)
    shutil.copytree(root, tmp_path / "moved" / "b")
    assert seen_by(tmp_path / "moved" / "b", root) == 0
    assert seen_by(root / "train", root) == 3, "a deeper root, whose test images are a fifth"
    swapped = tmp_path / "swapped"
    shutil.copytree(root / "train", swapped / "test")
    shutil.copytree(root / "test", swapped / "train")
    assert seen_by(swapped, root) == 15
    renamed = tmp_path / "renamed"
    shutil.copytree(root, renamed)
    (renamed / "train" / "kind1" / "03.png").rename(renamed / "test" / "kind1" / "new name.png")
    assert seen_by(renamed, root) == 1


def test_test_images_that_are_training_images_are_reported_after_reading(tmp_path: Path) -> None:
    root = write_folder(tmp_path, size=8)
    shutil.copy(root / "train" / "kind0" / "00.png", root / "test" / "kind0" / "copy.png")
    shutil.copy(root / "train" / "kind0" / "01.png", root / "test" / "kind1" / "01.png")
    module = Folder(root)
    module.read()
    assert module.remarks() == []
    module.setup()
    assert module.remarks() == []
    assert module.count_trained_test_images() == 2
    assert module.remarks() == ["warning: 2 test images have the same content as training images"]
    del module.splits["test"].samples[:]
    assert module.remarks() == []


def test_a_bar_is_shown_if_reading_takes_long(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    module = ready(write_folder(tmp_path, size=8))
    module.fingerprints("test")
    assert capsys.readouterr().err == "", "it is fast"
    monkeypatch.setattr(progress, "PAUSE", 0.0)
    module = ready(tmp_path)
    module.fingerprints("train")
    assert "Reading images:" in capsys.readouterr().err
    module = ready(tmp_path)
    module.progress = False
    module.fingerprints("train")
    assert capsys.readouterr().err == ""


def test_the_same_training_example_has_the_same_box_and_labels(cub200: Path) -> None:
    def labelled(bbox: bool = False) -> torch.Tensor:
        module = CUB200(cub200, bbox=bbox)
        module.setup()
        return module.fingerprints("train", labelled=True)

    plain = labelled()
    assert len(set(plain.tolist())) == 18 and torch.equal(plain, labelled())
    assert not torch.isin(labelled(bbox=True), plain).any()
    flags = (line.split() for line in (cub200 / "train_test_split.txt").read_text().splitlines())
    first = next(int(i) for i, flag in flags if flag == "1")
    edit_line(cub200 / "image_class_labels.txt", first, lambda _: f"{first} 3\r\n")
    assert int((labelled() != plain).sum()) == 1


def test_each_file_is_read_once_and_lazily(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reading = Mock(wraps=read_contents)
    monkeypatch.setattr(datamodule, "read_contents", reading)
    module = ready(write_folder(tmp_path, size=8))
    reading.assert_not_called()
    for labelled in (False, True):
        module.fingerprints("train", labelled)
        module.fingerprints("test", labelled)
    assert [len(call.args[0]) for call in reading.call_args_list if call.args[0]] == [27]


SIZES = {"jpg": -1, "png": 200, "webp": -1, "gif": 200, "bmp": 200, "tiff": 200}


@pytest.mark.parametrize("suffix", SIZES)
def test_a_truncated_file_is_found_without_decoding_intact_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str
) -> None:
    path = tmp_path / f"a.{suffix}"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 50, 3), np.uint8)).save(path)
    decoded = Mock(wraps=read_image)
    size = (50, 40)
    monkeypatch.setattr("cxlp.data.contents.read_image", decoded)
    whole = read_content(path)
    assert whole == Content(hashlib.sha256(path.read_bytes()).digest(), size=size)
    assert decoded.called == (suffix in ("webp", "gif", "bmp", "tiff")), "these formats have no checksums"
    path.write_bytes(path.read_bytes()[: SIZES[suffix]])
    cut = read_content(path)
    assert cut.digest != whole.digest and re.match(rf"cannot decode image {path} \(\d+ bytes\): ", cut.defect)


def test_trailing_bytes_and_metadata_do_not_break_an_image(tmp_path: Path) -> None:
    for suffix in ("jpg", "png"):
        path = tmp_path / f"a.{suffix}"
        Image.fromarray(np.zeros((40, 50, 3), np.uint8)).save(path)
        path.write_bytes(path.read_bytes() + b"\0" * 64)
        assert read_content(path).defect == ""
    bad = tmp_path / "b.png"
    Image.fromarray(np.zeros((4, 4, 3), np.uint8)).save(bad)
    data = bad.read_bytes()
    bad.write_bytes(data[:33] + b"\0\0\0\x01eXIf?\0\0\0\0" + data[33:])  # a wrong checksum, but of metadata only
    assert read_content(bad).defect == ""


@pytest.mark.parametrize(
    ("content", "said"), [(b"", "cannot decode"), (b"no picture", "cannot decode"), (None, "not found")]
)
def test_files_that_are_not_images_are_named(tmp_path: Path, content: bytes | None, said: str) -> None:
    if content is not None:
        (tmp_path / "a.jpg").write_bytes(content)
    assert said in read_content(tmp_path / "a.jpg").defect


def test_lists_may_contain_absolute_paths(cub200: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(cub200.parent)
    before = CUB200(cub200.name)
    before.setup()
    lines = (line.split(" ", 1) for line in (cub200 / "images.txt").read_text().splitlines())
    (cub200 / "images.txt").write_text("".join(f"{i} {cub200 / 'images' / name}\n" for i, name in lines))
    module = CUB200(cub200.name)
    module.setup()
    assert module.digest("train") == before.digest("train")
    assert torch.equal(module.fingerprints("train"), before.fingerprints("train"))
