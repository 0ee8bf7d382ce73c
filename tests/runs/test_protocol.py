"""Comparability of results: the images, boxes, labels, classes and options that another run must share."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from cxlp.data.cub200 import CUB200
from cxlp.runs.cli import parse
from cxlp.runs.protocol import (
    Images,
    check_classes,
    check_images,
    check_recipe,
    check_refitted_images,
    check_start,
    recipe_of,
)
from cxlp.utils.errors import CxlpError
from tests.generate import write_cub200
from tests.small_run import ARGUMENTS


def images(train: Sequence[int], val: Sequence[int] = (), test: Sequence[int] = (), label: int = 0) -> Images:
    """Images by their numbers, all with the same label."""
    found = {"train": train, "val": val, "test": test}
    fingerprints = {split: torch.tensor(numbers, dtype=torch.int64) for split, numbers in found.items()}
    return Images(fingerprints, {split: numbers * 100 + label for split, numbers in fingerprints.items()})


def of(root: Path, **options: Any) -> Images:
    data = CUB200(root, image_size=32, download=False, **options)
    data.setup()
    return Images.of(data)


def exchange_labels(root: Path) -> None:
    """Exchange the labels of the first two classes."""
    lists = root / "image_class_labels.txt"
    rows = [line.split() for line in lists.read_text().splitlines()]
    lists.write_text("".join(f"{image} { {'1': '2', '2': '1'}.get(label, label) }\n" for image, label in rows))


def move_a_box(root: Path) -> None:
    lists = root / "bounding_boxes.txt"
    first, *rest = lists.read_text().splitlines(keepends=True)
    number, x, *size = first.split()
    lists.write_text(" ".join([number, str(float(x) + 1), *size]) + "\n" + "".join(rest))


def drop_a_test_image(root: Path) -> None:
    lists = root / "train_test_split.txt"
    rows = [line.split() for line in lists.read_text().splitlines()]
    last = next(image for image, train in reversed(rows) if train == "0")
    for name in ("train_test_split.txt", "images.txt", "image_class_labels.txt", "bounding_boxes.txt"):
        kept = [line for line in (root / name).read_text().splitlines() if line.split()[0] != last]
        (root / name).write_text("\n".join(kept) + "\n")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (None, None),
        (exchange_labels, "18 images have different labels or boxes"),
        (move_a_box, "1 images have different labels or boxes"),
        (drop_a_test_image, "the test images differ"),
    ],
)
def test_resuming_needs_the_same_images_boxes_and_labels(tmp_path: Path, change: Any, said: str | None) -> None:
    root = write_cub200(tmp_path)
    before = of(root, bbox=True)
    if change is not None:
        change(root)
    root = root.rename(tmp_path / "elsewhere")  # their location does not matter
    after = of(root, bbox=True)
    for check in (check_images, check_refitted_images):
        if said is None:
            check(before, after)
        else:
            with pytest.raises(CxlpError, match=re.escape(said) if check is check_images else "labels|the test images"):
                check(before, after)


def test_a_refit_needs_the_held_out_and_training_images_together(tmp_path: Path) -> None:
    root = write_cub200(tmp_path)
    choice, all_images = of(root, validation=0.34), of(root)
    check_refitted_images(choice, all_images)
    with pytest.raises(CxlpError, match="the training images differ"):
        check_images(choice, all_images)
    with pytest.raises(CxlpError, match=r"the training images differ.* chose the epoch"):
        check_refitted_images(images([1, 2], [3], [9]), images([1, 2, 4], [], [9]))


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["a", "b", "c"], None),
        (["a", "c", "b"], "classes.* differ in their order"),
        (["a", "b"], "classes.* differ from"),
    ],
)
def test_classes_and_their_order(given: list[str], said: str | None) -> None:
    if said is None:
        check_classes(("a", "b", "c"), given)
        return
    with pytest.raises(CxlpError, match=said):
        check_classes(("a", "b", "c"), given)


# --- a start


class Described:
    """Replaces a network."""

    def __init__(self, **changes: Any) -> None:
        self.described: dict[str, Any] = {
            "classes": ["a", "b"],
            "backbone": {"image_size": 32},
            "heads": [],
            "test_views": {},
        }
        self.described |= {"multi_label": False, **changes}

    def spec(self) -> dict[str, Any]:
        return self.described


def start(saved: Images, now: Images, network: Any = None, recipe: dict[str, Any] | None = None) -> None:
    """Check a start from a run with ``saved`` images, the usual network, and boxes."""
    theirs = {"images": vars(saved), "seen": saved.fingerprints["train"], "recipe": {"data.bbox": True}}
    checkpoint = {"cxlp": {"network": Described().spec()}, "cxlp_run": theirs}
    described: Any = network or Described()
    check_start(Path("first.ckpt"), checkpoint, described, recipe or {"data.bbox": True}, now)


@pytest.mark.parametrize(
    ("now", "said"),
    [
        (images([1, 2, 3], [], [8, 9]), None),  # the same split
        (images([1, 4], [], [8]), None),
        (images([1, 2], [], [3, 9]), "was trained on 1 of these test images"),
        (images([8, 9], [], [1, 2, 3]), "was trained on 3 of these test images"),  # train and test exchanged
        (images([1], [], [2]), "was trained on 1 of these test images"),  # a part, split again
        (images([1, 2, 3], [], [3, 9]), None),  # a duplicate in the data set: this run trains on it anyway
        (images([1, 2, 3], [], [8, 9], label=1), "5 images have different labels or boxes"),
        (images([4, 5], [], [8], label=1), "1 images have different labels or boxes"),
    ],
)
def test_a_start_must_not_have_seen_the_test_images(now: Images, said: str | None) -> None:
    before = images([1, 2, 3], [], [8, 9])
    if said is None:
        start(before, now)
        return
    with pytest.raises(CxlpError, match=said):
        start(before, now)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"classes": ["b", "a"]}, "classes.*order"),
        ({"backbone": {"image_size": 64}}, "its backbone is"),
        ({"multi_label": True}, "its multi_label is"),
    ],
)
def test_a_start_needs_the_same_network(changes: dict[str, Any], said: str) -> None:
    same = images([1], [], [2])
    with pytest.raises(CxlpError, match=said):
        start(same, same, Described(**changes))


def test_a_start_needs_the_same_preprocessing() -> None:
    before, now = images([1], [], [2]), images([3], [], [4])
    start(before, now, recipe={"data.bbox": True, "data.augment.flip": 0.5, "data.class_path": "x", "model.ema": 0.5})
    with pytest.raises(CxlpError, match=r"data\.bbox is False, but first\.ckpt was fitted with True"):
        start(before, now, recipe={"data.bbox": False})


# --- the recipe


def recipe(*more: str) -> dict[str, Any]:
    return recipe_of(parse([*ARGUMENTS, *more]))


@pytest.mark.parametrize(
    "change",
    ["data.aspect=crop", "model.backbone.image_size=64", "model.test_views.kind=flip", "model.head.size=3",
     "trainer.precision=64-true", "seed_everything=1"],
)  # fmt: skip
def test_each_key_that_changes_a_result_is_in_the_recipe(change: str) -> None:
    key = change.partition("=")[0]
    with pytest.raises(CxlpError, match=re.escape(f"{key} is ")):
        check_recipe(recipe(), recipe(f"--{change}"))


@pytest.mark.parametrize("key", ["model.frozen.solver", "data.transform", "data.augment.custom", "model.head.sqrt"])
def test_a_key_that_an_older_checkpoint_lacks_counts_as_its_default(key: str) -> None:
    now = recipe("--model.head=CrossLayerPooling")
    older = {other: value for other, value in now.items() if other != key}
    assert key in now
    check_recipe(older, now)
    with pytest.raises(CxlpError, match=re.escape(f"{key} is 'another', but the checkpoint's run had ")):
        check_recipe(older, {**now, key: "another"})


def test_keys_of_locations_and_speed_are_not_in_the_recipe() -> None:
    free = ["--data.root=x", "--data.num_workers=3", "--model.frozen.store=y", "--trainer.devices=2", "--run.name=z"]
    assert recipe(*free) == recipe()
