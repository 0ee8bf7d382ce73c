"""``python -m cxlp export``: output and exit status."""

import re
from pathlib import Path

import pytest
import torch

import cxlp.deploy.export
from cxlp.__main__ import main
from cxlp.deploy.export import Check
from tests.generate import write_folder
from tests.networks import CLASSES, SMALL, build, write_checkpoint

Capture = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    network = build(backbone=SMALL, classes=CLASSES)
    return write_checkpoint(tmp_path_factory.mktemp("run") / "last.ckpt", network)


@pytest.mark.parametrize("form", [pytest.param("onnx", marks=pytest.mark.slow), "torch"])
def test_size_difference_and_times_are_printed(form: str, checkpoint: Path, tmp_path: Path, capsys: Capture) -> None:
    out = tmp_path / {"onnx": "model.onnx", "torch": "model.pt2"}[form]
    args = ["export", str(checkpoint), "--out", str(out), "--format", form]
    if form == "onnx":
        args += ["--check", str(write_folder(tmp_path / "images", train=1, test=2))]
    assert main(args) == 0
    size, difference, times = capsys.readouterr().out.splitlines()
    assert size == f"{out}: {out.stat().st_size / 1e6:.1f} MB"
    images = "9 of 9 given images" if form == "onnx" else "10 of 10 drawn birds"
    found = re.fullmatch(rf"largest difference of logits: (\S+), .* \(tolerance .*\); .* {images}", difference)
    assert found and float(found[1]) < 1e-3
    assert re.fullmatch(r"one image: network [\d.]+ ms, (onnxruntime|exported program) [\d.]+ ms \(medians\)", times)


def test_a_file_with_other_logits_has_exit_status_1(
    checkpoint: Path, tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "model.pt2").touch()
    monkeypatch.setattr(cxlp.deploy.export, "export", lambda model, out, *_: [out])
    monkeypatch.setattr(cxlp.deploy.export, "check", lambda *_: Check(3, 0.2, 1.0, 1, 1.0, 1.0))
    args = ["export", str(checkpoint), "--out", str(tmp_path / "model.pt2"), "--format", "torch"]
    assert main(args) == 1
    assert capsys.readouterr().out.endswith("do not use it\n")


def test_wrong_arguments(checkpoint: Path, tmp_path: Path, capsys: Capture) -> None:
    for args, said in (
        (["--out", "model.pt"], "--out model.pt: with --format onnx, the name must end in .onnx"),
        (["--out", "model.onnx", "--format", "torch"], "with --format torch, the name must end in .pt2"),
        (["--out", "no/such/model.onnx"], "there is no folder no/such"),
        (["--out", str(tmp_path / "m.onnx"), "--check", "none.jpg"], "image not found: none.jpg"),
    ):
        assert main(["export", str(checkpoint), *args]) == 2
        assert said in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_folder_and_no_images_are_refused_before_the_work(checkpoint: Path, tmp_path: Path, capsys: Capture) -> None:
    (tmp_path / "d.pt2").mkdir()
    assert main(["export", str(checkpoint), "--out", str(tmp_path / "d.pt2"), "--format", "torch"]) == 2
    assert "is a folder: name a file" in capsys.readouterr().err
    assert main(["export", str(checkpoint), "--out", str(tmp_path / "a.pt2"), "--format", "torch", "--check", "-"]) == 2
    assert "--check -: " in capsys.readouterr().err
    assert not (tmp_path / "a.pt2").exists()
