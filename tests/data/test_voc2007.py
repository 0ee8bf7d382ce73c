"""Pascal VOC 2007: one list per class and split, and the meaning of 'difficult'."""

import shutil
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import pytest
from numpy.typing import NDArray

from cxlp.data.dataset import Sample, Split
from cxlp.data.voc2007 import CLASSES, OFFICIAL_COUNTS, VOC2007, Difficult, read_voc2007
from cxlp.utils.errors import CxlpError
from tests.editing import edit, edit_line, windows_ends


def labels(samples: list[Sample]) -> NDArray[np.int64]:
    """Return the labels ``(n, 20)``."""
    return np.array([s.label for s in samples])


def main(folder: Path, name: str) -> Path:
    return folder / "ImageSets" / "Main" / f"{name}.txt"


def test_lists_become_rows_of_labels(voc2007: Path) -> None:
    classes, samples = read_voc2007(voc2007)
    assert len(classes) == 20 and list(classes) == sorted(classes)
    assert {split: len(part) for split, part in samples.items()} == {"train": 40, "val": 20, "test": 20}
    seen = set()
    for split, part in samples.items():
        assert [s.path for s in part] == [
            voc2007 / "JPEGImages" / f"{key}.jpg" for key in main(voc2007, split).read_text().split()
        ]
        assert all(s.path.is_file() and s.box is None for s in part)
        # Value by value against the lists.
        for k, name in enumerate(classes):
            rows = (line.split() for line in main(voc2007, f"{name}_{split}").read_text().splitlines())
            assert {s.path.stem: s.label[k] for s in part} == {key: int(v) for key, v in rows}  # type: ignore[index]
        seen |= set(labels(part).ravel().tolist())
    assert seen == {1, -1, 0}


def test_line_endings_and_the_order_of_lists_do_not_matter(voc2007: Path) -> None:
    before = read_voc2007(voc2007)
    assert b" -1\r\n" in main(voc2007, "dog_train").read_bytes()
    for path in (voc2007 / "ImageSets" / "Main").iterdir():
        edit(path, windows_ends)
    edit(main(voc2007, "dog_train"), lambda text: "\n".join(reversed(text.lstrip("\ufeff").splitlines())))
    assert read_voc2007(voc2007) == before


@pytest.mark.parametrize(("difficult", "value"), [("ignore", 0), ("negative", -1), ("positive", 1)])
def test_difficult_objects_count_as_chosen_in_all_splits(voc2007: Path, difficult: Difficult, value: int) -> None:
    protocol, chosen = read_voc2007(voc2007)[1], read_voc2007(voc2007, difficult)[1]
    for split in protocol:
        before, after = labels(protocol[split]), labels(chosen[split])
        assert (before == 0).any()
        assert (after[before == 0] == value).all()
        assert np.array_equal(after[before != 0], before[before != 0])


def test_the_module_passes_the_choice_on_and_refuses_others(voc2007: Path) -> None:
    assert VOC2007(voc2007).read() == read_voc2007(voc2007, "ignore")
    assert VOC2007(voc2007, difficult="positive").read() == read_voc2007(voc2007, "positive")
    with pytest.raises(CxlpError, match=r"data\.difficult is 'keep': .*ignore, negative, positive"):
        VOC2007(voc2007, difficult="keep")  # type: ignore[arg-type]


def test_trainval_is_trained_on_unless_the_official_validation_list_is_asked_for(voc2007: Path) -> None:
    def images(validation: float | Literal["official"]) -> dict[str, set[str]]:
        module = VOC2007(voc2007, image_size=16, validation=validation)
        module.setup()
        assert module.classes == CLASSES
        return {split: {s.path.stem for s in data.samples} for split, data in module.splits.items()}

    listed = {split: set(main(voc2007, split).read_text().split()) for split in ("train", "val", "trainval", "test")}
    assert images(0) == {"train": listed["trainval"], "val": set(), "test": listed["test"]}
    assert images("official") == {split: listed[split] for split in ("train", "val", "test")}


