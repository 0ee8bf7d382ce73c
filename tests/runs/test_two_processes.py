"""Two processes have the same results as one, except for rounding."""

import csv
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cxlp.data.contents import read_content
from cxlp.models.checkpoint import load_network
from tests.generate import write_cub200
from tests.runs.birds import CLOSING, FINETUNE, NETWORK, QUIET, logged, run
from tests.small_run import BACKBONE, POOLING, metrics

TRAIN = Path(__file__).parents[2] / "train.py"


@pytest.mark.slow
@pytest.mark.parametrize("mode", [[], FINETUNE, CLOSING], ids=["frozen", "finetune", "closing fit"])
def test_two_processes_agree_with_one(birds: Path, mode: list[str]) -> None:
    write_cub200(birds / "odd", classes=3, train=7, test=3)  # 21 training and 9 test images: odd numbers
    # a trained network, at the rates of finetune.yaml: random weights diverge, which amplifies rounding errors
    network = ["--config", "efficientnet_lite0.yaml", f"--{BACKBONE}.weights", "default"]
    network += [f"--{BACKBONE}.image_size", "96", f"--{POOLING}.pca_dim", "8"]
    common = [*network, *mode, "--data.root", "odd/CUB_200_2011", "--trainer.log_every_n_steps", "1"]
    if mode:  # rounding in single precision depends on the processor: 2e-3 on one of them
        common += ["--trainer.precision", "64-true"]
    # gradients are of the joint batch; without gradients, batches of equal size round equally
    one = run("one", *common, "--data.batch_size", "8" if mode else "4")
    two_processes(*common)
    if mode:
        losses = logged("one", "train/loss_epoch")
        assert len(losses) == (1 if mode == CLOSING else 2)
        assert logged("two", "train/loss_epoch") == pytest.approx(losses, rel=1e-3)
    whole = [np.load(f"runs/{name}/scores.npz") for name in ("one", "two")]  # each image once, in order
    assert all(found["index"].tolist() == list(range(9)) for found in whole)
    assert whole[0]["paths"].tolist() == whole[1]["paths"].tolist()
    assert whole[1]["scores"] == pytest.approx(whole[0]["scores"], rel=0.05, abs=0.05)
    intervals = [metrics(Path("runs", name))["intervals"] for name in ("one", "two")]
    assert intervals[0] == intervals[1] and "test/accuracy" in intervals[0]
    if not mode:  # the same images, each once
        texts = [Path("runs", name, "examples.csv").read_text().splitlines() for name in ("one", "two")]
        shown = [[row["image"] for row in csv.DictReader(text)] for text in texts]
        assert shown[0] == shown[1]
        assert len(set(shown[0])) == len(shown[0]) > 0
    # PCA axes with nearly equal eigenvalues rotate more than the features to which they are fitted
    assert_same_result(one, "two", 1e-2 if mode == CLOSING else 1e-3 if mode else 1e-5)


@pytest.mark.slow
def test_two_processes_take_the_same_twenty_steps_as_one(birds: Path) -> None:
    # 24 training images, three steps per epoch; 15 held-out and 15 test images: odd numbers
    write_cub200(birds / "odd", classes=3, train=13, test=5)
    common = [*FINETUNE, "--data.root", "odd/CUB_200_2011", "--data.validation", "0.38"]
    common += ["--trainer.max_epochs", "7", "--trainer.log_every_n_steps", "1"]
    # Double precision, no frozen fit (it rounds to float32), no square root: its steep slope at 0 amplifies rounding
    # up to 5,000 times in one step, after which rounding and a mistake could not be distinguished.
    common += ["--trainer.precision", "64-true", "--model.start", "scratch", f"--{POOLING}.sqrt", "false"]
    common += ["--model.optimizer.classifier_lr", "0.3"]
    one = run("one", *common, "--data.batch_size", "8")
    losses = logged("one", "train/loss_step", by="step")
    assert one["images"]["train"] == 24 and len(losses) == 21
    assert len({round(loss, 4) for loss in losses.values()}) > 15
    two_processes(*common)  # with the strategy ddp, which requires a gradient for each parameter
    assert logged("two", "train/loss_epoch") == pytest.approx(logged("one", "train/loss_epoch"), rel=1e-6)
    assert logged("two", "train/loss_step", by="step").keys() == losses.keys()  # the loss of rank 0's half
    assert_same_result(one, "two", 1e-6)
    Path("runs/two").rename("runs/whole")
    # Lightning logs the last batch of a step, but the mean of an epoch is of all batches
    two_processes(*common, "--trainer.accumulate_grad_batches", "2", "--model.recompute", "true", batch=2)
    assert logged("two", "train/loss_epoch") == pytest.approx(logged("one", "train/loss_epoch"), rel=1e-6)
    assert_same_result(one, "two", 1e-6)


