"""``cxlp test``: the same test again, other splits, and other data with the same classes, outside the run's folder."""

import csv
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import pytorch_lightning as pl

from cxlp.__main__ import main
from cxlp.data.datamodule import ImageDataModule
from cxlp.data.dataset import Content, Sample
from cxlp.runs.matching import choose_images, match_classes
from cxlp.runs.places import start_checkpoint
from cxlp.utils.errors import CxlpError
from cxlp.utils.files import find_checkpoint
from tests.generate import texture, write_image, write_voc2007
from tests.small_run import metrics, prepared
from tests.tasks.small import network

Capture = pytest.CaptureFixture[str]


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "predictions.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_other_data_inherit_no_options(work: Path) -> None:
    """Paths in a table are relative to its own folder, not to the root of the run's data; nothing is held out."""
    prepared("birds", "--data.validation", "0.34")
    Path("elsewhere").mkdir()
    shutil.copytree("pictures/test", "elsewhere/photos")
    photos = sorted(Path("elsewhere/photos").rglob("*.png"))
    lines = [f"{photo.relative_to('elsewhere')},{photo.parent.name}" for photo in photos]
    Path("elsewhere/list.csv").write_text("path,label\n" + "\n".join(lines) + "\n")
    given = ["test", "runs/birds", "--data", "table", "--data.table", "elsewhere/list.csv"]
    assert main([*given, "--out", "found"]) == 0
    assert metrics(Path("found"))["images"] == {"all": len(photos)}
    Path("root.yaml").write_text("data: {class_path: Table, init_args: {table: elsewhere/list.csv, root: elsewhere}}")
    assert main(["test", "runs/birds", "--config", "root.yaml", "--out", "again"]) == 0
    assert (metrics(Path("again"))["metrics"]) == metrics(Path("found"))["metrics"]


def test_the_same_images_again(work: Path, capsys: Capture) -> None:
    run = prepared("birds")
    before = contents(run)
    assert main(["test", "runs/birds"]) == 0
    assert contents(run) == before
    again = Path("runs/birds-on-pictures-test")
    found, first = metrics(again), metrics(run)
    tested = {key: value for key, value in first["metrics"].items() if key.startswith("test/")}
    assert found["metrics"] == pytest.approx(tested) and found["intervals"] == first["intervals"]
    assert found["images"] == {"test": 9} and found["test_of"] == str(
        Path("runs/birds/checkpoints/best.ckpt").absolute()
    )
    assert rows(again) == rows(run)
    assert np.load(again / "scores.npz")["scores"] == pytest.approx(np.load(run / "scores.npz")["scores"])
    assert (again / "report.html").is_file() and found["outputs"] == {"failed": []}
    said = capsys.readouterr().out
    assert "test/accuracy" in said and "95% interval" in said and str(again) in said
    assert main(["test", "runs/birds/checkpoints/best.ckpt"]) == 0
    assert Path("runs/birds-on-pictures-test-2/metrics.json").is_file()  # nor over an earlier test


def test_other_splits(work: Path, capsys: Capture) -> None:
    prepared("birds", "--data.validation", "0.34")
    expected = metrics(Path("runs/birds"))["metrics"]
    assert main(["test", "runs/birds", "--split", "val", "--out", "val", "--run.predictions", "2"]) == 0
    assert metrics(Path("val"))["metrics"]["test/accuracy"] == pytest.approx(expected["val/accuracy"])
    assert metrics(Path("val"))["images"] == {"val": 7} and len(rows(Path("val"))) == 2
    assert "trained on" not in capsys.readouterr().err
    for split, count, trained in (("train", 11, 11), ("all", 27, 11)):
        assert main(["test", "runs/birds", "--split", split, "--out", split]) == 0
        assert metrics(Path(split))["images"] == {split: count} and metrics(Path(split))["trained_on"] == trained
        assert "warning: 11 of these images were trained on" in capsys.readouterr().err
    assert main(["test", "runs/birds", "--split", "val", "--data.validation", "0.5"]) == 2
    assert "--split val: its images differ" in capsys.readouterr().err
    assert metrics(Path("train"))["metrics"]["test/accuracy"] >= metrics(Path("all"))["metrics"]["test/accuracy"]
    prepared("whole")
    capsys.readouterr()
    assert main(["test", "runs/whole", "--split", "val"]) == 2
    assert "has no images for --split val: none are held out (data.validation)" in capsys.readouterr().err
    assert not list(Path("runs").glob("whole-*"))


