"""``python -m cxlp explain``: files, output and exit status."""

import json
import re
import shutil
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from PIL import Image

from cxlp.__main__ import main
from cxlp.commands import explain
from cxlp.heads import CovariancePooling, CrossLayerPooling
from cxlp.heads.views import Views
from cxlp.models.checkpoint import load_network
from tests.generate import write_folder
from tests.networks import CLASSES, build, write_checkpoint

Capture = pytest.CaptureFixture[str]


def write(path: Path, *, aspect: str = "warp", classes: bool = True, **options: Any) -> Path:
    """Write a checkpoint of a network with random weights, with the content that a run writes."""
    torch.manual_seed(0)
    head = options.pop("head", None) or CrossLayerPooling(pca_dim=4)
    network = build(head, classes=CLASSES if classes else None, **options)
    return write_checkpoint(path, network, aspect)


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    return write(tmp_path / "run" / "checkpoints" / "last.ckpt")


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six pictures in three folders."""
    return write_folder(tmp_path_factory.mktemp("photos"), train=0, test=2, size=70)


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Replace the drawing of pictures of single images, which takes most of the time, by an empty file."""
    monkeypatch.setattr("cxlp.reports.overlays.draw_explanation", lambda *_: b"")


def run(*args: object, status: int = 0) -> None:
    assert main(["explain", *map(str, args)]) == status


def test_each_image_gets_a_figure_and_a_record(checkpoint: Path, photos: Path, capsys: Capture) -> None:
    first, second = photos / "test" / "kind0" / "00.png", photos / "test" / "kind1" / "00.png"
    run(checkpoint, first, second, "--channels", 3)
    out = checkpoint.parents[1] / "explained"
    records = json.loads((out / "evidence.json").read_text())
    assert [record["image"] for record in records] == [str(first), str(second)]
    assert [record["picture"] for record in records] == ["001-00.png", "002-00.png"]
    lines = capsys.readouterr().out.splitlines()
    network = load_network(checkpoint)
    for record, path, line in zip(records, (first, second), lines, strict=True):
        pixels = torch.from_numpy(np.array(Image.open(path).resize((64, 64), Image.Resampling.BICUBIC)))
        with torch.no_grad():
            scores = network(pixels.permute(2, 0, 1)[None])[0]
        k = int(scores.argmax())
        assert (record["class"], record["against"]) == (CLASSES[k], None)
        assert record["score"] == pytest.approx(float(scores[k]), abs=0.02)  # Pillow resizes slightly differently
        assert record["probability"] == pytest.approx(float(scores.softmax(dim=0)[k]), abs=0.02)
        assert record["bias"] + sum(record["channels"]) == pytest.approx(record["score"])
        assert record["bias"] + np.sum(record["places"]) == pytest.approx(record["score"])
        assert len(record["channels"]) == 192 and np.shape(record["places"]) == (1, 1, 4, 4)
        sizes = sorted(map(abs, record["channels"]), reverse=True)
        assert [abs(c["share"]) for c in record["strongest"]] == sizes[:3]
        assert line.startswith(f"{path}: {record['class']} (probability ")
        assert line.endswith(f" -> {out / record['picture']}")
        with Image.open(out / record["picture"]) as picture:
            assert picture.format == "PNG" and picture.width > 1000
    assert len(list(out.iterdir())) == 3


@pytest.mark.usefixtures("undrawn")
def test_a_class_against_another(checkpoint: Path, photos: Path, tmp_path: Path, capsys: Capture) -> None:
    image = photos / "test" / "kind0" / "00.png"
    found = []
    for name, options in {"both": ["--class", "wren", "--against", "gull"], "one": ["--class", "wren"]}.items():
        run(checkpoint, image, "--out", tmp_path / name, "--channels", 1, *options)
        found.append(json.loads((tmp_path / name / "evidence.json").read_text())[0])
    assert [record["class"] for record in found] == ["wren", "wren"]
    assert [record["against"] for record in found] == ["gull", None]
    assert found[0]["score"] != pytest.approx(found[1]["score"])
    assert "wren (probability " in capsys.readouterr().out.splitlines()[0].split(" rather than gull (probability ")[0]


