"""Checks of whole data sets: counts, findings, and tolerated errors."""

import os
import shutil
import subprocess
import sys
from pathlib import Path
from time import sleep
from typing import Any

import numpy as np
import pytest
from PIL import Image

from cxlp.data import checking
from cxlp.data.checking import Counts, Report, check
from cxlp.data.cub200 import CUB200
from cxlp.data.decode import read_image
from cxlp.data.folder import Folder
from cxlp.data.h3d import H3D
from cxlp.data.inspection import Finding, Kind
from cxlp.data.jpeg_warnings import captured_warnings
from cxlp.data.lists import TotalsError
from cxlp.data.mit67 import MIT67
from cxlp.data.voc2007 import VOC2007
from cxlp.utils.errors import CxlpError
from tests.editing import edit, edit_line
from tests.generate import texture, write_folder


def numbers(report: Report) -> dict[Kind, int]:
    return {kind: len(found) for kind, found in report.findings.items()}


def names(report: Report, kind: Kind) -> list[str]:
    return [Path(finding.where).name for finding in report.findings[kind]]


@pytest.mark.parametrize("workers", [1, 2])
def test_cub200(cub200: Path, workers: int) -> None:
    module = CUB200(cub200)
    report = check(module, workers)
    assert report.counts == {"train": Counts(18, 3, 6, 6, 18, 0), "test": Counts(9, 3, 3, 3, 9, 0)}
    assert (report.files, report.decoded, report.defects) == (27, 27, 0)
    assert numbers(report) == {Kind.BOX_CLIPPED: 1, Kind.COLOURS: 1}
    assert names(report, Kind.COLOURS)[0].endswith("_2.jpg") and names(report, Kind.BOX_CLIPPED)[0].endswith("_3.jpg")
    assert module.bbox is False, "reading boxes has not changed the data set"


def test_mit67_holds_other_formats(mit67: Path) -> None:
    report = check(MIT67(mit67), 1)
    # The files have six kinds in turn: 5 GIF, 4 PNG and 3 BMP are called .jpg, the GIF and PNG have palettes.
    assert numbers(report) == {Kind.MISNAMED: 12, Kind.COLOURS: 6 + 5 + 9}  # grey, CMYK, palettes
    assert report.defects == 0, "files that no list names are not read"


def test_voc2007_counts_positive_and_ignored_labels(voc2007: Path) -> None:
    report = check(VOC2007(voc2007), 1)
    _, samples = VOC2007(voc2007).read()
    for split, part in samples.items():
        rows = [s.label for s in part if isinstance(s.label, tuple)]
        labels = [label for row in rows for label in row]
        sizes = [sum(row[k] == 1 for row in rows) for k in range(20)]
        expected = Counts(len(part), 20, min(sizes), max(sizes), labels.count(1), labels.count(0))
        assert report.counts[split] == expected and min(sizes) > 0
    train, val, both = (report.counts[split] for split in ("train", "val", "train + val"))
    assert (both.images, both.positives, both.ignored) == (
        60,
        train.positives + val.positives,
        train.ignored + val.ignored,
    )
    assert numbers(report) == {}


def test_h3d_reports_people_without_box_or_label(h3d: Path) -> None:
    report = check(H3D(h3d), 1)
    assert numbers(report) == {Kind.UNSPECIFIED: 4, Kind.NO_BOX: 2, Kind.BOX_CLIPPED: 2} | {
        kind: n for kind, n in numbers(report).items() if kind is Kind.NO_TEST
    }
    assert names(report, Kind.NO_BOX) == ["00002.jpg"] * 2
    assert names(report, Kind.BOX_CLIPPED) == ["00003.jpg"] * 2
    assert names(report, Kind.UNSPECIFIED) == ["00004.jpg", "00005.jpg"] * 2