def test_other_data_with_the_same_classes_by_name(work: Path, capsys: Capture) -> None:
    """Classes in another order: one is missing, one is unknown, and one has a single training image."""
    prepared("birds")
    for split in ("train", "test"):
        for k, name in enumerate(["a bear", "Kind2", "kind0"]):
            for i in range(3):
                kind = {"Kind2": 2, "kind0": 0}.get(name, 5)
                pixels = texture(kind, 3, np.random.default_rng((9, split == "test", k, i)), 48, 48)
                write_image(Path("other", split, name, f"{i}.png"), pixels)
    shutil.copyfile("pictures/train/kind0/00.png", "other/test/kind0/3.png")
    assert main(["test", "runs/birds", "--data", "folder", "--data.root", "other", "--out", "found"]) == 0
    said = capsys.readouterr().err
    assert "note: 1 of the network's 3 classes have no image here: kind1" in said
    assert "note: 1 classes are matched despite different spelling: Kind2 = kind2" in said and "UserWarning" not in said
    assert "note: 1 classes are unknown to the network: a bear" in said and "note: 3 images " in said
    assert "warning: 1 of these images were trained on" in said
    found = rows(Path("found"))
    assert [row["true"] for row in found] == ["kind2"] * 3 + ["kind0"] * 4
    assert metrics(Path("found"))["left_out"] == {"of classes that the network does not know": 3}
    predicted = Path("predicted.csv")
    assert main(["predict", "runs/birds", "other/test/Kind2", "--out", str(predicted), "--workers", "0"]) == 0
    with predicted.open(newline="") as file:
        alone = {Path(row["path"]).name: row["class_1"] for row in csv.DictReader(file)}
    assert alone == {Path(row["path"]).name: row["class_1"] for row in found[:3]}


def test_broken_files_are_left_out_with_on_broken_skip(work: Path, capsys: Capture) -> None:
    prepared("birds")
    shutil.copytree("pictures", "torn")
    Path("torn/test/kind1/00.png").write_bytes(b"no picture")
    arguments = ["test", "runs/birds", "--data.root", "torn", "--out", "found"]
    assert main(arguments) == 2 and "torn/test/kind1/00.png" in capsys.readouterr().err
    assert main([*arguments, "--data.on_broken", "skip"]) == 0
    assert "1 broken files are left out: found/broken.txt" in capsys.readouterr().err
    assert len(rows(Path("found"))) == 8 and metrics(Path("found"))["left_out"]["broken"] == 1
    assert "torn/test/kind1/00.png" in Path("found/broken.txt").read_text()


def test_names_are_matched_exactly_or_else_simplified() -> None:
    assert match_classes(["b", "a"], ["a", "b"]) == {0: 1, 1: 0}
    assert match_classes(["Black footed albatross", "wren"], ["001.Black_footed_Albatross", "002.Wren"]) == {0: 0, 1: 1}
    assert match_classes(["A", "a", "x"], ["a", "b"]) == {1: 0}  # A is already matched
    assert match_classes(["wren", "Wren"], ["WREN"]) == {}  # ambiguous
    assert match_classes(["wren"], ["002.Wren", "003.Gull"]) == {0: 0}


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        (["2 euro", "5 cent"], ["1 euro", "2 cent"]),
        (["767-300"], ["737-300"]),
        (["3-D print"], ["2-D print", "wood"]),
        (["10 dollars"], ["20 dollars", "5 dollars"]),
        (["001.Wren", "002.Gull"], ["003.Wren", "004.Gull"]),
        (["100.euro", "note"], ["euro"]),
    ],
)
def test_numbers_distinguish_classes(theirs: list[str], ours: list[str]) -> None:
    assert match_classes(theirs, ours) == match_classes(ours, theirs) == {}


def test_held_out_images_follow_the_runs_seed(work: Path, capsys: Capture) -> None:
    drawn = ["--data.validation", "0.34", "--data.split_seed", "null", "--seed_everything", "7"]
    expected = metrics(prepared("birds", *drawn))["metrics"]
    pl.seed_everything(1)
    assert main(["test", "runs/birds", "--split", "val", "--out", "val"]) == 0
    assert metrics(Path("val"))["metrics"]["test/accuracy"] == pytest.approx(expected["val/accuracy"])
    assert metrics(Path("val"))["trained_on"] == 0
    assert main(["test", "runs/birds", "--split", "val", "--seed_everything", "8"]) == 2
    assert "the checkpoint's run" in capsys.readouterr().err


