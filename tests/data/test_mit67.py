"""MIT Indoor-67: lists with odd names, unlisted images, and files of all formats called .jpg."""

from collections import Counter
from pathlib import Path

import pytest
from PIL import Image

from cxlp.data.decode import read_image
from cxlp.data.mit67 import MIT67, OFFICIAL_COUNTS, read_mit67
from cxlp.utils.errors import CxlpError
from tests.editing import edit, edit_line


def test_lists_become_classes_and_splits(mit67: Path) -> None:
    classes, samples = read_mit67(mit67)
    assert classes == ("airport_inside", "mall", "nursery")
    assert {split: len(part) for split, part in samples.items()} == {"train": 18, "test": 9}
    for split, file, count in (("train", "TrainImages.txt", 6), ("test", "TestImages.txt", 3)):
        part = samples[split]  # type: ignore[index]
        assert [s.path for s in part] == [mit67 / "Images" / line for line in (mit67 / file).read_text().split("\n")]
        assert Counter(s.label for s in part) == {0: count, 1: count, 2: count}
        assert all(s.path.is_file() and classes.index(s.path.parent.name) == s.label for s in part)
        assert all(s.box is None for s in part)


def test_names_with_spaces_apostrophes_and_double_endings_are_whole(mit67: Path) -> None:
    names = {s.path.relative_to(mit67 / "Images").as_posix() for part in read_mit67(mit67)[1].values() for s in part}
    assert {"mall/shopping mall.jpg", "nursery/baby's_room.jpg.jpg"} <= names
    # The same base name in several classes denotes different images.
    assert {f"{name}/room_01.jpg" for name in ("mall", "nursery", "airport_inside")} <= names


def test_unlisted_images_are_never_read(mit67: Path) -> None:
    assert len(list(mit67.rglob("unlisted.jpg"))) == 3
    module = MIT67(mit67, image_size=16)
    module.setup()
    found = {data.samples[i].path for data in module.splits.values() for i in range(len(data)) if data[i]}
    assert len(found) == 27  # each can be decoded, unlike unlisted.jpg


def test_any_content_of_a_jpg_file_becomes_rgb(mit67: Path) -> None:
    kinds = Counter[tuple[str | None, str]]()
    for part in read_mit67(mit67)[1].values():
        for sample in part:
            with Image.open(sample.path) as image:
                kinds[image.format, image.mode] += 1
                shape = (image.height, image.width, 3)
            assert read_image(sample.path).shape == shape
    assert {("GIF", "P"), ("PNG", "P"), ("BMP", "RGB"), ("JPEG", "L"), ("JPEG", "CMYK"), ("JPEG", "RGB")} == set(kinds)


def test_images_may_be_in_a_folder_named_like_the_archive(mit67: Path) -> None:
    before = read_mit67(mit67)[1]["train"]
    (mit67 / "indoorCVPR_09").mkdir()
    (mit67 / "Images").rename(mit67 / "indoorCVPR_09" / "Images")
    after = read_mit67(mit67)[1]["train"]
    assert [s.path.relative_to(mit67) for s in after] == ["indoorCVPR_09" / s.path.relative_to(mit67) for s in before]
    module = MIT67(mit67, download=False, image_size=16)
    module.prepare_data()  # nothing is missing
    module.setup()


@pytest.mark.parametrize("line", ["room.jpg", "mall/deep/room.jpg", "/mall/room.jpg", "/room.jpg", "../room.jpg"])
def test_a_malformed_line_is_named(mit67: Path, line: str) -> None:
    edit_line(mit67 / "TestImages.txt", 3, lambda _: f"{line}\n")
    with pytest.raises(CxlpError, match=rf"TestImages\.txt, line 3: expected 'class/file', got '{line}'"):
        read_mit67(mit67)


def test_a_class_without_training_images_is_named(mit67: Path) -> None:
    edit(mit67 / "TestImages.txt", lambda text: text + "\ngarage/car.jpg")
    with pytest.raises(CxlpError, match="no training image of 1 of 4 classes: garage"):
        MIT67(mit67, image_size=16).setup()


def test_official_lists(real_data: Path) -> None:
    classes, samples = read_mit67(real_data / "mit67")
    assert len(classes) == 67 and list(classes) == sorted(classes)
    assert {split: len(part) for split, part in samples.items()} == OFFICIAL_COUNTS == {"train": 5360, "test": 1340}
    train, test = (Counter(s.label for s in samples[split]) for split in ("train", "test"))
    assert (min(train.values()), max(train.values())) == (77, 83)
    assert (min(test.values()), max(test.values())) == (17, 23)
    assert {train[k] + test[k] for k in range(67)} == {100}
    everything = [s.path for part in samples.values() for s in part]
    assert len(set(everything)) == 6700
    assert sum(count > 1 for count in Counter(path.name for path in everything).values()) == 38
    assert sum(" " in path.name for path in everything) == 6
    odd = [path.relative_to(real_data / "mit67" / "Images").as_posix() for path in everything if "'" in path.name]
    assert odd == ["nursery/baby's_room.jpg.jpg"]


def test_official_totals_are_asserted(real_data: Path, tmp_path: Path) -> None:
    for file in ("TrainImages.txt", "TestImages.txt"):
        text = (real_data / "mit67" / file).read_text()
        # Both lists lack an image, so that only the number of classes identifies the full release.
        (tmp_path / file).write_text(text[: text.rindex("\n")])
    with pytest.raises(CxlpError, match=r"5359 \+ 1339 images, officially 5360 \+ 1340 \(train \+ test\)"):
        read_mit67(tmp_path)
