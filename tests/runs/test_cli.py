"""``train.py`` from end to end: commands of users, and their results."""

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from pytorch_lightning import seed_everything

from cxlp.commands.train import main
from cxlp.data.cub200 import CUB200
from cxlp.data.transforms import AugmentConfig, Transform
from cxlp.deploy.loading import load
from cxlp.models.checkpoint import load_network
from cxlp.tasks.finetune import FineTune
from cxlp.tasks.frozen import Frozen
from tests.data.torchvision_copies import aircraft
from tests.generate import write_folder
from tests.runs.birds import FINETUNE, NETWORK, QUIET, logged, made, run
from tests.small_run import BACKBONE, POOLING


def test_a_frozen_run_writes_all_documented_files(birds: Path) -> None:
    found = run("a", "--data.bbox", "true")
    folder = birds / "runs" / "a"
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


def test_the_resolved_config_loads_again_and_gives_the_same_result(birds: Path) -> None:
    first = made("a")
    again = birds / "again.yaml"
    again.write_text((birds / "runs" / "a" / "config.yaml").read_text())
    assert main(["--config", str(again), "--run.name", "b"]) == 0
    second = json.loads((birds / "runs" / "b" / "metrics.json").read_text())
    assert second["metrics"] == first["metrics"]


def test_a_checkpoint_predicts_by_itself(birds: Path) -> None:
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
def test_baselines_run_by_one_switch(birds: Path, head: str) -> None:
    assert run("a", f"--{POOLING}", head)["metrics"]["test/accuracy"] > 0.3


def test_a_users_own_folder(birds: Path) -> None:
    write_folder(birds / "mine")
    found = run("a", "--data.root", "mine", config="folder.yaml")
    assert found["images"] == {"train": 18, "val": 0, "test": 9}
    assert "frozen/cv_accuracy_C10" in found["metrics"]  # C was chosen by cross-validation
    assert found["solver"] == "kernel" and "frozen/primal" not in found["metrics"]


def test_a_users_own_table_with_several_labels(birds: Path) -> None:
    """Write a table of the folder: the first kind has one label, the others two; ranking metrics."""
    write_folder(birds / "mine")
    labels = ("stripes", "stripes dots", "dots")
    paths = sorted(path.relative_to(birds / "mine") for path in (birds / "mine").rglob("*.png"))
    rows = [(path, path.parts[0], labels[int(path.parts[1][-1])]) for path in paths]
    text = "".join(f"{path},{split},{label}\n" for path, split, label in rows)
    (birds / "mine" / "kinds.csv").write_text(f"path,split,labels\n{text}")
    found = run("a", "--data.table", "mine/kinds.csv", config="table.yaml")
    assert found["images"] == {"train": 18, "val": 0, "test": 9}
    assert 0.5 < found["metrics"]["test/mAP"] <= 1
    assert json.loads(Path("runs/a/provenance.json").read_text())["data"]["name"] == "kinds"


