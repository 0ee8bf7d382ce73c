"""Files that are missing or broken: named before a run's first pass, or left out."""

from pathlib import Path
from typing import Any

import pytest

from cxlp.data.folder import Folder
from cxlp.utils.errors import CxlpError
from tests.data.listed import ready
from tests.generate import write_folder


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
    data = module(root)  # a script of one's own reads what it needs
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


def test_what_is_held_out_is_drawn_of_what_is_left(tmp_path: Path) -> None:
    root = write_folder(tmp_path, size=16)
    for path in (root / "train" / "kind0").iterdir():
        if path.stem not in ("00", "01"):
            cut(path)
    data = module(root, on_broken="skip", validation=0.5)
    assert sorted(s.label for split in ("train", "val") for s in data.splits[split].samples).count(0) == 2


def test_not_everything_is_left_out(tmp_path: Path) -> None:
    root = write_folder(tmp_path / "mine", size=16)
    for path in root.rglob("test/**/*.png"):
        path.write_bytes(b"")
    with pytest.raises(CxlpError, match=r"mine: no image of test can be used:\n  cannot decode image .* \(0 bytes\)"):
        module(root, on_broken="skip")
    with pytest.raises(CxlpError, match=r"data\.on_broken is 'ignore': it must be stop or skip"):
        ready(root, on_broken="ignore")


def test_a_class_whose_training_images_are_all_broken_is_named(tmp_path: Path) -> None:
    root = write_folder(tmp_path, size=16)
    for path in (root / "train" / "kind0").iterdir():
        cut(path)
    with pytest.raises(CxlpError, match="no training image of 1 of 3 classes: kind0"):
        module(root, on_broken="skip")