def assert_same_result(one: dict[str, Any], name: str, tolerance: float) -> None:
    """Compare a run's metrics and weights with those of ``runs/one``."""
    two = json.loads(Path(f"runs/{name}/metrics.json").read_text())
    assert two["images"] == one["images"]
    for key, value in one["metrics"].items():
        exact = "accuracy" in key
        assert two["metrics"][key] == (value if exact else pytest.approx(value, rel=1e-3)), key
    saved = [{p.name for p in Path(f"runs/{r}/checkpoints").iterdir()} for r in ("one", name)]
    assert saved[0] == saved[1] > {"best.ckpt"}
    for file in saved[0]:
        a, b = (load_network(f"runs/{r}/checkpoints/{file}").state_dict() for r in ("one", name))
        for key in a:
            # By norm: near zero, the square root amplifies rounding of a pooled sum.
            difference, size = float((a[key].double() - b[key].double()).norm()), float(a[key].double().norm())
            assert difference <= tolerance * size, (file, key, difference, size)


@pytest.mark.slow
def test_two_processes_fit_every_encoding_as_one_does_and_share_its_features(
    birds: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("birds", "test_two_processes"):  # the heads have their own options
        monkeypatch.setattr(f"tests.runs.{module}.NETWORK", NETWORK[:-2])
    # 65 training images: the second step of a guide, 64 images each, has one image, and one process has none
    write_cub200(birds / "odd", classes=5, train=13, test=3)
    layer = {"layers": ["penultimate"]}
    part = {**layer, "pca_dim": 6, "views": {"kind": "regions", "scale": 1.5, "stride": 0.5}}
    heads = {
        "CrossLayerPooling": {"pca_dim": 8, "layers": ["blocks.6.0", "conv_head"]},
        "FisherVector": {**part, "atoms": 2},
        "SparseFisherVector": {**part, "atoms": 3},
        "TrainedGuidePooling": {**part, "channels": 4},
        "AveragePooling": {**layer, "views": {"kind": "crops"}},
    }
    overlay = birds / "heads.yaml"
    found = [{"class_path": name, "init_args": options} for name, options in heads.items()]
    overlay.write_text(json.dumps({"model": {"head": found}}))
    network = ["--config", "efficientnet_lite0.yaml", "--config", str(overlay)]
    network += [f"--{BACKBONE}.weights", "default", f"--{BACKBONE}.image_size", "64"]
    network += [f"--{BACKBONE}.layers", "[blocks.6.0, conv_head, penultimate]", "--data.root", "odd/CUB_200_2011"]
    one = run("one", *network, "--data.batch_size", "4", "--model.frozen.store", "one-store")
    two_processes(*network, "--model.frozen.store", "two-store")
    two = json.loads(Path("runs/two/metrics.json").read_text())
    assert two["metrics"] == {key: pytest.approx(value, rel=1e-3) for key, value in one["metrics"].items()}
    a, b = (load_network(f"runs/{r}/checkpoints/best.ckpt").state_dict() for r in ("one", "two"))
    for key in a:
        difference, size = float((a[key].double() - b[key].double()).norm()), float(a[key].double().norm())
        assert difference <= 1e-3 * size, (key, difference, size)
    # one process continues the run of two, and conversely
    again = run("again", *network, "--data.batch_size", "4", "--model.frozen.store", "two-store")
    assert again["metrics"] == pytest.approx(two["metrics"], rel=1e-5)
    assert "codebook" in one["seconds"] and "codebook" not in again["seconds"]
    Path("runs/two").rename("runs/earlier")
    two_processes(*network, "--model.frozen.store", "one-store")
    assert "codebook" not in json.loads(Path("runs/two/metrics.json").read_text())["seconds"]
    for store in ("one-store", "two-store"):
        assert [p.name.split("-")[0] for p in sorted(Path(store).glob("*/*"))] == [
            "entry.json", "features.bin", "heads.pt", "test",
        ]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("broken", [0, 1], ids=["rank 0", "rank 1"])
def test_an_error_of_one_process_ends_all_of_them_with_its_message(birds: Path, broken: int) -> None:
    # in order, rank r reads images r, r + 2, ...
    path = sorted(Path("data/CUB_200_2011/images").rglob("*.jpg"))[broken]
    break_table(path)
    done = two_processes(ok=False)
    assert done.returncode == 2
    assert f"error: cannot decode image {path}" in done.stderr
    assert "Traceback" not in done.stderr
    assert not list(Path("runs").rglob("*.bin"))


def break_table(path: Path) -> None:
    """Damage a JPEG so that only its decoder notices: the code lengths in its first Huffman table."""
    data = bytearray(path.read_bytes())
    table = data.index(b"\xff\xc4") + 5  # after marker, size and number
    data[table : table + 16] = b"\xff" * 16
    path.write_bytes(data)
    assert not read_content(path).defect  # otherwise the run would stop before its pass


def two_processes(*more: str, ok: bool = True, batch: int = 4) -> "subprocess.CompletedProcess[str]":
    """Run train.py as ``runs/two`` on two gloo processes, with ``batch`` images on each."""
    ddp = ["--trainer.devices", "2", "--trainer.strategy", "ddp", "--data.batch_size", str(batch), "--run.name", "two"]
    command = [sys.executable, str(TRAIN), "--config", "cub200.yaml", *NETWORK, *QUIET, *more, *ddp]
    return subprocess.run(command, check=ok, timeout=300, capture_output=True, text=True)