@pytest.mark.parametrize("kind", ["classes alone", "test alone", "table", "table of a test"])
def test_data_with_test_images_only(work: Path, capsys: Capture, kind: str) -> None:
    """Data without splits are tested completely, even a few images; a test split needs no training images."""
    prepared("birds")
    place = Path("few", "test") if kind == "test alone" else Path("few")
    for name in ("kind0", "kind2"):
        for i in range(2):
            pixels = texture(int(name[-1]), 3, np.random.default_rng((7, i)), 48, 48)
            write_image(place / name / f"{i}.png", pixels)
    arguments = ["--data", "folder", "--data.root", "few"]
    if "table" in kind:
        lines = [f"few/{k}/{i}.png,{k}" for k in ("kind0", "kind2") for i in range(2)]
        split = kind == "table of a test"
        Path("few.csv").write_text("\n".join(["path,label" + ",split" * split, *(x + ",test" * split for x in lines)]))
        arguments = ["--data", "table", "--data.table", "few.csv", "--data.root", "."]
    assert main(["test", "runs/birds", *arguments, "--out", "found"]) == 0
    own = "test" if "test" in kind else "all"
    assert metrics(Path("found"))["images"] == {own: 4} and "no test split" not in capsys.readouterr().err
    if own == "all":
        assert main(["test", "runs/birds", *arguments, "--split", "test"]) == 2  # too few to be split
        assert "cannot split" in capsys.readouterr().err


def test_other_results_are_not_overwritten(work: Path, capsys: Capture) -> None:
    prepared("birds")
    prepared("other", "--seed_everything", "3")
    Path("series").mkdir()
    Path("series/metrics.json").write_text('{"metrics": {}}')
    for _ in range(2):  # the same test may be repeated
        assert main(["test", "runs/birds", "--out", "a/b/found"]) == 0
    before = contents(Path("a/b/found"))
    for out, checkpoint in (("series", "runs/birds"), ("a/b/found", "runs/other"), (".", "runs/birds")):
        assert main(["test", checkpoint, "--out", out]) == 2
        assert f"--out {out} " in capsys.readouterr().err
    assert contents(Path("a/b/found")) == before and Path("series/metrics.json").read_text() == '{"metrics": {}}'
    assert main(["test", "runs/birds", "--out", "new/er", "--data.root", "nowhere"]) == 2
    assert not Path("new").exists()


def test_a_test_of_a_refit_is_written_beside_the_run(work: Path) -> None:
    run = prepared("birds")
    (run / "refit").mkdir()
    for name in ("checkpoints", "config.yaml"):
        (run / name).rename(run / "refit" / name)
    shutil.copyfile(run / "refit" / "config.yaml", run / "config.yaml")
    before = contents(run)
    assert main(["test", "runs/birds"]) == 0
    assert contents(run) == before and Path("runs/birds-on-pictures-test/metrics.json").is_file()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["runs/birds", "--out", "runs/birds"], "--out runs/birds is a run's own folder"),
        (["runs/birds", "--data.aspect", "crop"], "data.aspect is crop, but the checkpoint's run had warp"),
        (["runs/birds", "--data.root", "others"], "has no image of the network's classes (kind0, kind1, kind2, ...)"),
        (["alone.ckpt"], "alone.ckpt is not in a run's folder"),
        (["runs"], "has no checkpoints/best.ckpt, which exists after the test of a run. It has runs/birds/checkpoints"),
        (["runs/birds", "--data.rot", "x"], "Did you mean 'data.root'"),
        (["none.ckpt"], "checkpoint not found: none.ckpt"),
        (["runs/birds", "--model.test_views.kind", "flip"], "--model.test_views.kind has no effect on a test"),
        (["runs/birds", "--run.name=x"], "--run.name has no effect on a test"),
        (["runs/birds", "--ckpt_path", "x.ckpt"], "--ckpt_path has no effect on a test"),
        (
            ["runs/birds", "--data.transform", "[{class_path: torchvision.transforms.v2.Grayscale}]"],
            "but the checkpoint's run had ()",
        ),
        (["runs/birds", "--out", "/proc/x"], "--out /proc/x is not writable"),
        (
            ["runs/birds", "--config", "voc2007.yaml", "--data.root", "VOCdevkit/VOC2007"],
            "has several labels per image",
        ),
    ],
)
def test_wrong_arguments(work: Path, capsys: Capture, arguments: list[str], said: str) -> None:
    prepared("birds")
    shutil.copyfile("runs/birds/checkpoints/best.ckpt", "alone.ckpt")
    for split in ("train", "test"):
        for name in ("lion", "bear"):
            write_image(Path("others", split, name, "0.png"), np.zeros((40, 40, 3), np.uint8))
    if "voc2007.yaml" in arguments:
        write_voc2007(work, (1, 1, 1), size=16)
    before = sorted(Path("runs").iterdir())
    assert main(["test", *arguments]) == 2
    assert said in capsys.readouterr().err
    assert sorted(Path("runs").iterdir()) == before


