"""Folders of one's own: both layouts, what is an image, and what is said about odd ones."""

from pathlib import Path

import numpy as np
import pytest

from cxlp.data.dataset import Sample
from cxlp.data.folder import Folder
from cxlp.utils.errors import CxlpError
from tests.generate import write_folder, write_image

DOT = np.zeros((4, 4, 3), np.uint8)


def fill(root: Path, *files: str) -> Path:
    for file in files:
        write_image(root / file, DOT)
    return root


def names(samples: list[Sample], root: Path) -> list[str]:
    return [sample.path.relative_to(root).as_posix() for sample in samples]


def test_given_split_is_kept(tmp_path: Path) -> None:
    root = write_folder(tmp_path / "mine", classes=3, train=4, test=2, size=16)
    classes, samples = Folder(root).read()
    assert classes == ("kind0", "kind1", "kind2")
    for split, count in (("train", 4), ("test", 2)):
        part = samples["train"] if split == "train" else samples["test"]
        expected = [f"{split}/kind{k}/{i:02d}.png" for k in range(3) for i in range(count)]
        assert names(part, root) == expected
        assert [sample.label for sample in part] == [k for k in range(3) for _ in range(count)]


def test_split_is_made_class_by_class_and_is_the_same_in_every_run(tmp_path: Path) -> None:
    root = fill(tmp_path, *(f"{c}/{i}.png" for c, n in (("few", 5), ("many", 20)) for i in range(n)))
    classes, samples = Folder(root).read()
    assert classes == ("few", "many")
    assert [sum(s.label == k for s in samples["test"]) for k in (0, 1)] == [1, 4]
    assert [sum(s.label == k for s in samples["train"]) for k in (0, 1)] == [4, 16]
    everything = samples["train"] + samples["test"]
    assert len({sample.path for sample in everything}) == 25
    assert all(classes.index(sample.path.parent.name) == sample.label for sample in everything)
    # The run's seed draws augmentations and the validation part, never the test set.
    assert Folder(root, split_seed=5).read() == (classes, samples)


def test_test_fraction_is_used(tmp_path: Path) -> None:
    root = fill(tmp_path, *(f"{c}/{i}.png" for c in "ab" for i in range(10)))
    assert len(Folder(root, test_fraction=0.5).read()[1]["test"]) == 10


@pytest.mark.parametrize("fraction", [0.0, 1.0, -0.2, 3])
def test_test_fraction_out_of_range_is_refused(tmp_path: Path, fraction: float) -> None:
    with pytest.raises(CxlpError, match=f"test_fraction is {fraction}"):
        Folder(tmp_path, test_fraction=fraction)


def test_nested_and_uppercase_files_are_found_and_hidden_or_other_ones_are_not(tmp_path: Path) -> None:
    root = fill(
        tmp_path,
        "train/a/1.JPG",
        "train/a/deep/er/2.Png",
        "train/a/._1.jpg",
        "train/a/.thumbnails/1.jpg",
        "train/.git/x/1.png",
        "test/a/3.webp",
    )
    (root / "train/a/notes.txt").write_text("no image")
    (root / "train/a/folder.png").mkdir()
    (root / "train/README.md").write_text("no class")
    classes, samples = Folder(root).read()
    assert classes == ("a",)
    assert names(samples["train"], root) == ["train/a/1.JPG", "train/a/deep/er/2.Png"]
    assert names(samples["test"], root) == ["test/a/3.webp"]


def test_hidden_parent_does_not_hide_the_images(tmp_path: Path) -> None:
    root = write_folder(tmp_path / ".cache" / "mine", size=8)
    assert len(Folder(root).read()[1]["train"]) == 18


def test_names_may_hold_spaces_and_other_letters(tmp_path: Path) -> None:
    root = fill(tmp_path, "train/élan vital/eins zwei.png", "test/élan vital/ß.png", "train/ö/1.png")
    module = Folder(root, image_size=8)
    module.setup()
    assert module.classes == ("élan vital", "ö")
    assert module.splits["test"][0]["image"].shape == (3, 8, 8)


def test_class_without_test_images_is_allowed(tmp_path: Path) -> None:
    classes, samples = Folder(fill(tmp_path, "train/a/1.png", "train/b/1.png", "test/b/2.png")).read()
    assert classes == ("a", "b")
    assert [sample.label for sample in samples["test"]] == [1]


def test_missing_root_says_where_it_looked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CxlpError, match="expected mine/train/<class>") as caught:
        Folder("mine").setup()
    assert str(tmp_path / "mine") in str(caught.value), "the absolute path: it may be the wrong working folder"
    assert "demo.yaml" in str(caught.value)


def test_a_file_for_a_root_is_called_one(tmp_path: Path) -> None:
    (tmp_path / "mine.zip").write_text("")
    with pytest.raises(CxlpError, match=r"mine\.zip is a file, no folder; expected"):
        Folder(tmp_path / "mine.zip").read()


@pytest.mark.parametrize("split", ["train/", ""])
def test_empty_class_folders_are_named(tmp_path: Path, split: str) -> None:
    files = [f"{split}{c}/{i}.png" for c in "ab" for i in range(5)]
    root = fill(tmp_path, *files, *(["test/a/9.png"] if split else []))
    (root / split / "c").mkdir()
    with pytest.raises(CxlpError, match=f"no images in {root}/{split}c: fill or remove"):
        Folder(root).read()


@pytest.mark.parametrize(("there", "other"), [("train", "test"), ("test", "train")])
def test_half_a_split_is_refused(tmp_path: Path, there: str, other: str) -> None:
    with pytest.raises(CxlpError, match=f"has {there} but not both"):
        Folder(fill(tmp_path, f"{there}/a/1.png")).read()
    (tmp_path / other).mkdir()  # now it is there, but empty
    with pytest.raises(CxlpError):
        Folder(tmp_path, image_size=8).setup()


def test_class_that_is_only_in_test_is_named(tmp_path: Path) -> None:
    with pytest.raises(CxlpError, match="test has classes that train has not: stranger"):
        Folder(fill(tmp_path, "train/a/1.png", "test/a/1.png", "test/stranger/1.png")).read()


def test_folder_without_classes_or_images_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CxlpError, match="no class folders"):
        Folder(tmp_path).read()
    (tmp_path / "empty").mkdir()
    with pytest.raises(CxlpError, match="there are no training images"):
        Folder(tmp_path, image_size=8).setup()
    fill(tmp_path, "full/1.png", "full/2.png", "full/3.png")
    with pytest.raises(CxlpError, match="empty"):
        Folder(tmp_path, image_size=8).setup()


def test_class_of_one_image_cannot_be_split_and_is_named(tmp_path: Path) -> None:
    fill(tmp_path, "lonely/1.png", *(f"many/{i}.png" for i in range(9)))
    with pytest.raises(CxlpError, match="the rarest, 'lonely', has 1"):
        Folder(tmp_path).read()
