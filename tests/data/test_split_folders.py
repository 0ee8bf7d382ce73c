"""Which folders are splits: by all kinds of names, and never taken for classes."""

from pathlib import Path

import pytest

from cxlp.data.folder import Folder
from cxlp.data.split_folders import find_splits
from cxlp.utils.errors import CxlpError

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
        ("xtrain", "xtest"),
        ("imagestrain", "imagestest"),
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
        ("test tube", "train station"),
        ("trainer", "tester", "valley"),
        ("valid", "fraud"),
        ("train_and_test", "other"),
        ("contest", "strain"),
    ],
)
@pytest.mark.parametrize("inside", [(), ("day", "night")])
def test_classes_that_are_called_a_little_like_splits(
    tmp_path: Path, names: tuple[str, ...], inside: tuple[str]
) -> None:
    if "valid" in names and inside:
        with pytest.raises(CxlpError, match="has valid but not both"):
            found(tmp_path, *names, inside=inside)
    else:
        assert found(tmp_path, *names, inside=inside) == {}


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (("train", "ant"), "has train but not both train and test"),
        (("Test", "ant"), "has Test but not both train and test"),
        (("val", "test"), "has val and test but not both"),
        (("train", "training", "test"), "both look like train: keep one"),
        (("cats_train", "cats_test", "dogs_train", "dogs_test"), "both look like train"),
    ],
)
def test_splits_that_are_missing_or_there_twice(tmp_path: Path, names: tuple[str, ...], said: str) -> None:
    with pytest.raises(CxlpError, match=f"{said}.*expected a layout"):
        found(tmp_path, *names)


def test_splits_without_class_folders_or_within_them(tmp_path: Path) -> None:
    with pytest.raises(CxlpError, match="cats_train and cats_test look like splits, but hold no class folders"):
        found(tmp_path / "a", "cats_train", "cats_test", "dogs_train", "dogs_test", inside=())
    with pytest.raises(CxlpError, match=r"ant/Train and .*ant/test look like splits within a class"):
        found(tmp_path / "b", "ant", "bee", inside=("Train", "test"))
    with pytest.raises(CxlpError, match=r"holds one folder: .* set data.root: .*/data"):
        Folder(folders(tmp_path / "c", "data", inside=("train", "test"))[0].parent).read()


def test_a_train_is_a_vehicle_where_it_holds_pictures_as_the_others_do(tmp_path: Path) -> None:
    assert found(tmp_path, "bus", "train", "ship", inside=()) == {}
