"""CUB-200-2011: official lists, boxes, and errors about inconsistent lists."""

from itertools import chain
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cxlp.data.cub200 import CUB200, OFFICIAL_COUNTS, read_cub200
from cxlp.data.dataset import Split
from cxlp.data.decode import read_image
from cxlp.utils.errors import CxlpError
from tests.editing import edit


def drop_line(path: Path, key: str) -> None:
    edit(path, lambda text: "".join(line for line in text.splitlines(True) if not line.startswith(f"{key} ")))


def replace_line(path: Path, key: str, line: str) -> None:
    edit(path, lambda text: "\n".join(line if old.startswith(f"{key} ") else old for old in text.splitlines()))


def test_lists_become_classes_and_splits(cub200: Path) -> None:
    classes, samples = read_cub200(cub200, bbox=False)
    assert classes == ("001.Textured_Warbler_1", "002.Textured_Warbler_2", "003.Textured_Warbler_3")
    assert {split: len(part) for split, part in samples.items()} == {"train": 18, "test": 9}
    for part, count in ((samples["train"], 6), (samples["test"], 3)):
        assert [sum(s.label == k for s in part) for k in range(3)] == [count] * 3
        # The folder of an image has the name of its class; labels start at 0.
        assert all(s.path.is_file() and classes.index(s.path.parent.name) == s.label for s in part)
        assert all(s.box is None for s in part)
    # Line by line against the list of splits: 1 is training.
    flags = dict(line.split() for line in (cub200 / "train_test_split.txt").read_text().splitlines())
    files = dict(line.split() for line in (cub200 / "images.txt").read_text().splitlines())
    assert {s.path.name for s in samples["train"]} == {Path(files[i]).name for i, flag in flags.items() if flag == "1"}


def test_lists_are_joined_by_id_whatever_their_order(cub200: Path) -> None:
    before = read_cub200(cub200, bbox=True)
    for name in ("image_class_labels", "train_test_split", "bounding_boxes"):
        edit(cub200 / f"{name}.txt", lambda text: "\n".join(reversed(text.splitlines())))
    assert read_cub200(cub200, bbox=True) == before


def test_file_names_may_contain_spaces(cub200: Path) -> None:
    old = read_cub200(cub200, bbox=False)[1]["train"][0].path
    new = old.rename(old.with_name("two words.jpg"))
    edit(cub200 / "images.txt", lambda text: text.replace(old.name, new.name))
    assert read_cub200(cub200, bbox=False)[1]["train"][0].path == new


def test_cropping_equals_cropping_by_hand(cub200: Path) -> None:
    lines = (line.split() for line in (cub200 / "bounding_boxes.txt").read_text().splitlines())
    boxes = {int(i): tuple(float(v) for v in box) for i, *box in lines}
    crossing = 0
    for sample in chain.from_iterable(read_cub200(cub200, bbox=True)[1].values()):
        number = int(sample.path.stem.rpartition("_")[2])
        assert sample.box == boxes[number]
        with Image.open(sample.path) as image:
            whole = np.asarray(image.convert("RGB"))
        x, y, w, h = (int(v) for v in boxes[number])
        crossing += x + w > whole.shape[1] and y + h > whole.shape[0]
        # Slices end at the border, like a clipped box.
        assert np.array_equal(read_image(sample.path, sample.box), whole[y : y + h, x : x + w])
    assert crossing == 1


@pytest.mark.parametrize("split", ["train", "test"])
def test_boxes_are_used_in_training_and_in_test(cub200: Path, split: Split) -> None:
    shown = {}
    for bbox in (False, True):
        module = CUB200(cub200, bbox=bbox, image_size=32)
        module.setup()
        shown[bbox] = module.splits[split][0]["image"].float()
    # Around the box is noise, which is averaged to grey; the texture reaches the corners only if the box is cropped.
    noise, texture = (shown[bbox][:, :3, :3].std() for bbox in (False, True))
    assert texture > 2 * noise


def test_image_without_label_split_or_box_is_named(cub200: Path) -> None:
    for name in ("image_class_labels", "train_test_split", "bounding_boxes"):
        before = (cub200 / f"{name}.txt").read_bytes()
        drop_line(cub200 / f"{name}.txt", "12")
        with pytest.raises(CxlpError, match=rf"{name}\.txt has no line for image 12 "):
            read_cub200(cub200, bbox=True)
        (cub200 / f"{name}.txt").write_bytes(before)


