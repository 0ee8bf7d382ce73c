"""``python -m cxlp predict``: its rows, its exit status, and its reaction to closed pipes and signals."""

import csv
import io
import json
import os
import signal
import subprocess
import sys
import threading
import time
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from cxlp.__main__ import main
from cxlp.data.decode import read_image
from cxlp.deploy.loading import load
from cxlp.deploy.prediction import Prediction
from tests.generate import write_folder
from tests.networks import SMALL, build, write_checkpoint

Capture = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of a network whose class names must be quoted in CSV."""
    torch.manual_seed(0)
    network = build(backbone=SMALL, classes=['gull, "great"', "tern", "wren\u00f6"])
    return write_checkpoint(tmp_path_factory.mktemp("run") / "last.ckpt", network)


@pytest.fixture
def shots(tmp_path: Path) -> Path:
    """A folder of valid images with awkward names, and of invalid ones."""
    good = sorted((write_folder(tmp_path / "made", train=1, test=2, size=40) / "test").rglob("*.png"))
    folder = tmp_path / "shots"
    (folder / "deep").mkdir(parents=True)
    names = ["a b.png", 'c,"d".png', "e\nf.png", "deep/ü.png", os.fsdecode(b"\xe9.png")]
    for name, path in zip(names, good, strict=False):
        path.rename(folder / name)
    Image.fromarray(read_image(good[5])).save(folder / "cut.jpg")
    (folder / "cut.jpg").write_bytes((folder / "cut.jpg").read_bytes()[:700])
    (folder / "text.jpg").write_text("no picture")
    (folder / "void.jpg").touch()
    return folder


def predict(*args: object, status: int, capsys: Capture) -> str:
    """Run the command in this process, and return its output."""
    assert main(["predict", *map(str, args), "--workers", "0", "--device", "cpu"]) == status
    return capsys.readouterr().out


def by_path(checkpoint: Path, folder: Path, top: int = 5) -> dict[str, Prediction]:
    """Return the predictions of the Python interface for the valid images."""
    paths = [str(path) for path in folder.rglob("*.png")]
    return {p.path: p for p in load(checkpoint).predict(paths, top=top)}


# --- rows


def test_csv(checkpoint: Path, shots: Path, capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    args = ["predict", str(checkpoint), str(shots), "gone.jpg", "--top", "2", "--batch-size", "3", "--workers", "0"]
    assert main(args) == 1
    written, said = capfdbinary.readouterr()
    text = written.decode(errors="surrogateescape")  # names as the file system has them
    heads, *rows = csv.reader(io.StringIO(text, newline=""))
    assert heads == ["path", "class_1", "probability_1", "class_2", "probability_2", "error"]
    names = ["a b.png", 'c,"d".png', "cut.jpg", "deep/ü.png", "e\nf.png", "text.jpg", "void.jpg", "\udce9.png"]
    assert [row[0] for row in rows] == [*(str(shots / name) for name in names), "gone.jpg"]
    expected = by_path(checkpoint, shots)
    for path, *cells, error in rows:
        if path.endswith(".png"):
            assert (cells[0], cells[2], error) == (*expected[path].classes[:2], "")
            assert [float(p) for p in cells[1::2]] == pytest.approx(expected[path].probabilities[:2], abs=1e-5)
        else:
            assert cells == [""] * 4 and error.startswith(("cannot decode image", "image not found")) and path in error
    assert said.startswith(b"4 of 9 files ") and said.count(b"\n") == 1


def test_json_lines(checkpoint: Path, shots: Path, capsys: Capture) -> None:
    lines = predict(checkpoint, shots, "--format", "jsonl", "--top", 1, status=1, capsys=capsys).splitlines()
    rows = [json.loads(line) for line in lines]
    expected = by_path(checkpoint, shots, top=1)
    assert [row["path"] for row in rows if row["error"] is None] == sorted(expected)
    for row in rows:
        assert set(row) == {"path", "classes", "probabilities", "error"}
        if row["error"] is None:
            assert tuple(row["classes"]) == expected[row["path"]].classes
            assert row["probabilities"] == pytest.approx(expected[row["path"]].probabilities, abs=1e-5)
        else:
            assert row["classes"] == row["probabilities"] == []
    assert sum(row["error"] is not None for row in rows) == 3
    assert any("ü.png" in line for line in lines), "non-ASCII characters are not escaped"


def test_status_0_and_top_beyond_the_number_of_classes(checkpoint: Path, shots: Path, capsys: Capture) -> None:
    text = predict(checkpoint, shots / "a b.png", "--top", 99, status=0, capsys=capsys)
    assert text.splitlines()[0].split(",")[-2:] == ["probability_3", "error"]
    assert len(text.splitlines()) == 2


def test_paths_on_stdin(checkpoint: Path, shots: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    given = [os.fsencode(shots / name) for name in ("a b.png", "none.png", "\udce9.png")]
    stdin = io.TextIOWrapper(io.BytesIO(b"\n".join(given) + b"\n\n"), encoding="utf-8")
    monkeypatch.setattr("sys.stdin", stdin)
    text = predict(checkpoint, "-", "--format", "jsonl", status=1, capsys=capsys)
    rows = [json.loads(line) for line in text.splitlines()]
    assert [os.fsencode(row["path"]) for row in rows] == given
    assert [bool(row["error"]) for row in rows] == [False, True, False]


def test_the_output_file_appears_when_it_is_complete(
    checkpoint: Path, shots: Path, tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "found.csv"
    out.write_text("earlier")
    (shots / "\udce9.png").unlink()  # capsys supports UTF-8 only
    printed = predict(checkpoint, shots, status=1, capsys=capsys)
    seen: list[str] = []

    def fail(self: object, paths: Any, *_: object) -> Any:
        yield Prediction(next(paths), ("tern",), (1.0,))
        seen.extend(path.name for path in tmp_path.iterdir() if path.name.endswith(".part"))
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("cxlp.deploy.predictor.Predictor.stream", fail)
        assert predict(checkpoint, shots, "--out", out, status=130, capsys=capsys) == ""
    assert out.read_text() == "earlier" and len(seen) == 1
    assert not list(tmp_path.glob(".*.part"))
    assert predict(checkpoint, shots, "--out", out, status=1, capsys=capsys) == ""
    assert out.read_text() == printed


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["--top", "0"], "--top is 0: it must be 1 or more"),
        (["--batch-size", "0"], "--batch-size is 0"),
        (["--workers", "-1"], "--workers is -1: it must be 0 or more"),
        (["--device", "tpu9"], "device 'tpu9' cannot be used"),
        (["--out", "no/such/x.csv"], "--out no/such/x.csv: there is no folder no/such"),
    ],
)
def test_wrong_arguments(args: list[str], said: str, checkpoint: Path, capsys: Capture) -> None:
    assert main(["predict", str(checkpoint), str(checkpoint), *args]) == 2  # an existing file that is not a picture
    assert said in capsys.readouterr().err


def test_out_must_not_be_a_folder_and_devices_are_written_directly(
    checkpoint: Path, shots: Path, tmp_path: Path, capsys: Capture
) -> None:
    image = shots / "a b.png"
    assert main(["predict", str(checkpoint), str(image), "--out", str(tmp_path)]) == 2
    assert f"--out {tmp_path} is a folder: name a file" in capsys.readouterr().err
    (tmp_path / "link.csv").symlink_to(tmp_path / "real.csv")
    predict(checkpoint, image, "--out", tmp_path / "link.csv", status=0, capsys=capsys)
    assert (tmp_path / "link.csv").is_symlink() and (tmp_path / "real.csv").read_text().startswith("path,")
    os.mkfifo(tmp_path / "pipe")
    read: list[str] = []
    reader = threading.Thread(target=lambda: read.append((tmp_path / "pipe").read_text()))
    reader.start()
    predict(checkpoint, image, "--out", tmp_path / "pipe", status=0, capsys=capsys)
    reader.join(timeout=10)
    assert read[0] == (tmp_path / "real.csv").read_text() and not (tmp_path / "pipe").is_file()


def test_an_invalid_path_gets_a_row(checkpoint: Path, shots: Path, capsys: Capture) -> None:
    printed = predict(checkpoint, "x" * 300, shots / "a b.png", status=1, capsys=capsys)
    rows = list(csv.DictReader(io.StringIO(printed)))
    assert "too long" in rows[0]["error"] and rows[1]["class_1"]


def test_empty_stdin_is_reported(checkpoint: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO(""))
    assert main(["predict", str(checkpoint), "-"]) == 0
    assert capsys.readouterr().err.startswith("-: ")


def test_a_network_trained_on_crops_prints_a_note(
    checkpoint: Path, shots: Path, tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cxlp.reports.overlays.draw_explanation", lambda *_: b"")
    saved = torch.load(checkpoint, weights_only=True)
    saved["cxlp"]["image"]["boxes"] = True
    torch.save(saved, tmp_path / "boxes.ckpt")
    assert load(tmp_path / "boxes.ckpt").boxes and not load(checkpoint).boxes
    for command in (["predict"], ["explain", "--out", str(tmp_path / "out")]):
        assert main([command[0], str(tmp_path / "boxes.ckpt"), str(shots / "a b.png"), *command[1:]]) == 0
        assert "trained on images cropped to boxes" in capsys.readouterr().err


def test_no_checkpoint(tmp_path: Path, capsys: Capture) -> None:
    assert main(["predict", str(tmp_path / "none.ckpt"), "x.jpg"]) == 2
    assert "checkpoint not found" in capsys.readouterr().err


# --- as a process


def start(checkpoint: Path, *args: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "cxlp", "predict", str(checkpoint), *args, "--device", "cpu"]
    pipes: dict[str, Any] = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    # A shell lets background processes ignore interrupts, and their children inherit that.
    hear = partial(signal.signal, signal.SIGINT, signal.default_int_handler)
    return subprocess.Popen(command, **pipes, start_new_session=True, preexec_fn=hear)


@pytest.mark.slow
def test_a_closed_pipe_or_an_interrupt_prints_no_traceback(checkpoint: Path, shots: Path) -> None:
    image = os.fsencode(shots / "a b.png") + b"\n"
    closed = start(checkpoint, "-", "--workers", "0", "--batch-size", "1")
    interrupted = start(checkpoint, "-", "--workers", "2", "--batch-size", "1")
    for process in (closed, interrupted):
        assert process.stdin and process.stdout
        process.stdin.write(8 * image)
        process.stdin.flush()
        assert process.stdout.readline().startswith(b"path,")
        assert process.stdout.readline().count(b"a b.png") == 1, "rows are written before all paths are read"
    assert closed.stdout
    closed.stdout.close()
    _, said = closed.communicate(1000 * image, timeout=60)
    assert (closed.returncode, said) == (141, b"")
    time.sleep(0.2)
    os.killpg(interrupted.pid, signal.SIGINT)  # a terminal sends it to the workers, too
    _, said = interrupted.communicate(timeout=60)
    assert (interrupted.returncode, said) == (130, b"interrupted\n")