def test_a_failed_figure_does_not_affect_others(
    checkpoint: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    image = photos / "test" / "kind0" / "00.png"
    (tmp_path / "photos").mkdir()
    for name in ("a.png", f"{60 * '🐦'}.png"):
        shutil.copy(image, tmp_path / "photos" / name)
    left: list[Any] = [OSError("No space left on device"), b"drawn"]
    monkeypatch.setattr("cxlp.reports.overlays.draw_explanation", Mock(side_effect=left))
    run(checkpoint, tmp_path / "photos", "--out", tmp_path / "out", "--channels", 1, status=1)
    records = json.loads((tmp_path / "out" / "evidence.json").read_text())
    assert [record["picture"] for record in records] == ["001-a.png", f"002-{20 * '🐦'}.png"]
    assert "error: 001-a.png could not be written: No space left on device" in capsys.readouterr().err
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [f"002-{20 * '🐦'}.png", "evidence.json"]


@pytest.mark.usefixtures("undrawn")
def test_unreadable_images_are_named_and_the_others_explained(
    checkpoint: Path, photos: Path, tmp_path: Path, capsys: Capture
) -> None:
    (tmp_path / "broken.jpg").write_text("no picture")
    good = photos / "test" / "kind0" / "00.png"
    for options, file in ((("--channels", 1), "evidence.json"), (("--patches",), "patches.json")):
        out = tmp_path / file
        run(checkpoint, tmp_path / "broken.jpg", good, tmp_path / "none.jpg", "--out", out, *options, status=1)
        errors = capsys.readouterr().err.splitlines()
        assert sorted(errors) == [
            f"error: cannot decode image {tmp_path}/broken.jpg (10 bytes): cannot identify image file",
            f"error: image not found: {tmp_path}/none.jpg",
        ]
        assert str(good) in (out / file).read_text()
    run(checkpoint, tmp_path / "broken.jpg", "--out", tmp_path / "x", "--patches", status=2)
    assert capsys.readouterr().err.splitlines()[-1].startswith("error: --patches: no image ")
    run(checkpoint, tmp_path / "broken.jpg", "--out", tmp_path / "x", status=1)
    assert json.loads((tmp_path / "x" / "evidence.json").read_text()) == []


def test_patches_of_channels_across_a_folder(
    checkpoint: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    monkeypatch.setattr(explain, "BATCH", 4)
    run(checkpoint, photos, "--patches", "--channels", 5, "--out", tmp_path)
    assert capsys.readouterr().out == f"5 channels over 6 images -> {tmp_path / 'patches.png'}\n"
    with Image.open(tmp_path / "patches.png") as picture:
        assert picture.format == "PNG"
    records = json.loads((tmp_path / "patches.json").read_text())
    assert len({record["channel"] for record in records}) == 5
    network, files = load_network(checkpoint), sorted(photos.rglob("*.png"))
    pixels = [np.array(Image.open(f).resize((64, 64), Image.Resampling.BICUBIC)) for f in files]
    with torch.no_grad():
        guide = network.backbone(torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2))[1]
    for record in records:
        own = guide[:, record["channel"]].amax(dim=(1, 2))  # (6,)
        found = [patch["activation"] for patch in record["patches"]]
        assert found == sorted(found, reverse=True)
        assert found == pytest.approx(sorted(own.tolist(), reverse=True), abs=0.05)
        assert {patch["image"] for patch in record["patches"]} == set(map(str, files))
        for left, top, right, bottom in (patch["box"] for patch in record["patches"]):
            assert 0 <= left < right <= 1 and 0 <= top < bottom <= 1
            assert (right - left, bottom - top) == pytest.approx((0.75, 0.75))  # three of four cells


@pytest.mark.usefixtures("undrawn")
def test_given_channels_are_shown(checkpoint: Path, photos: Path, tmp_path: Path, capsys: Capture) -> None:
    image = photos / "test" / "kind0" / "00.png"
    for options, file, key in (((), "evidence.json", "strongest"), (("--patches",), "patches.json", None)):
        run(checkpoint, image, "--out", tmp_path, "--indices", 7, 0, *options)
        records = json.loads((tmp_path / file).read_text())
        assert [c["channel"] for c in (records[0][key] if key else records)] == [7, 0]
        run(checkpoint, image, "--out", tmp_path, "--indices", 192, *options, status=2)
        assert capsys.readouterr().err == "error: --indices 192: the network has pooling channels 0 to 191\n"


@pytest.mark.usefixtures("undrawn")
def test_a_bounded_number_is_explained(
    checkpoint: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    monkeypatch.setattr(explain, "LIMIT", 1)
    run(checkpoint, photos, "--out", tmp_path, "--channels", 1)
    assert len(json.loads((tmp_path / "evidence.json").read_text())) == 1
    assert re.fullmatch(r".* 1 of 6 images; --limit 6 .*\n", capsys.readouterr().err)


@pytest.mark.usefixtures("undrawn")
def test_pictures_are_cut_as_in_the_run(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (64, 128, 3), np.uint8)
    Image.fromarray(noise).save(tmp_path / "wide.png")
    Image.fromarray(noise[:, 32:96]).save(tmp_path / "middle.png")
    checkpoint = write(tmp_path / "last.ckpt", aspect="crop")
    run(checkpoint, tmp_path / "wide.png", tmp_path / "middle.png", "--channels", 1)
    wide, middle = json.loads((tmp_path / "explained" / "evidence.json").read_text())
    assert wide["channels"] == pytest.approx(middle["channels"])


def test_the_whole_image_is_explained_despite_test_views(tmp_path: Path, photos: Path, capsys: Capture) -> None:
    image = photos / "test" / "kind0" / "00.png"
    found = []
    for kind in ("whole", "flip"):
        checkpoint = write(tmp_path / kind / "last.ckpt", test_views=Views(kind))
        run(checkpoint, image, "--channels", 1)
        found.append(json.loads((tmp_path / kind / "explained" / "evidence.json").read_text())[0])
    assert found[0]["channels"] == pytest.approx(found[1]["channels"])
    pictures = [(tmp_path / kind / "explained" / "001-00.png").read_bytes() for kind in ("whole", "flip")]
    assert pictures[0] != pictures[1], "the second one says so"
    assert re.fullmatch(r"Score of the whole image.* test views \(flip\)\.\n", capsys.readouterr().err)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--class", "wern"], "the network has no class 'wern'. Did you mean 'wren'"),
        (["--against", "robin"], "the network has no class 'robin'. "),
        (["--class", "gull", "--against", "gull"], "--class and --against are both 'gull': give two classes"),
        (["--channels", "0"], "--channels, --indices: one picture shows 1 to 64 channels"),
        (["--indices", *map(str, range(65))], "--channels, --indices: one picture shows 1 to 64 channels"),
        (["--limit", "0"], "--limit is 0: it must be 1 or more"),
    ],
)
def test_wrong_arguments(checkpoint: Path, photos: Path, capsys: Capture, options: list[str], said: str) -> None:
    run(checkpoint, photos, *options, status=2)
    assert capsys.readouterr().err.startswith(f"error: {said}")
    assert not (checkpoint.parents[1] / "explained").exists()


