"""A user's own folders: both layouts, recognition of images, and messages about odd ones."""

import shutil
from pathlib import Path

import pytest

from cxlp.data.folder import Folder
from cxlp.utils.errors import CxlpError
from tests.data.folders import fill, names
from tests.generate import write_folder


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
    # The run's seed determines augmentation and the validation split, never the test set.
    assert Folder(root, split_seed=5).read() == (classes, samples)


def test_test_fraction_is_used(tmp_path: Path) -> None:
    root = fill(tmp_path, *(f"{c}/{i}.png" for c in "ab" for i in range(10)))
    assert len(Folder(root, test_fraction=0.5).read()[1]["test"]) == 10


@pytest.mark.parametrize("fraction", [0.0, 1.0, -0.2, 3])
def test_test_fraction_out_of_range_is_refused(tmp_path: Path, fraction: float) -> None:
    with pytest.raises(CxlpError, match=f"test_fraction is {fraction}"):
        Folder(tmp_path, test_fraction=fraction)


def test_val_is_held_out_or_used_as_test(tmp_path: Path) -> None:
    root = fill(tmp_path, *(f"{split}/{c}/1.png" for split in ("train", "valid", "test") for c in "ab"))
    renamed, held_out = (
        "warning: folders used as splits because of their names: valid (val)",
        f"held out: the 2 validation images of {root.name} (to train on them, set data.validation: 0)",
    )
    parts, said = {}, {}
    for validation in ("auto", "official", 0.1, 0):
        module = Folder(root, image_size=8, validation=validation)
        module.setup()
        parts[validation] = {split: names(data.samples, root) for split, data in module.splits.items()}
        said[validation] = module.remarks()
    assert (
        parts["auto"]
        == parts["official"]
        == {s: [f"{f}/a/1.png", f"{f}/b/1.png"] for s, f in (("train", "train"), ("val", "valid"), ("test", "test"))}
    )
    not_drawn = held_out.replace(" (", ", not 0.1 of the training images (")  # which an explicit fraction asks for
    assert said == {
        "auto": [renamed, held_out],
        "official": [renamed, held_out],
        0.1: [renamed, not_drawn],
        0: [renamed],
    }
    assert parts[0]["train"] == parts["auto"]["train"] + parts["auto"]["val"] and parts[0]["val"] == []
    shutil.rmtree(root / "test")
    module = Folder(root, image_size=8)
    module.setup()
    assert names(module.splits["test"].samples, root) == ["valid/a/1.png", "valid/b/1.png"]
    assert names(module.splits["train"].samples, root) == ["train/a/1.png", "train/b/1.png"]
    assert module.remarks() == [
        renamed,
        f"warning: there is no test folder: the test images are those of {root / 'valid'}",
    ]
    with pytest.raises(CxlpError, match="no official validation images"):
        Folder(root, image_size=8, validation="official").setup()


def test_the_data_set_has_the_name_of_its_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "birds" / "sub").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "birds")
    assert [Folder(root).name for root in (tmp_path / "birds", ".", "sub/..", "sub", "/")] == [
        *("birds", "birds", "birds", "sub", "folder")
    ]


def test_splits_may_be_nested_once_more(tmp_path: Path) -> None:
    root = fill(tmp_path, *(f"seg_{s}/seg_{s}/{c}/1.png" for s in ("train", "test") for c in "ab"), "seg_pred/1.png")
    module = Folder(root)
    classes, samples = module.read()
    assert classes == ("a", "b") and len(samples["train"]) == len(samples["test"]) == 2
    assert module.left_out == {"in seg_pred, beside the splits": 1}


def test_extra_folders_between_split_and_class_are_skipped(tmp_path: Path) -> None:
    root = fill(tmp_path, *(f"{s}/images/{c}/1.png" for s in ("train", "test") for c in "ab"))
    assert Folder(root).read()[0] == ("a", "b")


def test_images_of_a_split_without_class_folders_have_no_labels(tmp_path: Path) -> None:
    root = fill(tmp_path, *(f"train/{c}/{i}.png" for c in "ab" for i in range(5)), "test/1.png")
    with pytest.raises(CxlpError, match=rf"no class folders in {root}/test, so .* set data.root: {root}/train"):
        Folder(root).read()
    (root / "val").mkdir()  # an empty folder is not a class
    (root / "test" / "1.png").rename(root / "val" / "1.png")
    fill(root, "test/a/1.png")
    module = Folder(root)
    assert module.read()[1].keys() == {"train", "test"} and module.left_out == {"outside class folders (.png)": 1}


def test_folders_in_classes_that_may_be_classes_are_reported(tmp_path: Path) -> None:
    root = fill(tmp_path, *(f"{s}/{c}/{i}.png" for s in ("A", "B") for c in ("cat", "dog") for i in range(5)))
    module = Folder(root)
    assert module.read()[0] == ("A", "B")
    assert module.remarks()[0].startswith("warning: the classes A, B all contain the folders cat, dog: ")
    with pytest.raises(CxlpError, match=f"one folder: .*data.root: {root / 'whole'}"):
        (root / "whole").mkdir()
        for name in "AB":
            (root / name).rename(root / "whole" / name)
        Folder(root).read()


