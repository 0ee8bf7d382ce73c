"""Folders that are splits, under all kinds of names, are never treated as classes."""

from pathlib import Path

import pytest

from cxlp.data.folder import Folder
from cxlp.data.split_folders import find_splits
from cxlp.utils.errors import CxlpError
from tests.data.folders import fill

CLASSES = ("ant", "bee")


def folders(root: Path, *names: str, inside: tuple[str, ...] = CLASSES) -> list[Path]:
    for name in names:
        for each in inside:
            (root / name / each).mkdir(parents=True)
        (root / name).mkdir(parents=True, exist_ok=True)
    return [root / name for name in names]


def found(root: Path, *names: str, inside: tuple[str, ...] = CLASSES) -> dict[str, str]:
    splits = find_splits(folders(root, *names, inside=inside), root, "expected a layout")
    return {split: path.name for split, path in splits.items()}


@pytest.mark.parametrize(
    ("train", "test"),
    [
        ("train", "test"),
        ("Train", "Test"),
        ("TRAIN", "TEST"),
        ("training", "testing"),
        ("seg_train", "seg_test"),
        ("Training Set", "Test Set"),
        ("trainset", "testset"),
        ("train_images", "test_images"),
        ("trainingData", "testData"),
        ("cars-train", "cars-test"),
        ("train2017", "test2017"),
        ("train", "birds_test"),
        ("trainval", "test"),
        ("01_train", "02_test"),
        ("train_full", "test_small"),
        ("Trainset_A", "Testset_B"),
        ("traindir", "testdir"),
        ("my_train_old", "your_test"),
        ("TrainingSmall", "TestBig"),
        ("in-domain-train", "out-domain-test"),
        ("train_v1", "TESTImages"),
    ],
)
def test_train_and_test_by_other_names(tmp_path: Path, train: str, test: str) -> None:
    assert found(tmp_path, train, test, "notes") == {"train": train, "test": test}


@pytest.mark.parametrize("val", ["val", "valid", "Validation", "dev", "validation_set", "VAL"])
def test_validation_by_other_names(tmp_path: Path, val: str) -> None:
    assert found(tmp_path / "a", "train", val, "test") == {"train": "train", "val": val, "test": "test"}
    assert found(tmp_path / "b", "train", val) == {"train": "train", "val": val}


@pytest.mark.parametrize(
    "names",
    [
        ("bullet_train", "steam train", "tram"),
        ("trainer", "tester", "valley"),
        ("retrain", "retest", "other"),
        ("valid", "fraud"),
        ("train_and_test", "other"),
        ("contest", "strain"),
    ],
)
@pytest.mark.parametrize("inside", [(), ("day", "night")])
def test_classes_with_names_similar_to_splits(tmp_path: Path, names: tuple[str, ...], inside: tuple[str]) -> None:
    doubtful = {"valid": "has valid but not both", "trainer": "look like splits", "retrain": "look like splits"}
    if inside and (said := doubtful.get(names[0], "look like splits" if "contest" in names else None)):
        with pytest.raises(CxlpError, match=f"{said}.*if they are classes|{said}.*give it another name"):
            found(tmp_path, *names, inside=inside)
    else:
        assert found(tmp_path, *names, inside=inside) == {}


@pytest.mark.parametrize(
    ("one", "other"), [("test tube", "train station"), ("train_v1", "test_final"), ("cats_train", "cats_valid")]
)
@pytest.mark.parametrize("flat", [True, False])
def test_ambiguous_folders_are_refused(tmp_path: Path, one: str, other: str, flat: bool) -> None:
    folders(tmp_path, one, inside=() if flat else ("a", "b"))
    folders(tmp_path, other, inside=() if flat else ("c",))
    with pytest.raises(
        CxlpError, match=r"look like splits, but have no class folders in common. If .* call them train"
    ):
        find_splits([tmp_path / one, tmp_path / other], tmp_path, "")


@pytest.mark.parametrize("names", [("xtrain", "xtest"), ("imagestrain", "imagestest"), ("pretrain", "xval")])
def test_compound_split_names_with_common_classes_are_refused(tmp_path: Path, names: tuple[str, ...]) -> None:
    with pytest.raises(CxlpError, match=r"look like splits. If they are splits, call them train, val and test"):
        found(tmp_path, *names, "notes")


def test_other_files_beside_the_splits_are_ignored(tmp_path: Path) -> None:
    folders(tmp_path, "test_images_unlabelled", "dev kit", inside=())
    expected = {"train": "train", "val": "val", "test": "test"}
    assert found(tmp_path, "train", "val", "test", "train_masks", "test_masks") == expected
    assert find_splits(sorted(tmp_path.iterdir()), tmp_path, "") == {s: tmp_path / s for s in expected}


def test_a_train_folder_is_a_class_if_it_contains_images_like_the_others(tmp_path: Path) -> None:
    assert found(tmp_path, "bus", "train", "ship", inside=()) == {}
    root = fill(tmp_path / "full", *(f"{c}/{i}.png" for c in ("bus", "train") for i in range(5)))
    module = Folder(root)
    assert module.read()[0] == ("bus", "train")
    assert module.remarks() == ["warning: folders used as classes, because there is no test folder: train"]
    fill(root, "test/1.png")
    with pytest.raises(CxlpError, match=r"no class folders in .*/train, so its images have no labels$"):
        module.read()
    (root / "test").rename(root / "tests")
    (root / "train").rename(root / "test")
    with pytest.raises(CxlpError, match=r"has test but not both .* If it is a class, give it another name"):
        module.read()


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (("train", "ant"), "has train but not both train and test"),
        (("Test", "ant"), "has Test but not both train and test"),
        (("val", "test"), "has val and test but not both"),
        (("train", "training", "test"), "both look like train: keep one"),
        (
            ("cats_train", "cats_test", "dogs_train", "dogs_test"),
            "cats_train and dogs_train in .* both look like train",
        ),
    ],
)
def test_missing_and_repeated_splits(tmp_path: Path, names: tuple[str, ...], said: str) -> None:
    with pytest.raises(CxlpError, match=f"{said}.*expected a layout"):
        found(tmp_path, *names)


def test_splits_without_class_folders(tmp_path: Path) -> None:
    with pytest.raises(
        CxlpError, match=r"cats_test and .*dogs_train in .* look like splits, but have no class folders"
    ):
        found(tmp_path / "a", "cats_test", "cats_train", "dogs_test", "dogs_train", inside=())
    with pytest.raises(CxlpError, match=r"one folder: .* set data.root: .*/data"):
        Folder(folders(tmp_path / "c", "data", inside=("train", "test"))[0].parent).read()


@pytest.mark.parametrize("within", ["{c}/{s}", "{c}/{s}_1", "{c}/day/old_{s}/x", "train/{c}/{s}ing"])
def test_splits_within_classes_are_refused(tmp_path: Path, within: str) -> None:
    fill(tmp_path, "test/ant/1.png") if within.startswith("train/") else None
    fill(tmp_path, *(f"{within.format(c=c, s=s)}/1.png" for c in CLASSES for s in ("train", "test")))
    with pytest.raises(CxlpError, match=r"ant/.*test.* and .*ant/.*train.* look like splits within a class\. If they"):
        Folder(tmp_path).read()
