"""Missing and broken files: reported before the first pass of a run, or left out."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from cxlp.data.checking import check
from cxlp.data.decode import read_image
from cxlp.data.folder import Folder
from cxlp.data.table import Table
from cxlp.utils.errors import CxlpError
from tests.data.listed import ready
from tests.generate import write_folder, write_image


def cut(path: Path) -> None:
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])


def module(root: Path, **options: Any) -> Folder:
    found = Folder(root, image_size=8, **options)
    found.setup()
    return found


def test_all_broken_files_of_all_splits_are_named_at_once(tmp_path: Path) -> None:
    root = write_folder(tmp_path / "mine", size=16)
    broken = [root / "test" / "kind1" / "00.png", root / "train" / "kind0" / "01.png"]
    for path in broken:
        cut(path)
    data = module(root)  # a user's own script reads only the files that it needs
    for ask in (lambda: data.fingerprints("train"), lambda: data.digest("test")):
        with pytest.raises(CxlpError, match=r"mine: 2 of 27 files cannot be used \(data.on_broken: skip") as caught:
            ask()
        _, *lines = str(caught.value).splitlines()
        assert [line.split(" (")[0] for line in lines] == [f"  cannot decode image {path}" for path in broken]


def test_a_long_list_is_cut(tmp_path: Path) -> None:
    root = write_folder(tmp_path, size=16)
    for path in root.rglob("train/**/*.png"):
        cut(path)
    with pytest.raises(CxlpError, match="18 of 27 files") as caught:
        module(root).fingerprints("test")
    assert str(caught.value).splitlines()[-1] == "  and 8 more" and str(caught.value).count("\n") == 11


def test_broken_files_can_be_left_out(tmp_path: Path) -> None:
    root = write_folder(tmp_path / "mine", size=16)
    whole = module(root)
    broken = [root / "test" / "kind1" / "00.png", root / "train" / "kind0" / "01.png"]
    for path in broken:
        cut(path)
    (root / "train" / "kind2" / "gone.png").symlink_to("nowhere.png")
    data = module(root, on_broken="skip")
    assert [len(data.splits[split]) for split in ("train", "test")] == [17, 8]
    left = {s.path for part in data.splits.values() for s in part.samples}
    assert left == {s.path for part in whole.splits.values() for s in part.samples} - {*broken}
    assert data.left_out == {"broken": 2, "missing": 1} and [*sorted(data.broken)][:2] == broken
    said = data.remarks()[0].splitlines()
    assert said[0] == "warning: 3 files are left out:" and len(said) == 4
    assert said[3] == f"  image not found: {root / 'train' / 'kind2' / 'gone.png'}"
    assert len(data.fingerprints("train")) == 17
    with pytest.raises(CxlpError, match=r"1 of 28 images are missing, such as .*gone\.png \(a link"):
        module(root)


def test_held_out_images_are_drawn_from_readable_ones(tmp_path: Path) -> None:
    root = write_folder(tmp_path, size=16)
    for path in (root / "train" / "kind0").iterdir():
        if path.stem not in ("00", "01"):
            cut(path)
    data = module(root, on_broken="skip", validation=0.5)
    assert sorted(s.label for split in ("train", "val") for s in data.splits[split].samples).count(0) == 2


def test_leaving_out_all_images_is_refused(tmp_path: Path) -> None:
    root = write_folder(tmp_path / "mine", size=16)
    for path in root.rglob("test/**/*.png"):
        path.write_bytes(b"")
    with pytest.raises(
        CxlpError, match=r"mine: no image of test can be used. Files that are left out:\n  cannot decode .* \(0 bytes\)"
    ):
        module(root, on_broken="skip")
    with pytest.raises(CxlpError, match=r"data\.on_broken is 'ignore': it must be stop or skip"):
        ready(root, on_broken="ignore")


def test_files_that_the_loader_cannot_decode_are_left_out(tmp_path: Path) -> None:
    """Files with valid headers and ends, and damage in between."""
    root = write_folder(tmp_path, size=64)
    damaged = root / "train" / "kind0" / "00.png"
    data = damaged.read_bytes()
    damaged.write_bytes(data[: len(data) // 2] + bytes(500) + data[len(data) // 2 + 500 :])
    tables = root / "train" / "kind1" / "tables.jpg"
    Image.open(root / "train" / "kind1" / "00.png").save(tables)
    data = tables.read_bytes()
    start = data.index(b"\xff\xc4") + 5
    tables.write_bytes(data[:start] + b"\xee" * 20 + data[start + 20 :])
    for path in (damaged, tables):
        with pytest.raises(CxlpError, match="cannot decode"):
            read_image(path)
    kept = module(root, on_broken="skip")
    assert kept.broken.keys() == {damaged, tables}
    for sample in kept.splits["train"].samples:
        read_image(sample.path)
    with pytest.raises(CxlpError, match=r"(?s)1 of 28 files cannot be used.*kind0/00\.png"):
        module(root).fingerprints("train")  # which checks checksums, not tables


def test_boxes_outside_the_image_are_broken_samples(tmp_path: Path) -> None:
    rows = []
    for i in range(8):
        write_image(tmp_path / f"{i}.png", np.full((20, 20, 3), i, np.uint8))
        rows.append(f"{i}.png,{i % 2},{'test' if i > 3 else 'train'},{500 if i == 0 else 2},0,9,9")
    rows.append("0.png,0,train,0,0,9,9")
    table = tmp_path / "a.csv"
    table.write_text("\n".join(["path,label,split,x,y,w,h", *rows]))
    data = Table(table, image_size=8)
    data.setup()
    with pytest.raises(
        CxlpError, match=r"1 of 8 files .*\n  the box 500 0 9 9 lies outside of image .*0\.png, which has"
    ):
        data.fingerprints("train")
    data = Table(table, image_size=8, on_broken="skip")
    data.setup()
    assert [s.box for s in data.splits["train"].samples if s.path.stem == "0"] == [(0.0, 0.0, 9.0, 9.0)]
    assert data.broken.keys() == {tmp_path / "0.png"}


def test_a_name_that_no_file_can_have_is_missing(tmp_path: Path) -> None:
    rows = [f"{i}.png,{i % 2}" for i in range(8)]
    for i in range(8):
        write_image(tmp_path / f"{i}.png", np.full((8, 8, 3), i, np.uint8))
    table = tmp_path / "a.csv"
    table.write_text("\n".join(["path,label", *rows, "a\0b.png,1"]))
    data = Table(table, on_broken="skip")
    data.setup()
    assert data.left_out == {"missing": 1}
    assert check(data, workers=1).defects == 1


def test_unused_validation_images_may_all_be_broken(tmp_path: Path) -> None:
    root = write_folder(tmp_path, size=16)
    for k in range(3):
        (root / "val" / f"kind{k}").mkdir(parents=True)
        (root / "val" / f"kind{k}" / "a.png").write_bytes(b"")
    assert len(module(root, on_broken="skip", validation=0).broken) == 3
    with pytest.raises(CxlpError, match="no image of val can be used"):
        module(root, on_broken="skip")


def test_a_class_whose_training_images_are_all_broken_is_named(tmp_path: Path) -> None:
    root = write_folder(tmp_path, size=16)
    for path in (root / "train" / "kind0").iterdir():
        cut(path)
    with pytest.raises(
        CxlpError, match=r"(?s)no training image of 1 of 3 classes: kind0\..*left out:\n.*kind0/00\.png"
    ):
        module(root, on_broken="skip")
