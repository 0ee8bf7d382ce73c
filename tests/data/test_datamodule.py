"""Features of all data sets: held-out images, and use with a Trainer."""

from pathlib import Path
from typing import Literal

import pytest
import torch

from cxlp.data.datamodule import ImageDataModule
from cxlp.data.dataset import Sample, Split
from cxlp.data.lists import widened
from cxlp.utils.errors import CxlpError
from tests.data.listed import Listed, ready


def paths(module: ImageDataModule, split: Split) -> set[Path]:
    return {sample.path for sample in module.splits[split].samples}


def test_validation_images_are_held_out_of_training_class_by_class(tmp_path: Path) -> None:
    whole = ready(tmp_path, counts=(8, 16))
    assert whole.val_dataloader() == []
    held = ready(tmp_path, counts=(8, 16), validation=0.25)
    assert [sum(s.label == k for s in held.splits["val"].samples) for k in (0, 1)] == [2, 4]
    assert paths(held, "train") & paths(held, "val") == set()
    assert paths(held, "train") | paths(held, "val") == paths(whole, "train")
    assert paths(held, "test") == paths(whole, "test")
    assert len(held.val_dataloader()) == 1


def test_held_out_images_depend_on_split_seed_unless_it_is_null(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts = []
    for split_seed, run_seed in ((0, "0"), (0, "1"), (1, "0"), (None, "0"), (None, "1")):
        monkeypatch.setenv("PL_GLOBAL_SEED", run_seed)
        parts.append(paths(ready(tmp_path, validation=0.5, split_seed=split_seed), "val"))
    assert parts[0] == parts[1] == parts[3] != parts[2] == parts[4]


class Listed3(Listed):
    """A data set with an official validation list: the last two training images of each class."""

    def read(self) -> tuple[tuple[str, ...], dict[Split, list[Sample]]]:
        classes, parts = super().read()
        parts["val"] = [s for s in parts["train"] if s.path.stem[-1] in "67"]
        parts["train"] = [s for s in parts["train"] if s not in parts["val"]]
        return classes, parts


def test_official_validation_images_can_be_trained_on(tmp_path: Path) -> None:
    def split(validation: float | Literal["official"]) -> dict[str, set[Path]]:
        module = Listed3(tmp_path, num_workers=0, validation=validation)
        module.setup()
        return {name: paths(module, name) for name in ("train", "val", "test")}

    official, everything, part = split("official"), split(0), split(0.25)
    assert sorted(p.stem for p in official["val"]) == ["0_6", "0_7", "1_6", "1_7"]
    assert everything["train"] == official["train"] | official["val"] and not everything["val"]
    assert part["train"] | part["val"] == everything["train"] and len(part["val"]) == 4
    assert official["test"] == everything["test"] == part["test"]
    with pytest.raises(CxlpError, match=r"data\.validation is official, but listed has no"):
        ready(tmp_path, validation="official")


class Tagged(Listed):
    """Several labels per image: the image's class, a class of all images, and one that is never specified."""

    multi_label = True
    third = (1, -1, 0)

    def read(self) -> tuple[tuple[str, ...], dict[Split, list[Sample]]]:
        _, parts = super().read()
        tagged: dict[Split, list[Sample]] = {
            split: [Sample(s.path, (1 - 2 * int(s.label == 1), self.third[i % 3])) for i, s in enumerate(part)]
            for split, part in parts.items()
        }
        return ("zero", "third"), tagged


def test_several_labels_are_a_row(tmp_path: Path) -> None:
    module = Tagged(tmp_path, batch_size=4, num_workers=0)
    module.setup()
    batch = next(iter(module.test_dataloader()))
    assert batch["label"].dtype == torch.int64
    assert batch["label"].tolist() == [[1, 1], [1, -1], [-1, 0], [-1, 1]]


@pytest.mark.parametrize(
    ("third", "said"), [((0, 0, 0), "no training image of 1 of 2"), ((1, 0, 1), "no training image lacks 1 of 2")]
)
def test_a_class_needs_images_with_and_without_it(tmp_path: Path, third: tuple[int, int, int], said: str) -> None:
    module = Tagged(tmp_path, num_workers=0)
    module.third = third
    with pytest.raises(CxlpError, match=rf"listed: {said} classes: third"):
        module.setup()


def test_a_single_class_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CxlpError, match="listed: there is only one class, class 0"):
        ready(tmp_path, counts=(8,))


def test_a_margin_keeps_the_centre_of_the_box() -> None:
    assert widened((10.0, 20.0, 8.0, 4.0), 0.25) == (8.0, 19.0, 12.0, 6.0)
    assert widened((10.0, 20.0, 8.0, 4.0), 0.0) == (10.0, 20.0, 8.0, 4.0)


@pytest.mark.parametrize("fraction", [-0.1, 1.0, 2.5, float("nan")])
def test_validation_out_of_range_is_refused(tmp_path: Path, fraction: float) -> None:
    with pytest.raises(CxlpError, match=rf"validation is {fraction}"):
        Listed(tmp_path, validation=fraction)


@pytest.mark.parametrize(("counts", "fraction"), [((8, 1), 0.25), ((8, 8), 0.01), ((2, 40), 0.9)])
def test_a_fraction_too_small_for_the_classes_is_refused(
    tmp_path: Path, counts: tuple[int, ...], fraction: float
) -> None:
    with pytest.raises(CxlpError, match=r"listed: (cannot hold out|no training image of 1 of 2 classes: class 0)"):
        ready(tmp_path, counts=counts, validation=fraction)


def test_a_class_with_one_image_is_accepted_if_nothing_is_held_out(tmp_path: Path) -> None:
    assert len(ready(tmp_path, counts=(8, 1)).splits["train"]) == 9


def test_image_in_training_and_in_test_is_named(tmp_path: Path) -> None:
    module = Listed(tmp_path)
    classes, parts = module.read()
    parts["test"].append(parts["train"][3])
    module.read = lambda: (classes, parts)  # type: ignore[method-assign]
    with pytest.raises(CxlpError, match=r"1 images are in train and in test, such as .*0_3\.png"):
        module.setup()


def test_no_test_images_is_an_error(tmp_path: Path) -> None:
    module = Listed(tmp_path)
    classes, parts = module.read()
    module.read = lambda: (classes, parts | {"test": []})  # type: ignore[method-assign]
    with pytest.raises(CxlpError, match="no test images"):
        module.setup()