@pytest.mark.parametrize("workers", [1, 2])
def test_no_defect_hides_another(cub200: Path, workers: int) -> None:
    _, samples = CUB200(cub200).read()
    gone, cut, empty, page = (samples["train"][i].path for i in (2, 5, 8, 11))
    gone.unlink()
    cut.write_bytes(cut.read_bytes()[:900])
    empty.write_bytes(b"")
    page.write_text("<html>404</html>")
    report = check(CUB200(cub200), workers)
    stops = {kind: names(report, kind) for kind in report.findings if kind.stops}
    assert stops == {
        Kind.MISSING: [gone.name],
        Kind.TRUNCATED: [cut.name],
        Kind.UNDECODABLE: [empty.name, page.name],
    }
    assert (report.files, report.decoded, report.defects) == (27, 23, 4)


def test_training_images_in_the_test_set_are_found_by_content(tmp_path: Path) -> None:
    write_folder(tmp_path, classes=2, train=3, test=2)
    twin = tmp_path / "train" / "kind0" / "01.png"
    for copy in ("test/kind1/00.png", "train/kind0/02.png"):
        shutil.copy(twin, tmp_path / copy)
    for split in ("train", "test"):
        (tmp_path / split / "kind1" / "empty.png").touch()  # equal, and not pictures
    report = check(Folder(tmp_path), 1)
    (leak,) = report.findings[Kind.SHARED]
    assert leak.where == str(tmp_path / "test" / "kind1" / "00.png")
    assert leak.detail == f"in test; in train: {twin}, with other labels"
    (again,) = report.findings[Kind.DUPLICATED]
    assert (again.where, again.detail) == (str(tmp_path / "train/kind0/02.png"), f"in train, as {twin}")
    assert report.defects == 2, "a leak does not stop a run; empty files do"


def test_the_same_image_with_other_labels_or_format_is_reported(tmp_path: Path) -> None:
    write_folder(tmp_path, classes=2, train=3, test=1)
    twin = tmp_path / "train" / "kind0" / "01.png"
    shutil.copy(twin, tmp_path / "train" / "kind1" / "other label.png")
    with Image.open(twin) as image:  # the same pixels in another file
        image.save(tmp_path / "train" / "kind0" / "02.bmp")
    report = check(Folder(tmp_path), 1)
    assert [f.detail for f in report.findings[Kind.CONTRADICTED]] == [f"in train, as {twin}"]
    assert names(report, Kind.CONTRADICTED) == ["other label.png"]
    assert names(report, Kind.DUPLICATED) == ["02.bmp"]
    assert report.defects == 0


def test_another_box_in_the_same_image_is_another_sample_if_cropped(h3d: Path) -> None:
    _, samples = H3D(h3d).read()
    one, other = (s.path for s in samples["train"][6:8])
    shutil.copy(one, other)  # two people in a photograph
    assert check(H3D(h3d), 1).findings.keys() & {Kind.DUPLICATED, Kind.CONTRADICTED} == set()
    assert names(check(H3D(h3d, bbox=False), 1), Kind.CONTRADICTED) == [other.name]


def damage(path: Path, how: str) -> Path:
    """Damage the data of a photo so that it can still be decoded."""
    pixels = texture(1, 3, np.random.default_rng(0), 301, 203)
    Image.fromarray(pixels).save(path, "JPEG", quality=92, progressive="progressive" in how)
    data = bytearray(path.read_bytes())
    third = len(data) // 3
    if "zeros" in how:
        data[third : third + 1000] = bytes(1000)
    elif how == "a hole":
        del data[third : third + 1000]
    elif how == "noise":
        noise = np.random.default_rng(1).integers(1, 255, 500).astype(np.uint8)  # not a marker
        data[third : third + 500] = noise.tobytes()
    elif how == "cut off and ended":
        data[-1000:] = b"\xff\xd9"
    elif how == "extraneous bytes":
        data[-2:-2] = bytes(range(1, 100))
    path.write_bytes(data)
    return path