def test_networks_and_folders_that_cannot_be_explained(tmp_path: Path, photos: Path, capsys: Capture) -> None:
    covariance = write(tmp_path / "a.ckpt", head=CovariancePooling(pca_dim=4))
    run(covariance, photos, status=2)
    assert "CovariancePooling cannot be explained" in capsys.readouterr().err
    run(write(tmp_path / "b.ckpt", classes=False), photos, status=2)
    assert "has no classes" in capsys.readouterr().err
    run(tmp_path / "none.ckpt", photos, status=2)
    assert capsys.readouterr().err == f"error: checkpoint not found: {tmp_path / 'none.ckpt'}\n"
    (tmp_path / "empty" / ".thumbnails").mkdir(parents=True)
    Image.new("RGB", (8, 8)).save(tmp_path / "empty" / ".thumbnails" / "a.png")
    run(write(tmp_path / "c.ckpt"), tmp_path / "empty", status=1)
    assert capsys.readouterr().err.startswith(f"error: {tmp_path / 'empty'} is a folder")


@pytest.mark.usefixtures("undrawn")
def test_long_names_and_invalid_paths_do_not_stop_the_command(
    checkpoint: Path, photos: Path, tmp_path: Path, capsys: Capture
) -> None:
    long = tmp_path / f"{'n' * 245}.png"
    long.write_bytes((photos / "test" / "kind0" / "00.png").read_bytes())
    run(checkpoint, long, "x" * 300, "--out", tmp_path / "out", "--channels", 1, status=1)
    assert "too long" in capsys.readouterr().err
    (record,) = json.loads((tmp_path / "out" / "evidence.json").read_text())
    assert record["image"] == str(long) and (tmp_path / "out" / record["picture"]).is_file()
    run(checkpoint, long, "--out", long, status=2)
    assert "is a file: name a folder" in capsys.readouterr().err


@pytest.mark.usefixtures("undrawn")
def test_explanations_are_written_into_the_runs_folder(tmp_path: Path, photos: Path) -> None:
    folder = write(tmp_path / "run" / "checkpoints" / "best.ckpt").parents[1]
    run(folder, photos / "test" / "kind0" / "00.png", "--channels", 1)
    assert sorted(path.name for path in folder.iterdir()) == ["checkpoints", "explained"]
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


@pytest.mark.usefixtures("undrawn")
def test_an_earlier_explanation_is_kept(checkpoint: Path, photos: Path) -> None:
    picture = photos / "test" / "kind0" / "00.png"
    for _ in range(2):
        run(checkpoint, picture, "--channels", 1)
    found = sorted(path.name for path in checkpoint.parents[1].glob("explained*"))
    assert found == ["explained", "explained-2"]