def test_a_checkpoint_outside_a_run_needs_a_data_set(work: Path) -> None:
    prepared("birds")
    shutil.copyfile("runs/birds/checkpoints/best.ckpt", "alone.ckpt")
    arguments = ["--data", "folder", "--data.root", "pictures", "--data.num_workers", "0", "--data.batch_size", "4"]
    assert main(["test", "alone.ckpt", *arguments]) == 0
    assert metrics(Path("alone-on-pictures-test"))["metrics"] == pytest.approx(
        {key: value for key, value in metrics(Path("runs/birds"))["metrics"].items() if key.startswith("test/")}
    )


def test_a_refit_is_tested_by_its_second_run(tmp_path: Path) -> None:
    for place in ("refit/checkpoints", "checkpoints"):
        (tmp_path / place).mkdir(parents=True)
        with pytest.raises(CxlpError, match=r"has no checkpoints/best\.ckpt"):
            find_checkpoint(tmp_path)
    (tmp_path / "checkpoints" / "last.ckpt").touch()
    with pytest.raises(CxlpError, match=r"It has .*last\.ckpt"):
        find_checkpoint(tmp_path)
    (tmp_path / "refit" / "checkpoints" / "best.ckpt").touch()
    assert find_checkpoint(tmp_path) == tmp_path / "refit" / "checkpoints" / "best.ckpt"
    assert start_checkpoint(str(tmp_path)) == find_checkpoint(tmp_path)  # of model.start, too


class Attributes(ImageDataModule):
    """Three people with two attributes, one of which the network does not know."""

    name, multi_label = "People", True

    def read(self) -> Content:
        labels = [(1, -1), (0, 1), (-1, 0)]
        samples = [Sample(self.root / f"{i}.png", label) for i, label in enumerate(labels)]
        return ("hat", "beard"), {"train": [], "test": samples}


def test_several_labels_are_restricted_to_shared_classes(tmp_path: Path) -> None:
    data = Attributes(tmp_path)
    chosen, notes = choose_images(data, network(classes=["glasses", "Hat"], multi_label=True), None)
    assert chosen == "test"
    assert [sample.label for sample in data.splits["test"].samples] == [(0, 1), (0, 0), (0, -1)]
    assert data.splits["test"].classes == data.classes == ("glasses", "Hat")
    assert notes == [
        "note: 1 classes are matched despite different spelling: hat = Hat",
        "note: 1 of the network's 2 classes have no image here: glasses",
        "note: 1 classes are unknown to the network: beard",
    ]


@pytest.mark.slow
def test_two_processes_test_each_image_once(work: Path) -> None:
    run = prepared("birds")
    command = [sys.executable, "-m", "cxlp", "test", str(run.absolute()), "--out", str(work / "two")]
    ddp = ["--trainer.devices", "2", "--trainer.strategy", "ddp", "--trainer.accelerator", "cpu"]
    place = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    subprocess.run([*command, *ddp], check=True, timeout=300, capture_output=True, env=place)
    assert [row["path"] for row in rows(work / "two")] == [row["path"] for row in rows(run)]
    assert metrics(work / "two")["intervals"] == metrics(run)["intervals"]
    one, two = (np.load(folder / "scores.npz")["scores"] for folder in (run, work / "two"))
    assert two == pytest.approx(one, rel=1e-4)