def test_a_data_set_of_torchvision(birds: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    aircraft(birds / "data" / "torchvision", monkeypatch)
    found = run("a", "--data", "torchvision", "--data.name", "FGVCAircraft", config="squeezenet.yaml")
    assert found["images"] == {"train": 6, "val": 0, "test": 2}
    again = run("b", config="aircraft.yaml")
    assert again["images"] == found["images"]


def test_images_are_prepared_alike_in_training_and_prediction(birds: Path) -> None:
    inverted = "[{class_path: albumentations.InvertImg, init_args: {p: 1.0}}]"
    found = run("a", "--data.transform", inverted)
    model, plain = load("runs/a"), load("runs/a")
    plain.transform = Transform(64, "warp", AugmentConfig())
    data = CUB200()
    classes, samples = data.read()
    paths, truths = zip(*((s.path, classes[int(str(s.label))]) for s in samples["test"]), strict=True)
    answers = [found.classes[0] for found in model.predict(paths, top=1)]
    assert sum(map(str.__eq__, answers, truths)) / len(truths) == pytest.approx(found["metrics"]["test/accuracy"])
    one, other = (m.predict(paths[0]).probabilities for m in (model, plain))
    assert max(abs(a - b) for a, b in zip(one, other, strict=True)) > 0.01
    assert main(["--config", "runs/a/config.yaml", "--run.name", "b", *QUIET]) == 0, "the config can be loaded again"


def test_fine_tuning_begins_at_the_frozen_solution(birds: Path) -> None:
    frozen = made("frozen", "--data.validation", "0.34")
    # random weights have small gradients: this learning rate has a visible effect
    found = run("tuned", *FINETUNE, "--model.optimizer.backbone_lr", "0.1")
    curve = logged("tuned", "val/accuracy")
    assert sorted(curve) == [0, 1, 2]
    assert curve[0] == frozen["metrics"]["val/accuracy"]
    assert logged("tuned", "val/loss")[0] == pytest.approx(frozen["metrics"]["val/loss"], abs=1e-5)
    # all metrics are of the tested checkpoint, the best one, not of the last epoch
    assert Path("runs/tuned", found["tested"]).samefile("runs/tuned/checkpoints/best.ckpt")
    assert found["metrics"]["val/accuracy"] == pytest.approx(max(curve.values()))
    best = min(epoch for epoch, value in curve.items() if value == max(curve.values()))
    assert found["epoch"] == best
    assert found["metrics"]["val/loss"] == pytest.approx(logged("tuned", "val/loss")[best])
    before, after = (load_network(f"runs/tuned/checkpoints/{name}.ckpt") for name in ("frozen", "last"))
    for part in ("backbone", "heads", "classifier"):
        pairs = zip(getattr(before, part).parameters(), getattr(after, part).parameters(), strict=True)
        assert any(not torch.equal(old, new) for old, new in pairs), f"{part} did not move"


def test_fine_tuning_from_scratch_and_from_a_checkpoint(birds: Path) -> None:
    frozen = made("frozen", "--data.validation", "0.34")
    scratch = run("scratch", *FINETUNE, "--model.start", "scratch")
    assert sorted(logged("scratch", "train/loss_epoch")) == [1, 2]  # epoch 0 is the frozen fit, which is missing
    assert not any(key.startswith("frozen/") for key in scratch["metrics"])
    run("from", *FINETUNE, "--model.start", "runs/frozen/checkpoints/frozen.ckpt", "--model.optimizer.backbone_lr", "0",
        "--model.optimizer.projection_lr", "0", "--model.optimizer.classifier_lr", "0")  # fmt: skip
    assert logged("from", "val/accuracy")[2] == frozen["metrics"]["val/accuracy"]


def test_a_start_trained_on_held_out_images_gives_a_warning(birds: Path, capsys: pytest.CaptureFixture[str]) -> None:
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
    birds: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
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
    assert capsys.readouterr().err.endswith(f"interrupted. To continue: python -m cxlp train {said}\n")
    assert not Path("runs/cut/metrics.json").exists()
    assert torch.load("runs/cut/checkpoints/last.ckpt", weights_only=True)["epoch"] == 0
    seed_everything(123)  # random draws after the resumption must not depend on the state of this process
    assert main(said.split()) == 0
    resumed = json.loads(Path("runs/cut/metrics.json").read_text())
    assert resumed["metrics"] == whole["metrics"]
    assert "since resumed" in resumed["seconds"] and "total" not in resumed["seconds"]
    assert [p.name for p in Path("runs").iterdir() if p.name.startswith("cut")] == ["cut"]
    assert sorted(logged("cut", "val/accuracy")) == [0, 1, 2]  # the first session's logs are kept


def test_a_broken_loss_stops_and_keeps_the_last_good_checkpoint(
    birds: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rates = [f"--model.optimizer.{part}_lr=1e30" for part in ("backbone", "projection", "classifier")]
    assert main(["--config", "cub200.yaml", *NETWORK, *QUIET, "--run.name", "a", *FINETUNE, *rates]) == 2
    message = capsys.readouterr().err
    assert "not finite in gradient epoch 1" in message and "lower learning rates" in message
    assert sorted(p.name for p in Path("runs/a/checkpoints").iterdir()) == ["frozen.ckpt"]
    kept = load_network("runs/a/checkpoints/frozen.ckpt")
    assert all(torch.isfinite(p).all() for p in kept.parameters())
    assert kept.classifier is not None and kept.classifier.weight.any()  # the frozen solution


def test_two_runs_started_into_one_folder_do_not_mix(birds: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made("a")
    before = {p: p.stat().st_mtime_ns for p in Path("runs/a").rglob("*") if p.is_file()}
    assert main(["--config", "cub200.yaml", *NETWORK, *QUIET, "--run.name", "a"]) == 0
    assert {p: p.stat().st_mtime_ns for p in Path("runs/a").rglob("*") if p.is_file()} == before
    assert Path("runs/a-2/metrics.json").is_file()
    assert "run is stored in runs/a-2" in capsys.readouterr().out


def test_a_resumed_run_continues_its_wandb_run(birds: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("WANDB_API_KEY", "WANDB_MODE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(birds / "none"))
    found = run("a", "--run.wandb", "auto")
    saved = torch.load("runs/a/checkpoints/frozen.ckpt", weights_only=True)["cxlp_run"]
    (folder,) = Path("runs/a/wandb").glob("offline-run-*")
    assert saved["wandb_id"] and saved["wandb_id"] in folder.name
    assert run("a", "--run.wandb", "auto", "--ckpt_path", "runs/a")["metrics"] == found["metrics"]
    runs = list(Path("runs/a/wandb").glob("offline-run-*"))
    assert len(runs) == 2 and all(saved["wandb_id"] in r.name for r in runs)


def test_three_seeds_are_three_trainings_of_the_same_images(birds: Path) -> None:
    found = []
    for name, seed in (("a", "0"), ("b", "0"), ("c", "1")):
        (made if name == "a" else run)(name, *FINETUNE, "--seed_everything", seed)
        found.append(load_network(f"runs/{name}/checkpoints/last.ckpt"))
    weights = [network.backbone.state_dict()["trunk.features.0.weight"] for network in found]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])
    losses = [logged(name, "val/loss")[0] for name in "ab"]
    assert losses[0] == losses[1]


def test_a_resumed_run_does_not_need_its_start_checkpoint(birds: Path) -> None:
    made("first", "--data.validation", "0.34")
    start = ["--model.start", "runs/first", "--trainer.max_epochs", "1"]
    begun = run("a", *FINETUNE, *start)
    for path in Path("runs/first/checkpoints").iterdir():
        path.unlink()
    assert main(["--config", "runs/a/config.yaml", "--ckpt_path", "runs/a"]) == 0
    assert json.loads(Path("runs/a/metrics.json").read_text())["metrics"] == begun["metrics"]


def test_a_pass_that_is_stopped_early_is_an_error(
    birds: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    step = Frozen.training_step

    def impatient(task: Frozen, batch: dict[str, torch.Tensor], batch_idx: int) -> None:
        step(task, batch, batch_idx)
        task.trainer.should_stop = True

    monkeypatch.setattr(Frozen, "training_step", impatient)
    assert main(["--config", "cub200.yaml", *NETWORK, *QUIET, "--run.name", "a"]) == 2
    assert "nothing was fitted" in capsys.readouterr().err
    assert not list(Path("runs").rglob("*.bin")) and not list(Path("runs").rglob("*.ckpt"))


def test_broken_weights_within_an_epoch_are_not_saved(birds: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rates = [f"--model.optimizer.{part}_lr=1e30" for part in ("backbone", "projection", "classifier")]
    options = [*FINETUNE, *rates, "--model.start", "scratch", "--trainer.val_check_interval", "2"]
    assert main(["--config", "cub200.yaml", *NETWORK, *QUIET, "--run.name", "a", *options]) == 2
    assert "not finite" in capsys.readouterr().err
    assert not list(Path("runs/a").rglob("*.ckpt"))  # the first step produced NaN, before any checkpoint was saved


def test_a_finished_run_resumes_to_its_test(birds: Path) -> None:
    first = made("a")
    # the resolved config of a run continues or repeats it
    command = ["--config", "runs/a/config.yaml", "--ckpt_path", "runs/a"]
    assert main(command) == 0
    assert json.loads(Path("runs/a/metrics.json").read_text())["metrics"] == first["metrics"]
    assert yaml.safe_load(Path("runs/a/config.yaml").read_text())["ckpt_path"] is None
    assert Path("runs/a/config-resumed.yaml").is_file()


def test_a_moved_checkpoint_is_resumed_in_a_new_run(birds: Path) -> None:
    first = made("a")
    (birds / "deep" / "er").mkdir(parents=True)
    copy = birds / "deep" / "er" / "my.ckpt"
    copy.write_bytes(Path("runs/a/checkpoints/frozen.ckpt").read_bytes())
    assert run("b", "--ckpt_path", str(copy))["metrics"] == first["metrics"]
    assert [p.name for p in (birds / "deep").rglob("*")] == ["er", "my.ckpt"]


def test_the_command_line_overrides_configs_in_any_order(birds: Path) -> None:
    arguments = ["--data.validation", "0.34", "--config", "cub200.yaml", *NETWORK, *QUIET, "--config", "finetune.yaml"]
    assert main([*arguments, "--trainer.max_epochs", "1", "--run.name", "a"]) == 0
    assert logged("a", "train/loss_epoch").keys() == {1}
    assert json.loads(Path("runs/a/metrics.json").read_text())["images"] == {"train": 11, "val": 7, "test": 9}


def test_weight_averaging_sees_the_complete_network(birds: Path) -> None:
    averaging = "[{class_path: pytorch_lightning.callbacks.EMAWeightAveraging}]"
    run("a", *FINETUNE, "--model.start", "scratch", "--trainer.callbacks", averaging)
    assert load_network("runs/a/checkpoints/last.ckpt").classifier is not None


def test_the_backbone_of_a_frozen_run_does_not_change(birds: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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