def test_boxes_are_not_read_without_bbox(cub200: Path) -> None:
    (cub200 / "bounding_boxes.txt").unlink()
    read_cub200(cub200, bbox=False)
    with pytest.raises(CxlpError, match=r"list not found: .*bounding_boxes\.txt"):
        read_cub200(cub200, bbox=True)


def test_split_of_an_image_that_is_not_listed_is_named(cub200: Path) -> None:
    drop_line(cub200 / "images.txt", "7")
    with pytest.raises(CxlpError, match=r"names image 7, .*images\.txt"):
        read_cub200(cub200, bbox=False)


@pytest.mark.parametrize("box", ["60.0 27.0 325.0", "nan 1 2 3"])
def test_malformed_box_names_list_and_image(cub200: Path, box: str) -> None:
    replace_line(cub200 / "bounding_boxes.txt", "5", f"5 {box}")
    with pytest.raises(CxlpError, match=rf"bounding_boxes\.txt: image 5: .*'{box}'"):
        read_cub200(cub200, bbox=True)


def test_line_without_value_names_list_and_line(cub200: Path) -> None:
    replace_line(cub200 / "images.txt", "4", "4")
    with pytest.raises(CxlpError, match=r"images\.txt, line 4: .*'4'"):
        read_cub200(cub200, bbox=False)


@pytest.mark.parametrize(("name", "value"), [("image_class_labels", "9"), ("train_test_split", "2")])
def test_value_outside_its_list_is_named(cub200: Path, name: str, value: str) -> None:
    replace_line(cub200 / f"{name}.txt", "6", f"6 {value}")
    with pytest.raises(CxlpError, match=rf"{name}\.txt: image 6.*{value}"):
        read_cub200(cub200, bbox=False)


def write_lists(folder: Path, train: int, test: int) -> Path:
    """Write the lists of 200 classes, without images."""
    folder.mkdir()
    splits = [1] * train + [0] * test
    rows = range(1, len(splits) + 1)
    lists = {
        "classes": [f"{k} {k:03d}.Bird" for k in range(1, 201)],
        "images": [f"{i} bird/{i}.jpg" for i in rows],
        "image_class_labels": [f"{i} {i % 200 + 1}" for i in rows],
        "train_test_split": [f"{i} {s}" for i, s in zip(rows, splits, strict=True)],
    }
    for name, lines in lists.items():
        (folder / f"{name}.txt").write_text("\n".join(lines))
    return folder


def test_totals_of_the_full_release_are_asserted(tmp_path: Path) -> None:
    _, samples = read_cub200(write_lists(tmp_path / "whole", 5994, 5794), bbox=False)
    assert {split: len(part) for split, part in samples.items()} == OFFICIAL_COUNTS
    with pytest.raises(CxlpError, match=r"5993 \+ 5794 images, officially 5994 \+ 5794"):
        read_cub200(write_lists(tmp_path / "cut", 5993, 5794), bbox=False)


def test_official_release_of_ten_classes(real_data: Path) -> None:
    folder = real_data / "CUB_200_2011"
    classes, samples = read_cub200(folder, bbox=True)
    assert len(classes) == 10
    assert classes[0] == "001.Black_footed_Albatross"
    assert (len(samples["train"]), len(samples["test"])) == (300, 243)
    grey = crossing = 0
    for sample in samples["train"] + samples["test"]:
        whole = read_image(sample.path)
        assert whole.ndim == 3
        assert whole.shape[2] == 3
        with Image.open(sample.path) as image:
            grey += image.mode == "L"
        assert sample.box is not None
        x, y, w, h = sample.box
        crossing += x + w > whole.shape[1] or y + h > whole.shape[0]
        cut = read_image(sample.path, sample.box)
        assert abs(cut.shape[1] - min(w, whole.shape[1] - x)) <= 1
        assert abs(cut.shape[0] - min(h, whole.shape[0] - y)) <= 1
    assert grey == 1
    assert crossing > 0


def test_two_classes_with_the_same_name_are_refused(cub200: Path) -> None:
    replace_line(cub200 / "classes.txt", "2", "2 001.Textured_Warbler_1")
    with pytest.raises(CxlpError, match=r"several classes have the same name: 001\.Textured_Warbler_1"):
        CUB200(cub200, image_size=32).setup()