def test_an_image_has_a_row_of_labels(voc2007: Path) -> None:
    module = VOC2007(voc2007, image_size=16)
    module.setup()
    item = module.splits["test"][3]
    assert item["image"].shape == (3, 16, 16)
    assert tuple(item["label"].tolist()) == module.splits["test"].samples[3].label


def test_an_image_that_one_class_lacks_is_named(voc2007: Path) -> None:
    path = main(voc2007, "horse_val")
    key = path.read_text().split()[2]  # the number of line 2
    edit_line(path, 2, lambda _: "")
    with pytest.raises(CxlpError, match=rf"horse_val\.txt has no line for image {key}, which the other classes have"):
        read_voc2007(voc2007)


def test_an_image_that_only_one_class_has_is_named(voc2007: Path) -> None:
    edit(main(voc2007, "horse_val"), lambda text: text + "009999 -1\r\n")
    with pytest.raises(CxlpError, match=r"aeroplane_val\.txt has no line for image 009999"):
        read_voc2007(voc2007)


@pytest.mark.parametrize("line", ["000001", "000001 2", "000001 -1 0", "000001 yes", "-1"])
def test_a_malformed_line_is_named(voc2007: Path, line: str) -> None:
    edit_line(main(voc2007, "sofa_test"), 4, lambda _: f"{line}\r\n")
    with pytest.raises(CxlpError, match=rf"sofa_test\.txt, line 4: expected an image and 1, -1 or 0, got '{line}'"):
        read_voc2007(voc2007)


def test_a_missing_class_list_is_named(voc2007: Path) -> None:
    main(voc2007, "sheep_train").unlink()
    with pytest.raises(CxlpError, match=r"list not found: .*sheep_train\.txt"):
        VOC2007(voc2007, image_size=16).setup()


def test_a_missing_test_archive_is_distinguished_from_a_missing_data_set(voc2007: Path) -> None:
    for path in (voc2007 / "ImageSets" / "Main").glob("*_test.txt"):
        path.unlink()
    module = VOC2007(voc2007, download=False, image_size=16)
    for ask in (module.prepare_data, module.setup):
        with pytest.raises(CxlpError, match=r"aeroplane_test\.txt") as caught:
            ask()
        message = str(caught.value)
        assert "VOCtest_06-Nov-2007.tar" in message and "b6e924de25625d8de591ea690078ad9f" in message
        assert "VOCtrainval" not in message


def test_official_lists(real_data: Path) -> None:
    folder = real_data / "VOCdevkit" / "VOC2007"
    classes, samples = read_voc2007(folder)
    assert list(classes) == main(folder, "class").read_text().split()
    assert {split: len(part) for split, part in samples.items()} == OFFICIAL_COUNTS
    trainval = np.concatenate([labels(samples["train"]), labels(samples["val"])])
    test = labels(samples["test"])
    for rows, images, positives, difficult in ((trainval, 5011, 7306, 607), (test, 4952, 7013, 619)):
        assert rows.shape == (images, 20)
        assert ((rows == 1).sum(), (rows == 0).sum()) == (positives, difficult)
    splits: list[Split] = list(get_args(Split))
    names = [{s.path.stem for s in samples[split]} for split in splits]
    assert len(set.union(*names)) == sum(map(len, names)) == 9963
    # train and val together equal the list of both, label by label.
    joint = {s.path.stem: s.label for split in ("train", "val") for s in samples[split]}
    for k, name in enumerate(classes):
        both = (line.split() for line in main(folder, f"{name}_trainval").read_text().splitlines())
        assert {key: str(row[k]) for key, row in joint.items()} == dict(both)  # type: ignore[index]


def test_official_totals_are_asserted(real_data: Path, tmp_path: Path) -> None:
    shutil.copytree(real_data / "VOCdevkit" / "VOC2007" / "ImageSets", tmp_path / "ImageSets")
    for name in CLASSES:
        edit(main(tmp_path, f"{name}_val"), lambda text: text[: text.rstrip().rindex("\n")])
    with pytest.raises(CxlpError, match=r"2501 \+ 2509 \+ 4952 images, officially 2501 \+ 2510 \+ 4952"):
        read_voc2007(tmp_path)