@pytest.mark.parametrize(
    "how", ["zeros", "progressive zeros", "a hole", "noise", "cut off and ended", "extraneous bytes"]
)
def test_damaged_jpegs_that_decode_are_named(tmp_path: Path, how: str, capfd: pytest.CaptureFixture[str]) -> None:
    write_folder(tmp_path, classes=2, train=40, test=1, size=8)
    path = damage(tmp_path / "train" / "kind1" / "damaged.jpg", how)
    read_image(path)  # it is not an error
    capfd.readouterr()
    report = check(Folder(tmp_path), 2)
    (finding,) = report.findings[Kind.DAMAGED]
    assert finding.where == str(path)
    assert finding.detail.startswith("Corrupt JPEG data: ")
    assert report.findings.keys() == {Kind.DAMAGED} and report.defects == 0
    assert "Corrupt" not in capfd.readouterr().err, "the error would not name a file"


def test_other_output_on_standard_error_is_kept(capfd: pytest.CaptureFixture[str]) -> None:
    with captured_warnings() as captured:
        os.write(2, b"before\nCorrupt JPEG data: 3 extraneous bytes\nPremature end of JPEG file\nafter\n")
        assert captured.take() == ["Corrupt JPEG data: 3 extraneous bytes", "Premature end of JPEG file"]
        assert captured.take() == []
        os.write(2, b"last\n")
    os.write(2, b"behind\n")
    assert capfd.readouterr().err == "before\nafter\nlast\nbehind\n"


def test_standard_error_may_be_closed() -> None:
    script = (
        "from cxlp.data.jpeg_warnings import captured_warnings\n"
        "with captured_warnings() as captured: print(captured.take(), file=captured.stream)\n"
        "import sys; print('lost', file=sys.stderr); print('done')"
    )
    closed = subprocess.run(
        ["sh", "-c", '"$0" -c "$1" 2>&-', sys.executable, script], stdout=subprocess.PIPE, check=True
    )
    assert closed.stdout == b"done\n"


def test_inconsistent_lists_are_defects_and_the_images_are_still_checked(cub200: Path) -> None:
    images = (cub200 / "images.txt").read_text().splitlines()
    flags = dict(line.split() for line in (cub200 / "train_test_split.txt").read_text().splitlines())
    one, other = (next(i for i, line in enumerate(images, 1) if flags[line.split()[0]] == f) for f in "10")
    edit_line(cub200 / "images.txt", other, lambda _: f"{other} {images[one - 1].split()[1]}\n")
    edit(cub200 / "classes.txt", lambda text: text + "4 004.Unseen_Wren\n")
    report = check(CUB200(cub200), 1)
    said = [finding.where for finding in report.findings[Kind.LISTS]]
    assert said[0] == "no training image of 1 of 4 classes: 004.Unseen_Wren"
    assert said[1].startswith("1 images are in train and in test, such as ")
    assert names(report, Kind.NO_TEST) == ["004.Unseen_Wren"]
    assert report.defects == 2 and report.decoded == 26


