"""H3D attributes: boxes (some are NaN), unspecified labels, and the validation split."""

from pathlib import Path

import numpy as np
import pytest

from cxlp.data.dataset import Split
from cxlp.data.decode import read_image
from cxlp.data.h3d import ATTRIBUTES, H3D, OFFICIAL_COUNTS, read_h3d
from cxlp.data.lists import widened
from cxlp.data.transforms import AugmentConfig, Transform
from cxlp.utils.errors import CxlpError
from tests.editing import edit_line


def test_lists_become_boxes_and_rows_of_labels(h3d: Path) -> None:
    attributes, samples = read_h3d(h3d)
    assert len(attributes) == 9
    assert {split: len(part) for split, part in samples.items()} == {"train": 18, "test": 9}
    for split, part in samples.items():
        lines = (h3d / split / "labels.txt").read_text().splitlines()
        for sample, line in zip(part, lines, strict=True):
            name, *words = line.split()
            assert sample.path == h3d / split / name and sample.path.is_file()
            assert sample.label == tuple(int(word) for word in words[4:])
            box = np.array(words[:4], float)
            assert (sample.box is None) if np.isnan(box).all() else np.array_equal(sample.box or (), box)
        assert part[1].box is None and part[2].box is not None and part[3].label == (0,) * 9


def test_boxes_that_cross_the_border_are_clipped(h3d: Path) -> None:
    sample = read_h3d(h3d)[1]["train"][2]
    whole = read_image(sample.path)
    assert sample.box is not None
    x, y, w, h = (int(value) for value in sample.box)
    assert x < 0 and y + h > whole.shape[0]
    assert np.array_equal(read_image(sample.path, sample.box), whole[y : y + h, 0 : x + w])


def test_a_margin_widens_boxes_and_none_stays_none(h3d: Path) -> None:
    plain, wide = (read_h3d(h3d, margin=margin)[1]["test"] for margin in (0.0, 0.2))
    for one, other in zip(plain, wide, strict=True):
        assert other.box == (None if one.box is None else widened(one.box, 0.2))
    assert H3D(h3d, bbox_margin=0.2).read()[1]["test"] == wide
    with pytest.raises(CxlpError, match=r"bbox_margin is -0\.5"):
        H3D(h3d, bbox_margin=-0.5)


@pytest.mark.parametrize("split", ["train", "test"])
def test_people_are_cropped_unless_disabled(h3d: Path, split: Split) -> None:
    assert {s.box for part in read_h3d(h3d, bbox=False)[1].values() for s in part} == {None}
    listed = read_h3d(h3d)[1][split]
    transform = Transform(32, "warp", AugmentConfig())
    for bbox in (True, False):
        module = H3D(h3d, bbox=bbox, image_size=32)
        module.setup()
        for i, sample in enumerate(listed):
            expected = transform(read_image(sample.path, sample.box if bbox else None, transform.needed(None)), None)
            assert (module.splits[split][i]["image"] == expected).all()


@pytest.mark.parametrize("box", ["nan nan nan 3", "1 2 3 0"])
def test_a_malformed_box_is_named(h3d: Path, box: str) -> None:
    edit_line(h3d / "train" / "labels.txt", 7, lambda line: f"00007.jpg {box} {' '.join(line.split()[5:])}\n")
    for bbox in (True, False):
        with pytest.raises(CxlpError, match=rf"labels\.txt, line 7: expected 'x y width height', got '{box}'"):
            read_h3d(h3d, bbox)


@pytest.mark.parametrize("labels", ["1 -1 0 1 -1 0 1 -1", "1 -1 0 1 -1 0 1 -1 0 1", "1 -1 0 1 -1 0 1 -1 2", ""])
def test_malformed_labels_are_named(h3d: Path, labels: str) -> None:
    edit_line(h3d / "test" / "labels.txt", 5, lambda _: f"00005.jpg 1 2 3 4 {labels}\n")
    with pytest.raises(CxlpError, match=r"test/labels\.txt, line 5: .*nine of 1, -1 or 0, got '00005\.jpg 1 2 3 4"):
        read_h3d(h3d)


def write_rows(folder: Path, train: int, test: int) -> Path:
    """Write lists of a number of people, without images."""
    for split, people in (("train", train), ("test", test)):
        (folder / split).mkdir(parents=True)
        rows = (f"{i:05d}.jpg 1.0 2.0 3.0 4.0 {1 - i % 2 * 2}{' 0' * 8}\n" for i in range(1, people + 1))
        (folder / split / "labels.txt").write_text("".join(rows))
    return folder


def test_validation_by_convention_if_the_official_number_is_present(tmp_path: Path) -> None:
    samples = read_h3d(write_rows(tmp_path / "whole", 4013, 4022))[1]
    assert {split: len(part) for split, part in samples.items()} == OFFICIAL_COUNTS
    assert (samples["train"][-1].path.name, samples["val"][0].path.name) == ("02003.jpg", "02004.jpg")
    assert "val" not in read_h3d(write_rows(tmp_path / "few", 40, 30))[1]


@pytest.mark.parametrize(("train", "test"), [(4013, 4021), (4012, 4022)])
def test_official_totals_are_asserted(tmp_path: Path, train: int, test: int) -> None:
    with pytest.raises(CxlpError, match=rf"{test} images, officially 2003 \+ 2010 \+ 4022 \(train \+ val \+ test\)"):
        read_h3d(write_rows(tmp_path, train, test))


def test_official_training_list(real_data: Path, tmp_path: Path) -> None:
    # The official test list is missing: a generated one replaces it, so that the totals are right.
    folder = write_rows(tmp_path, 0, 4022)
    original = (real_data / "attributes_dataset" / "train" / "labels.txt").read_bytes()
    (folder / "train" / "labels.txt").write_bytes(original)
    attributes, samples = read_h3d(folder)
    assert attributes == ATTRIBUTES
    assert {split: len(part) for split, part in samples.items()} == {"train": 2003, "val": 2010, "test": 4022}
    people = samples["train"] + samples["val"]
    assert [s.path.name for s in people] == [f"{i:05d}.jpg" for i in range(1, 4014)]  # no image occurs twice
    labels = np.array([s.label for s in people])
    assert [(labels == value).sum() for value in (1, -1, 0)] == [7297, 13175, 15645]
    assert (labels == 0).all(axis=1).sum() == 20
    boxless = [s for s in people if s.box is None]
    assert len(boxless) == 23
    assert (boxless[0].path.name, boxless[0].label) == ("00229.jpg", (1, -1, 0, -1, 0, -1, 0, 0, 0))
    assert people[0].box == (212.39, 212.39, 549.71, 841.22)
    # Men are frequent, shorts are rare: the attributes are in the documented order.
    positives = dict(zip(attributes, (labels == 1).sum(axis=0).tolist(), strict=True))
    assert max(positives, key=positives.__getitem__) == "is_male" and positives["is_male"] == 1666
    assert min(positives, key=positives.__getitem__) == "has_shorts" and positives["has_shorts"] == 254