def test_hidden_parent_does_not_hide_the_images(tmp_path: Path) -> None:
    root = write_folder(tmp_path / ".cache" / "mine", size=8)
    assert len(Folder(root).read()[1]["train"]) == 18


def test_names_may_contain_spaces_and_other_letters(tmp_path: Path) -> None:
    root = fill(tmp_path, "train/élan vital/eins zwei.png", "test/élan vital/ß.png", "train/ö/1.png")
    module = Folder(root, image_size=8)
    module.setup()
    assert module.classes == ("élan vital", "ö")
    assert module.splits["test"][0]["image"].shape == (3, 8, 8)


def test_class_without_test_images_is_allowed(tmp_path: Path) -> None:
    classes, samples = Folder(fill(tmp_path, "train/a/1.png", "train/b/1.png", "test/b/2.png")).read()
    assert classes == ("a", "b")
    assert [sample.label for sample in samples["test"]] == [1]


def test_a_missing_root_names_its_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CxlpError, match="expected mine/train/<class>") as caught:
        Folder("mine").setup()
    assert str(tmp_path / "mine") in str(caught.value), "the absolute path: the working directory may be wrong"
    assert "demo.yaml" in str(caught.value)


def test_a_root_that_is_a_file_is_reported(tmp_path: Path) -> None:
    (tmp_path / "mine.zip").write_text("")
    with pytest.raises(CxlpError, match=r"mine\.zip is a file, .*; expected"):
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
    with pytest.raises(CxlpError, match=f"has {there} but not both train and test"):
        Folder(fill(tmp_path, f"{there}/a/1.png")).read()
    (tmp_path / other).mkdir()  # now it exists, but is empty
    with pytest.raises(CxlpError):
        Folder(tmp_path, image_size=8).setup()


def test_class_that_is_only_in_test_is_named(tmp_path: Path) -> None:
    with pytest.raises(CxlpError, match=r"test has classes .* train: stranger"):
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


def test_a_class_with_one_image_cannot_be_split_and_is_named(tmp_path: Path) -> None:
    fill(tmp_path, "lonely/1.png", *(f"many/{i}.png" for i in range(9)))
    with pytest.raises(CxlpError, match="the rarest, 'lonely', has 1"):
        Folder(tmp_path).read()


def test_folders_in_classes_are_reported_within_splits(tmp_path: Path) -> None:
    root = fill(tmp_path, *(f"{s}/{k}/{c}/1.png" for s in ("train", "test") for k in ("rgb", "depth") for c in "ab"))
    module = Folder(root)
    assert module.read()[0] == ("depth", "rgb")
    assert module.remarks()[0].startswith("warning: the classes depth, rgb all contain the folders a, b: ")


def test_names_that_differ_only_in_case_or_encoding_are_reported(tmp_path: Path) -> None:
    composed, decomposed = "caf\u00e9", "cafe\u0301"
    for k, (one, other) in enumerate((("Cat", "cat"), (composed, decomposed), (composed.upper(), decomposed))):
        module = Folder(fill(tmp_path / f"flat{k}", *(f"{c}/{i}.png" for c in (one, other) for i in range(5))))
        assert len(module.read()[0]) == 2 and "differ only in case or in Unicode" in module.remarks()[0]
        split = Folder(
            fill(tmp_path / f"split{k}", *(f"{p}/1.png" for p in (f"train/{one}", f"test/{other}", "train/x")))
        )
        with pytest.raises(CxlpError, match=f"has classes .* train: {other}. They differ only in case"):
            split.read()


def test_the_same_file_is_not_in_two_splits_or_classes(tmp_path: Path) -> None:
    root = fill(tmp_path / "a", *(f"{s}/{c}/{i}.png" for s in ("train", "test") for c in "ab" for i in range(2)))

    def refused(said: str) -> None:
        with pytest.raises(CxlpError, match=said):
            Folder(root, image_size=8).setup()

    shutil.rmtree(root / "test" / "a")
    (root / "test" / "a").symlink_to("../train/a")
    refused(
        "2 images are in train and in test, such as .*train/a/0.png, which is the same file as .*test/a/0.png: keep"
    )
    (root / "test" / "a").unlink()
    (root / "test" / "a").mkdir()
    (root / "test" / "a" / "x.png").hardlink_to(root / "train" / "a" / "1.png")
    refused("1 images are in train and in test")
    shutil.rmtree(root / "test")
    (root / "test").symlink_to("train")
    refused("4 images are in train and in test")
    (root / "test").unlink()
    fill(root, "test/a/1.png", "test/b/1.png")
    (root / "train" / "c").symlink_to("a")
    refused("train/a/0.png and .*train/c/0.png are the same file, under two classes: keep one")