def test_wrong_totals_are_a_defect_and_the_images_are_still_checked(
    cub200: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cxlp.data.cub200.OFFICIAL_COUNTS", {"train": 18, "test": 10})
    with pytest.raises(TotalsError):
        CUB200(cub200).read()
    report = check(CUB200(cub200), 1)
    (finding,) = report.findings[Kind.LISTS]
    assert finding.where.endswith("18 + 9 images, officially 18 + 10 (train + test)")
    assert report.defects == 1 and report.decoded == 27 and Kind.BOX_CLIPPED in report.findings


def test_a_file_listed_twice_is_reported(cub200: Path) -> None:
    train = CUB200(cub200).read()[1]["train"]
    lines = (cub200 / "images.txt").read_text().splitlines()
    one, two = (next(i for i, line in enumerate(lines) if line.endswith(s.path.name)) for s in train[:2])
    edit_line(cub200 / "images.txt", two + 1, lambda _: f"{two + 1} {lines[one].split()[1]}\n")
    boxes = (cub200 / "bounding_boxes.txt").read_text().splitlines()
    assert Kind.REPEATED not in check(CUB200(cub200), 1).findings, "another box makes it another sample"
    edit_line(cub200 / "bounding_boxes.txt", two + 1, lambda _: f"{two + 1} {boxes[one].split(' ', 1)[1]}\n")
    (finding,) = check(CUB200(cub200), 1).findings[Kind.REPEATED]
    assert (finding.where, finding.detail) == (str(train[0].path), "in train")


def test_boxes_that_cannot_be_read_stop_only_runs_with_boxes(cub200: Path) -> None:
    edit_line(cub200 / "bounding_boxes.txt", 4, lambda _: "4 1 2 0 5\n")
    report = check(CUB200(cub200), 1)
    (finding,) = report.findings[Kind.BOX_LIST]
    assert "image 4: expected 'x y width height'" in finding.where
    assert report.defects == 0 and report.decoded == 27
    with pytest.raises(CxlpError, match="image 4: expected 'x y width height'"):
        check(CUB200(cub200, bbox=True), 1)


def test_no_training_images_at_all(tmp_path: Path) -> None:
    write_folder(tmp_path, classes=2, train=0, test=0)
    for split in ("train", "test"):
        (tmp_path / split / "kind0").mkdir(parents=True)
    report = check(Folder(tmp_path), 2)
    said = [finding.where for finding in report.findings[Kind.LISTS]]
    assert said == ["there are no training images", "there are no test images"]
    assert (report.files, report.decoded) == (0, 0)


def test_a_list_that_may_not_be_read_is_an_error(cub200: Path) -> None:
    (cub200 / "classes.txt").unlink()
    (cub200 / "classes.txt").symlink_to(cub200 / "classes.txt")
    with pytest.raises(CxlpError):
        check(CUB200(cub200), 1)


def test_unbalanced_classes_are_reported(tmp_path: Path) -> None:
    write_folder(tmp_path, classes=2, train=4, test=2)
    for name in ("00.png", "01.png", "02.png"):
        (tmp_path / "train" / "kind1" / name).unlink()
    report = check(Folder(tmp_path), 1)
    counts = report.counts["train"]
    assert report.findings == {Kind.SINGLE: [Finding(Kind.SINGLE, "kind1")]}
    assert (counts.images, counts.fewest, counts.most) == (5, 1, 4)


def test_pending_work_is_cancelled_when_the_caller_stops(monkeypatch: pytest.MonkeyPatch) -> None:
    begun: list[Any] = []

    def slow(path: Path, boxes: object) -> None:
        begun.append(path)
        sleep(0.01)

    monkeypatch.setattr(checking, "inspect_image", slow)
    inspections: Any = checking._inspections({Path(str(i)): () for i in range(500)}, 2)
    next(inspections)
    inspections.close()
    assert 0 < len(begun) < 100


def test_real_voc2007(real_data: Path) -> None:
    report = check(VOC2007(real_data / "VOCdevkit" / "VOC2007"), 2)
    counts = [(c.images, c.positives, c.ignored) for c in map(report.counts.__getitem__, ("train + val", "test"))]
    assert counts == [(5011, 7306, 607), (4952, 7013, 619)]
    assert names(report, Kind.TRUNCATED) == ["000001.jpg"]
    assert numbers(report) == {Kind.MISSING: 9963 - 5, Kind.TRUNCATED: 1}


def test_real_birds(real_data: Path) -> None:
    report = check(CUB200(real_data / "CUB_200_2011"), 2)
    assert numbers(report) == {Kind.BOX_CLIPPED: 1, Kind.COLOURS: 1}
    with Image.open(report.findings[Kind.COLOURS][0].where) as image:
        assert image.mode == "L"
