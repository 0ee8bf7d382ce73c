"""``train.py`` from end to end, on a tiny CUB-200-2011: what users type, and what they get."""

import csv
import itertools
import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from pytorch_lightning import seed_everything

from cxlp.commands.train import main
from cxlp.data.cub200 import CUB200
from cxlp.models.checkpoint import load_network
from cxlp.runs.arguments import CONFIGS, find_configs
from cxlp.tasks.finetune import FineTune
from cxlp.tasks.frozen import Frozen
from cxlp.utils.errors import CxlpError
from cxlp.utils.locking import hold, let_go_all
from tests import small_run
from tests.generate import write_cub200, write_folder
from tests.small_run import BACKBONE, POOLING, metrics

TRAIN = Path(__file__).parents[2] / "train.py"
NETWORK = [
    *("--config", "squeezenet.yaml"),
    *(f"--{BACKBONE}.weights", "null"),
    *(f"--{BACKBONE}.image_size", "64"),
    *(f"--{POOLING}.pca_dim", "8"),
]
QUIET = [
    *("--data.num_workers", "0"),
    *("--data.batch_size", "8"),
    *("--run.wandb", "off"),
    *("--trainer.accelerator", "cpu"),
    *("--trainer.devices", "1"),
    *("--trainer.enable_progress_bar", "false"),
]
FINETUNE = [
    *("--config", "finetune.yaml"),
    *("--data.validation", "0.34"),
    *("--trainer.max_epochs", "2"),
]
CLOSING = [*FINETUNE, "--trainer.max_epochs", "1", "--model.closing_fit", "true", "--model.cross_fit", "true"]


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A fresh working directory with ``data/CUB_200_2011`` in it."""
    monkeypatch.chdir(tmp_path)
    write_cub200(tmp_path / "data")
    return tmp_path


def run(name: str, *more: str, config: str = "cub200.yaml") -> dict[str, Any]:
    """Run train.py in this process; returns ``metrics.json``."""
    assert main(["--config", config, *NETWORK, *QUIET, "--run.name", name, *more]) == 0
    return metrics(Path("runs", name))


def made(name: str, *more: str) -> dict[str, Any]:
    """Like :func:`run`, but a copy where the same arguments were run before; returns ``metrics.json``."""
    arguments = ["--config", "cub200.yaml", *NETWORK, *QUIET, *more]
    return metrics(small_run.copy_of_run(name, arguments, lambda folder: write_cub200(folder / "data")))


def logged(name: str, key: str, by: str = "epoch") -> dict[int, float]:
    """A metric by epoch or step, from the CSV logs of ``runs/name``."""
    return small_run.logged(Path("runs", name), key, by)


def test_a_frozen_run_leaves_everything_that_is_promised(work: Path) -> None:
    found = run("a", "--data.bbox", "true")
    folder = work / "runs" / "a"
    assert found["metrics"]["test/accuracy"] > 0.6  # chance is 1/3
    assert found["images"] == {"train": 18, "val": 0, "test": 9}
    assert {"extraction", "PCA", "pooling", "Gram matrix", "SVM", "test", "total"} <= found["seconds"].keys()
    assert 50_000_000 < found["memory"]["peak_bytes"] < 24_000_000_000
    assert sorted(p.name for p in (folder / "checkpoints").iterdir()) == ["best.ckpt", "frozen.ckpt"]
    assert (folder / "checkpoints" / "best.ckpt").samefile(folder / "checkpoints" / "frozen.ckpt")  # no second copy
    assert (folder / "confusion_matrix.png").stat().st_size > 1000
    with (folder / "per_class.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert sum(int(r["right"]) for r in rows) == round(9 * found["metrics"]["test/accuracy"])
    assert (folder / "report.html").read_text().startswith("<!doctype html>")
    assert json.loads((folder / "provenance.json").read_text())["data"]["test"] == 9
    assert not list(folder.rglob("*.part")) and not (folder / "features").exists()


def test_the_resolved_config_loads_again_and_gives_the_same_result(work: Path) -> None:
    first = made("a")
    again = work / "again.yaml"
    again.write_text((work / "runs" / "a" / "config.yaml").read_text())
    assert main(["--config", str(again), "--run.name", "b"]) == 0
    second = json.loads((work / "runs" / "b" / "metrics.json").read_text())
    assert second["metrics"] == first["metrics"]


def test_a_checkpoint_predicts_by_itself(work: Path) -> None:
    found = made("a")
    network = load_network("runs/a/checkpoints/best.ckpt")
    data = CUB200("data/CUB_200_2011", image_size=64, num_workers=0)
    data.setup()
    test = data.splits["test"]
    items = [test[i] for i in range(len(test))]
    with torch.no_grad():
        predicted = network(torch.stack([item["image"] for item in items])).argmax(dim=1)
    right = sum(int(p) == item["label"] for p, item in zip(predicted, items, strict=True))
    assert right / len(items) == pytest.approx(found["metrics"]["test/accuracy"])
    assert network.classes == data.classes


@pytest.mark.parametrize("head", ["BilinearPooling", "AveragePooling"])
def test_baselines_run_by_one_switch(work: Path, head: str) -> None:
    assert run("a", f"--{POOLING}", head)["metrics"]["test/accuracy"] > 0.3


def test_your_own_folder(work: Path) -> None:
    write_folder(work / "mine")
    found = run("a", "--data.root", "mine", config="folder.yaml")
    assert found["images"] == {"train": 18, "val": 0, "test": 9}
    assert "frozen/cv_accuracy_C10" in found["metrics"]  # C was chosen by cross-validation


def test_fine_tuning_begins_at_the_frozen_solution(work: Path) -> None:
    frozen = made("frozen", "--data.validation", "0.34")
    # random weights have small gradients: a rate that shows
    found = run("tuned", *FINETUNE, "--model.optimizer.backbone_lr", "0.1")
    curve = logged("tuned", "val/accuracy")
    assert sorted(curve) == [0, 1, 2]
    assert curve[0] == frozen["metrics"]["val/accuracy"]
    assert logged("tuned", "val/loss")[0] == pytest.approx(frozen["metrics"]["val/loss"], abs=1e-5)
    # all metrics are of the checkpoint that was tested, the best one, not of the last epoch
    assert Path("runs/tuned", found["tested"]).samefile("runs/tuned/checkpoints/best.ckpt")
    assert found["metrics"]["val/accuracy"] == pytest.approx(max(curve.values()))
    best = min(epoch for epoch, value in curve.items() if value == max(curve.values()))
    assert found["epoch"] == best
    assert found["metrics"]["val/loss"] == pytest.approx(logged("tuned", "val/loss")[best])
    before, after = (load_network(f"runs/tuned/checkpoints/{name}.ckpt") for name in ("frozen", "last"))
    for part in ("backbone", "heads", "classifier"):
        pairs = zip(getattr(before, part).parameters(), getattr(after, part).parameters(), strict=True)
        assert any(not torch.equal(old, new) for old, new in pairs), f"{part} did not move"


def test_fine_tuning_from_scratch_and_from_a_checkpoint(work: Path) -> None:
    frozen = made("frozen", "--data.validation", "0.34")
    scratch = run("scratch", *FINETUNE, "--model.start", "scratch")
    assert sorted(logged("scratch", "train/loss_epoch")) == [0, 1]  # there is no frozen fit before them
    assert not any(key.startswith("frozen/") for key in scratch["metrics"])
    run("from", *FINETUNE, "--model.start", "runs/frozen/checkpoints/frozen.ckpt", "--model.optimizer.backbone_lr", "0",
        "--model.optimizer.projection_lr", "0", "--model.optimizer.classifier_lr", "0")  # fmt: skip
    assert logged("from", "val/accuracy")[2] == frozen["metrics"]["val/accuracy"]


def test_a_start_that_has_seen_the_held_out_images_is_told_of(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made("whole")  # fitted to all training images
    start = [*FINETUNE, "--model.start", "runs/whole"]
    capsys.readouterr()
    run("a", *start)
    assert "was trained on 7 of the images that data.validation holds out" in capsys.readouterr().out
    split = Path("data/CUB_200_2011/train_test_split.txt")
    lines = split.read_text().splitlines()
    split.write_text("\n".join(f"{line.split()[0]} {'10'[int(line.split()[1])]}" for line in lines))
    assert main(["--config", "cub200.yaml", *NETWORK, *QUIET, *start]) == 2
    assert "was trained on 18 of these test images" in capsys.readouterr().err


def test_an_interrupted_fine_tuning_resumes_to_the_same_result(
    work: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = made("whole", *FINETUNE)
    start_epoch = FineTune.on_train_epoch_start

    def power_cut(task: FineTune) -> None:
        if task.current_epoch == 1:
            raise KeyboardInterrupt
        start_epoch(task)

    with monkeypatch.context() as patch:
        patch.setattr(FineTune, "on_train_epoch_start", power_cut)
        assert main(["--config", "cub200.yaml", *NETWORK, *QUIET, "--run.name", "cut", *FINETUNE]) == 130
    said = "--config runs/cut/config.yaml --ckpt_path runs/cut"
    assert capsys.readouterr().err.endswith(f"interrupted. Go on with: {said}\n")
    assert not Path("runs/cut/metrics.json").exists()
    assert torch.load("runs/cut/checkpoints/last.ckpt", weights_only=True)["epoch"] == 0
    seed_everything(123)  # what is drawn after the resumption must not hang on the state of this process
    assert main(said.split()) == 0
    resumed = json.loads(Path("runs/cut/metrics.json").read_text())
    assert resumed["metrics"] == whole["metrics"]
    assert "since resumed" in resumed["seconds"] and "total" not in resumed["seconds"]
    assert [p.name for p in Path("runs").iterdir() if p.name.startswith("cut")] == ["cut"]
    assert sorted(logged("cut", "val/accuracy")) == [0, 1, 2]  # nothing of the first session is lost


def test_a_broken_loss_stops_and_keeps_the_last_good_checkpoint(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rates = [f"--model.optimizer.{part}_lr=1e30" for part in ("backbone", "projection", "classifier")]
    assert main(["--config", "cub200.yaml", *NETWORK, *QUIET, "--run.name", "a", *FINETUNE, *rates]) == 2
    message = capsys.readouterr().err
    assert "not finite in gradient epoch 0" in message and "lower learning rates" in message
    assert sorted(p.name for p in Path("runs/a/checkpoints").iterdir()) == ["frozen.ckpt"]
    kept = load_network("runs/a/checkpoints/frozen.ckpt")
    assert all(torch.isfinite(p).all() for p in kept.parameters())
    assert kept.classifier is not None and kept.classifier.weight.any()  # the frozen solution


def test_two_runs_started_into_one_folder_do_not_mix(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made("a")
    before = {p: p.stat().st_mtime_ns for p in Path("runs/a").rglob("*") if p.is_file()}
    assert main(["--config", "cub200.yaml", *NETWORK, *QUIET, "--run.name", "a"]) == 0
    assert {p: p.stat().st_mtime_ns for p in Path("runs/a").rglob("*") if p.is_file()} == before
    assert Path("runs/a-2/metrics.json").is_file()
    assert "runs/a holds a run already: this one goes to runs/a-2" in capsys.readouterr().out


def test_wandb_offline_holds_curves_summary_tables_and_config(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("WANDB_API_KEY", "WANDB_MODE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(work / "none"))
    found = run("a", *FINETUNE, "--run.wandb", "auto", "--run.tags", "[x]", "--trainer.log_every_n_steps", "1")
    (folder,) = Path("runs/a/wandb").glob("offline-run-*")
    shown = subprocess.run(
        [sys.executable, "-m", "wandb", "leet", "inspect", "--summary", "--json", str(folder)],
        check=True, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    record = json.loads(shown.stdout)
    text = json.dumps(record)
    assert '"pca_dim": 8' in json.dumps(record["config"]["model"])
    assert record["config"]["trainer"]["max_epochs"] == 2
    for key in ("test/accuracy", "val/accuracy", "train/loss_step", "seconds/test", "lr-SGD/backbone"):
        assert key in text, key
    assert list(folder.glob("files/media/images/test/confusion_matrix*.png"))
    assert list(folder.glob("files/media/table/test/per_class*.json"))
    saved = torch.load("runs/a/checkpoints/last.ckpt", weights_only=True)["cxlp_run"]
    assert saved["wandb_id"] and saved["wandb_id"] in folder.name
    resumed = run("a", *FINETUNE, "--run.wandb", "auto", "--ckpt_path", "runs/a")
    assert resumed["metrics"]["test/accuracy"] == found["metrics"]["test/accuracy"]
    runs = list(Path("runs/a/wandb").glob("offline-run-*"))
    assert len(runs) == 2 and all(saved["wandb_id"] in r.name for r in runs)


@pytest.mark.slow
@pytest.mark.parametrize("mode", [[], FINETUNE, CLOSING], ids=["frozen", "finetune", "closing fit"])
def test_two_processes_agree_with_one(work: Path, mode: list[str]) -> None:
    write_cub200(work / "odd", classes=3, train=7, test=3)  # 21 training and 9 test images: odd numbers
    # a trained network, at the rates of finetune.yaml: a random one diverges, and divergence blows up rounding
    network = ["--config", "efficientnet_lite0.yaml", f"--{BACKBONE}.weights", "default"]
    network += [f"--{BACKBONE}.image_size", "96", f"--{POOLING}.pca_dim", "8"]
    common = [*network, *mode, "--data.root", "odd/CUB_200_2011", "--trainer.log_every_n_steps", "1"]
    if mode:  # single precision rounds by the processor, by 2e-3 on one
        common += ["--trainer.precision", "64-true"]
    # gradients are of the joint batch; without them, batches of one size round alike
    one = run("one", *common, "--data.batch_size", "8" if mode else "4")
    two_processes(*common)
    if mode:
        losses = logged("one", "train/loss_epoch")
        assert len(losses) == (1 if mode == CLOSING else 2)
        assert logged("two", "train/loss_epoch") == pytest.approx(losses, rel=1e-3)
    if not mode:  # the same images are shown, each once
        texts = [Path("runs", name, "examples.csv").read_text().splitlines() for name in ("one", "two")]
        shown = [[row["image"] for row in csv.DictReader(text)] for text in texts]
        assert shown[0] == shown[1]
        assert len(set(shown[0])) == len(shown[0]) > 0
    # the axes of a PCA that are nearly equal turn more than the features they are fitted to
    assert_same_result(one, "two", 1e-2 if mode == CLOSING else 1e-3 if mode else 1e-5)


@pytest.mark.slow
def test_two_processes_take_the_same_twenty_steps_as_one(work: Path) -> None:
    # 24 images to train on, three steps an epoch; 15 held out and 15 for the test: odd numbers
    write_cub200(work / "odd", classes=3, train=13, test=5)
    common = [*FINETUNE, "--data.root", "odd/CUB_200_2011", "--data.validation", "0.38"]
    common += ["--trainer.max_epochs", "7", "--trainer.log_every_n_steps", "1"]
    # Double precision, no frozen fit (it rounds to float32), and no square root: its steep slope at 0 makes up to 5,000
    # times as much of rounding in one step, after which nothing would tell rounding from a mistake.
    common += ["--trainer.precision", "64-true", "--model.start", "scratch", f"--{POOLING}.sqrt", "false"]
    common += ["--model.optimizer.classifier_lr", "0.3"]
    one = run("one", *common, "--data.batch_size", "8")
    losses = logged("one", "train/loss_step", by="step")
    assert one["images"]["train"] == 24 and len(losses) == 21
    assert len({round(loss, 4) for loss in losses.values()}) > 15
    two_processes(*common)  # under the strategy ddp, which refuses a parameter that gets no gradient
    assert logged("two", "train/loss_epoch") == pytest.approx(logged("one", "train/loss_epoch"), rel=1e-6)
    assert logged("two", "train/loss_step", by="step").keys() == losses.keys()  # of rank 0's half of each batch
    assert_same_result(one, "two", 1e-6)
    Path("runs/two").rename("runs/whole")
    # Lightning logs a step's last batch only, but an epoch's mean is of all
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
            # By norm: where a pooled sum is next to nothing, its square root makes much of rounding.
            difference, size = float((a[key].double() - b[key].double()).norm()), float(a[key].double().norm())
            assert difference <= tolerance * size, (file, key, difference, size)


@pytest.mark.slow
def test_two_processes_fit_every_encoding_as_one_does_and_share_its_features(
    work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tests.runs.test_cli.NETWORK", NETWORK[:-2])  # the heads have options of their own
    # 65 training images: a guide's second step, of 64 images each, has one image, and one process none
    write_cub200(work / "odd", classes=5, train=13, test=3)
    layer = {"layers": ["penultimate"]}
    part = {**layer, "pca_dim": 6, "views": {"kind": "regions", "scale": 1.5, "stride": 0.5}}
    heads = {
        "CrossLayerPooling": {"pca_dim": 8, "layers": ["blocks.6.0", "conv_head"]},
        "FisherVector": {**part, "atoms": 2},
        "SparseFisherVector": {**part, "atoms": 3},
        "TrainedGuidePooling": {**part, "channels": 4},
        "AveragePooling": {**layer, "views": {"kind": "crops"}},
    }
    overlay = work / "heads.yaml"
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
    # one process takes up what two have left, and the reverse
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
def test_an_error_of_one_process_ends_all_of_them_with_its_message(work: Path, broken: int) -> None:
    # in order, rank r reads images r, r + 2, ...
    path = sorted(Path("data/CUB_200_2011/images").rglob("*.jpg"))[broken]
    path.write_bytes(b"no picture")
    done = two_processes(ok=False)
    assert done.returncode == 2
    assert f"error: cannot decode image {path}" in done.stderr
    assert "Traceback" not in done.stderr
    assert not list(Path("runs").rglob("*.bin"))


def two_processes(*more: str, ok: bool = True, batch: int = 4) -> "subprocess.CompletedProcess[str]":
    """Run train.py as ``runs/two`` on two gloo processes, ``batch`` images on each."""
    ddp = ["--trainer.devices", "2", "--trainer.strategy", "ddp", "--data.batch_size", str(batch), "--run.name", "two"]
    command = [sys.executable, str(TRAIN), "--config", "cub200.yaml", *NETWORK, *QUIET, *more, *ddp]
    return subprocess.run(command, check=ok, timeout=300, capture_output=True, text=True)


@pytest.mark.slow
def test_every_shipped_overlay_builds(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small = [f"--{BACKBONE}.weights", "null", f"--{BACKBONE}.image_size", "96"]
    small += [f"--{POOLING}.pca_dim", "4"]
    for overlay in ("squeezenet", "vgg16", "resnet50", "efficientnet_lite0"):
        args = ["--config", "cub200.yaml", "--config", f"{overlay}.yaml", *small, *QUIET, "--run.name", overlay]
        assert main(args) == 0, overlay


RECIPES = [file for file in sorted(CONFIGS.glob("*.yaml")) if "max_epochs: " in file.read_text()]


@pytest.mark.slow
@pytest.mark.parametrize("file", RECIPES, ids=lambda file: file.name)
def test_every_shipped_recipe_trains(work: Path, file: Path) -> None:
    begin = ["--config", "cub200.yaml", *NETWORK, *QUIET, "--run.name", "a", "--config", file.name]
    small = [f"--{BACKBONE}.weights", "null", f"--{BACKBONE}.image_size", "64"]
    small += [f"--{POOLING}.pca_dim", "4", "--model.optimizer.hold_epochs", "0.5"]
    if "guide_dim" in file.read_text():
        small += [f"--{POOLING}.guide_dim", "4"]
    assert main([*begin, *small, "--data.validation", "0.34", "--trainer.max_epochs", "1"]) == 0
    assert json.loads(Path("runs/a/metrics.json").read_text())["seconds"]["fine-tuning"] > 0


@pytest.mark.parametrize("file", sorted(CONFIGS.glob("*.yaml")), ids=lambda file: file.name)
def test_shipped_configs_explain_each_key(file: Path) -> None:
    lines = file.read_text().splitlines()
    assert lines[0].startswith("# ")
    assert "python train.py --config" in file.read_text()
    assert isinstance(yaml.safe_load(file.read_text()), dict)
    for before, line in itertools.pairwise(lines):
        is_value = re.match(r"\s*\w+:\s*[^\s#]", line) and "class_path" not in line
        assert not is_value or " # " in line or before.strip().startswith("#"), f"{line.strip()!r} has no comment"


def test_three_seeds_are_three_trainings_of_the_same_images(work: Path) -> None:
    found = []
    for name, seed in (("a", "0"), ("b", "0"), ("c", "1")):
        (made if name == "a" else run)(name, *FINETUNE, "--seed_everything", seed)
        found.append(load_network(f"runs/{name}/checkpoints/last.ckpt"))
    weights = [network.backbone.state_dict()["trunk.features.0.weight"] for network in found]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])
    losses = [logged(name, "val/loss")[0] for name in "ab"]
    assert losses[0] == losses[1]


@pytest.mark.parametrize(
    ("mode", "change", "said"),
    [
        ([], [f"--{POOLING}.pca_dim", "9"], f"{POOLING}.pca_dim is 9, but the checkpoint's run had 8"),
        ([], ["--data.root", "other/CUB_200_2011"], "the classes of the data are others"),
        ([], ["--trainer.max_epochs", "1", "--model.closing_fit", "true"], "model.closing_fit is True"),
        ([], ["--data.validation", "0.34"], "the training images are others"),
        ([], ["--data.aspect", "crop"], "data.aspect is 'crop', but the checkpoint's run had 'warp'"),
        ([], ["--data.bbox", "true"], "data.bbox is True, but the checkpoint's run had False"),
        (FINETUNE, ["--data.split_seed", "5"], "what is held out now may have been trained on"),
        (FINETUNE, ["--data.validation", "0.5"], "what is held out now may have been trained on"),
        (
            FINETUNE,
            ["--model.optimizer.backbone_lr", "0.5"],
            "model.optimizer.backbone_lr is 0.5, but the checkpoint's run had 0.0005",
        ),
    ],
)
def test_a_resumption_must_be_of_the_same_run(
    work: Path, capsys: pytest.CaptureFixture[str], mode: list[str], change: list[str], said: str
) -> None:
    write_cub200(work / "other", classes=2)
    made("a", *mode)
    before = Path("runs/a/config.yaml").read_text()
    again = [*mode, "--run.name", "a", "--ckpt_path", "runs/a"]
    assert main(["--config", "cub200.yaml", *NETWORK, *QUIET, *again, *change]) == 2
    assert said in capsys.readouterr().err
    assert Path("runs/a/config.yaml").read_text() == before
    assert not Path("runs/a/config-resumed.yaml").exists()


def test_a_resumed_run_does_not_need_its_start_any_more(work: Path) -> None:
    made("first", "--data.validation", "0.34")
    start = ["--model.start", "runs/first", "--trainer.max_epochs", "1"]
    begun = run("a", *FINETUNE, *start)
    for path in Path("runs/first/checkpoints").iterdir():
        path.unlink()
    assert main(["--config", "runs/a/config.yaml", "--ckpt_path", "runs/a"]) == 0
    assert json.loads(Path("runs/a/metrics.json").read_text())["metrics"] == begun["metrics"]


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ([], "trainer.sync_batchnorm is given, but trainer.max_epochs is 0"),
        (FINETUNE, "shares statistics that this run does not take"),
        ([*FINETUNE, "--model.freeze_batch_norm", "false"], "trainer.sync_batchnorm needs GPUs"),
    ],
)
def test_batch_norm_is_synchronised_where_it_has_an_effect(
    work: Path, capsys: pytest.CaptureFixture[str], more: list[str], said: str
) -> None:
    assert main(["--config", "cub200.yaml", *NETWORK, *QUIET, *more, "--trainer.sync_batchnorm", "true"]) == 2
    assert said in capsys.readouterr().err


def test_a_pass_that_is_stopped_early_is_no_fit(
    work: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    step = Frozen.training_step

    def impatient(task: Frozen, batch: dict[str, torch.Tensor], batch_idx: int) -> None:
        step(task, batch, batch_idx)
        task.trainer.should_stop = True

    monkeypatch.setattr(Frozen, "training_step", impatient)
    assert main(["--config", "cub200.yaml", *NETWORK, *QUIET, "--run.name", "a"]) == 2
    assert "nothing was fitted" in capsys.readouterr().err
    assert not list(Path("runs").rglob("*.bin")) and not list(Path("runs").rglob("*.ckpt"))


def test_broken_weights_within_an_epoch_are_not_saved(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rates = [f"--model.optimizer.{part}_lr=1e30" for part in ("backbone", "projection", "classifier")]
    options = [*FINETUNE, *rates, "--model.start", "scratch", "--trainer.val_check_interval", "2"]
    assert main(["--config", "cub200.yaml", *NETWORK, *QUIET, "--run.name", "a", *options]) == 2
    assert "not finite" in capsys.readouterr().err
    assert not list(Path("runs/a").rglob("*.ckpt"))  # the first step broke them, before any was saved


def test_a_finished_run_resumes_to_its_test(work: Path) -> None:
    first = made("a")
    # the resolved config of a run goes on with it, or does it again
    command = ["--config", "runs/a/config.yaml", "--ckpt_path", "runs/a"]
    assert main(command) == 0
    assert json.loads(Path("runs/a/metrics.json").read_text())["metrics"] == first["metrics"]
    assert yaml.safe_load(Path("runs/a/config.yaml").read_text())["ckpt_path"] is None
    assert Path("runs/a/config-resumed.yaml").is_file()


def test_a_checkpoint_that_was_moved_is_resumed_in_a_new_run(work: Path) -> None:
    first = made("a")
    (work / "deep" / "er").mkdir(parents=True)
    copy = work / "deep" / "er" / "my.ckpt"
    copy.write_bytes(Path("runs/a/checkpoints/frozen.ckpt").read_bytes())
    assert run("b", "--ckpt_path", str(copy))["metrics"] == first["metrics"]
    assert [p.name for p in (work / "deep").rglob("*")] == ["er", "my.ckpt"]


def test_a_run_that_is_alive_is_not_resumed(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made("a")
    hold(Path("runs/a"))
    try:
        again = ["--run.name", "a", "--ckpt_path", "runs/a"]
        assert main(["--config", "cub200.yaml", *NETWORK, *QUIET, *again]) == 2
    finally:
        let_go_all()
    assert "another process is working in" in capsys.readouterr().err


def test_the_command_line_has_the_last_word_wherever_it_stands(work: Path) -> None:
    arguments = ["--data.validation", "0.34", "--config", "cub200.yaml", *NETWORK, *QUIET, "--config", "finetune.yaml"]
    assert main([*arguments, "--trainer.max_epochs", "1", "--run.name", "a"]) == 0
    assert logged("a", "train/loss_epoch").keys() == {1}
    assert json.loads(Path("runs/a/metrics.json").read_text())["images"] == {"train": 11, "val": 7, "test": 9}


def test_weight_averaging_finds_a_whole_network(work: Path) -> None:
    averaging = "[{class_path: pytorch_lightning.callbacks.EMAWeightAveraging}]"
    run("a", *FINETUNE, "--model.start", "scratch", "--trainer.callbacks", averaging)
    assert load_network("runs/a/checkpoints/last.ckpt").classifier is not None


BAD = {
    "run root is a file": (["--run.root", "data/CUB_200_2011/images.txt"], ["cannot make", "--run.root"]),
    "run name is a path": (["--run.name", "../x"], ["run.name is '../x'"]),
    "unknown config file": (["--config", "cub20.yaml"], ["cub20.yaml", "'cub200.yaml'"]),
    "unknown key": (["--data.bboxes", "1"], ["unknown key data.bboxes", "'data.bbox'"]),
    "unknown nested key": ([f"--{POOLING}.pca", "3"], [f"{POOLING}.pca", "pca_dim"]),
    "unknown trainer key": (["--trainer.max_epoch", "3"], ["unknown key trainer.max_epoch", "max_epochs"]),
    "wrong value": ([f"--{POOLING}.align", "x"], [f"{POOLING}.align is 'x'", "'to_local'"]),
    "wrong type": (["--trainer.max_epochs", "x"], ["trainer.max_epochs is 'x': expected int (or null)"]),
    "no number of epochs": (["--trainer.max_epochs", "null"], ["trainer.max_epochs is None", "0 for the frozen mode"]),
    "negative epochs": (["--trainer.max_epochs", "-1"], ["trainer.max_epochs is -1"]),
    "unknown class": (["--data.class_path", "Nope"], ["'Nope'", "CUB200"]),
    "unknown backbone": ([f"--{BACKBONE}.name", "resnet5"], ["'resnet5'", "resnet50"]),
    "unknown layer": ([f"--{BACKBONE}.layers", "[a, features.12]"], ["no layer 'a'", "squeezenet1_0"]),
    "unknown weights": ([f"--{BACKBONE}.weights", "w.pth"], ["weights file not found: w.pth"]),
    "pca_dim too large": ([f"--{POOLING}.pca_dim", "513"], ["pca_dim is 513", "512"]),
    "even sub-array": ([f"--{POOLING}.size", "2"], ["size is 2", "odd"]),
    "image size too small": ([f"--{BACKBONE}.image_size", "8"], ["8 x 8 pixels", "image_size"]),
    "no data": (
        ["--data.root", "elsewhere", "--data.download", "false"],
        ["elsewhere", "By hand", "97eceeb196236b17998738112f37df78", "demo.yaml"],
    ),
    "checkpoint not found": (["--ckpt_path", "x.ckpt"], ["checkpoint not found: x.ckpt"]),
    "nothing to hold out": (["--data.validation", "0.01"], ["hold out"]),
    "batch size": (["--data.batch_size", "0"], ["data.batch_size is 0"]),
    "augmentation": (["--data.augment.flip", "2"], ["data.augment.flip is 2", "between 0 and 1"]),
    "no cost": (["--model.frozen.c", "0"], ["model.frozen.c is 0", "greater than 0"]),
    "one fold": (["--model.frozen.folds", "1"], ["model.frozen.folds is 1"]),
    "two image sizes": (["--data.image_size", "96"], ["data.image_size is 96", "backbone.image_size"]),
    "sub-array too large": ([f"--{POOLING}.size", "5"], ["local map is 3x3", "5x5 sub-array"]),
    "official validation": (["--data.validation", "official"], ["CUB-200-2011 has no official validation images"]),
    "nothing to fit": (["--model.start", "scratch"], ["model.start is scratch", "finetune.yaml"]),
    "another folder": (["--trainer.default_root_dir", "x"], ["--run.root"]),
    **{
        f"a part of the images: {key} {value}": (
            [*FINETUNE, f"--trainer.{key}", value],
            [f"trainer.{key}", "its whole"],
        )
        for key, value in (
            ("limit_test_batches", "1"),
            ("limit_test_batches", "0.5"),
            ("limit_val_batches", "1"),
            ("limit_val_batches", "0.9"),
            ("limit_val_batches", "0"),
            ("fast_dev_run", "true"),
            ("fast_dev_run", "3"),
            ("overfit_batches", "1"),
            ("overfit_batches", "0.5"),
            ("barebones", "true"),
        )
    },
    "negative rate": ([*FINETUNE, "--model.optimizer.backbone_lr", "-1"], ["model.optimizer.backbone_lr is -1.0"]),
    "start": ([*FINETUNE, "--model.start", "forzen"], ["model.start is 'forzen'", "frozen, projection, scratch"]),
    "no value": (["--data.bbox", "--data.seed", "3"], ["--data.bbox has no value"]),
    "label smoothing": ([*FINETUNE, "--model.label_smoothing", "3"], ["model.label_smoothing is 3.0", "[0, 1)"]),
}


@pytest.mark.parametrize(("args", "said"), BAD.values(), ids=BAD.keys())
def test_bad_input_is_explained(
    work: Path, capsys: pytest.CaptureFixture[str], args: list[str], said: list[str]
) -> None:
    assert main(["--config", "cub200.yaml", *NETWORK, *QUIET, *args]) == 2
    message = capsys.readouterr().err
    assert message.startswith("error: ")
    for part in said:
        assert part in message


@pytest.mark.parametrize("workers", ["0", "2"])
@pytest.mark.parametrize("content", [b"", b"no picture at all", None], ids=["empty", "text", "truncated"])
def test_a_broken_image_is_named(
    work: Path, capsys: pytest.CaptureFixture[str], content: bytes | None, workers: str
) -> None:
    broken = min(Path("data/CUB_200_2011/images").rglob("*.jpg"))
    broken.write_bytes(broken.read_bytes()[:-400] if content is None else content)
    assert main(["--config", "cub200.yaml", *NETWORK, *QUIET, "--data.num_workers", workers]) == 2
    message = capsys.readouterr().err
    assert message.startswith("error: cannot decode image") and str(broken) in message
    assert "Traceback" not in message
    assert not list(Path("runs").rglob("*.bin"))  # no half-made features are left


def test_no_network_for_weights_says_what_to_do(
    work: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*args: object, **kwargs: object) -> None:
        raise OSError("network is unreachable")

    monkeypatch.setattr("urllib.request.urlopen", refuse)
    monkeypatch.setenv("TORCH_HOME", str(work / "hub"))
    assert main(["--config", "cub200.yaml", *QUIET]) == 2
    message = capsys.readouterr().err
    assert "caffenet-12.onnx" in message and "by hand" in message and "demo.yaml" in message
    assert main(["--config", "cub200.yaml", "--config", "resnet50.yaml", *QUIET]) == 2
    message = capsys.readouterr().err
    assert "resnet50" in message and "local FILE" in message


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("", "a.yaml holds no keys: it is empty"),
        ("hello", "holds no keys: it is 'hello'"),
        ("{a: [", "a.yaml is not YAML"),
    ],
)
def test_a_config_without_keys_is_named(
    work: Path, capsys: pytest.CaptureFixture[str], content: str, said: str
) -> None:
    (work / "a.yaml").write_text(content)
    assert main(["--config", "a.yaml"]) == 2
    assert said in capsys.readouterr().err


@pytest.mark.parametrize("order", [["finetune.yaml"], ["finetune.yaml", "demo.yaml"]])
def test_an_overlay_comes_after_what_it_changes(capsys: pytest.CaptureFixture[str], order: list[str]) -> None:
    # it says nothing of which data they are
    assert main([part for name in order for part in ("--config", name)]) == 2
    assert "finetune.yaml is an overlay: it changes data, which no config before it" in capsys.readouterr().err


@pytest.mark.parametrize(("args", "said"), [([], "there is nothing to run"), (["demo.yaml"], "--config demo.yaml")])
def test_no_config_is_asked_for(capsys: pytest.CaptureFixture[str], args: list[str], said: str) -> None:
    assert main(args) == 2
    assert said in capsys.readouterr().err


def test_configs_are_found_by_name_here_and_beside_the_package(work: Path) -> None:
    assert find_configs(["--config", "demo"]) == ["--config", str(CONFIGS / "demo.yaml")]
    assert find_configs(["--config=demo.yaml", "--x"]) == [f"--config={CONFIGS / 'demo.yaml'}", "--x"]
    (work / "demo.yaml").write_text("seed_everything: 1\n")
    assert find_configs(["-c", "demo.yaml"]) == ["-c", str(work / "demo.yaml")]  # the nearer one wins
    with pytest.raises(CxlpError, match="cub200"):
        find_configs(["--config", "cub2000"])


def test_backbone_of_a_frozen_run_does_not_move(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[dict[str, torch.Tensor]] = []

    def remember(build: Callable[..., Any]) -> Callable[..., Any]:
        def fit(trainer: Any, task: Any, *args: Any, **kwargs: Any) -> Any:
            seen.append({k: v.clone() for k, v in task.network.backbone.state_dict().items()})
            return build(trainer, task, *args, **kwargs)

        return fit

    import pytorch_lightning as pl

    monkeypatch.setattr(pl.Trainer, "fit", remember(pl.Trainer.fit))
    run("a", f"--{BACKBONE}.name", "resnet18", f"--{BACKBONE}.layers", "[layer4.0, layer4.1]")
    after = load_network("runs/a/checkpoints/frozen.ckpt").backbone.state_dict()
    assert any("running_mean" in key for key in after)
    for key, value in seen[0].items():
        assert torch.equal(after[key], value), key
