"""The refit: held-out images choose the epoch, and a second run on all training images ends there."""

import subprocess
import sys
from pathlib import Path

import pytest
import pytorch_lightning as pl
import torch

from cxlp.commands.train import main
from cxlp.runs.folder import finished
from cxlp.runs.refit import Choice, StopAfter, read_chosen
from cxlp.utils.errors import CxlpError
from tests.small_run import ARGUMENTS, FINETUNE, POOLING, logged, metrics, prepared, run

EACH_EPOCH = (
    "[{class_path: pytorch_lightning.callbacks.ModelCheckpoint, init_args: {save_top_k: -1, filename: 'x{epoch}'}}]"
)
ALL_IMAGES = ["--data.validation", "0"]


def choice(path: str) -> Choice:
    return Choice.of(path, read_chosen(path))


def saved(path: Path) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = torch.load(path, weights_only=True)["state_dict"]
    return found


def assert_same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    assert one.keys() == other.keys()
    for key, value in one.items():
        assert torch.equal(value, other[key]), key


def test_the_best_epoch_is_fitted_to_all_images_and_only_that_is_tested(
    work: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = run("a", *FINETUNE, "--run.refit", "true")
    second = first / "refit"
    assert not (first / "metrics.json").exists() and not (first / "per_class.csv").exists()
    assert not logged(first, "test/accuracy")
    curve = logged(first, "val/accuracy")
    best = min(epoch for epoch, value in curve.items() if value == max(curve.values()))
    found = metrics(second)
    assert found["images"] == {"train": 18, "val": 0, "test": 9}
    assert found["refit"]["epoch"] == best and found["refit"]["validated"]["val/accuracy"] == max(curve.values())
    stage = "frozen" if best == 0 else "finetuned"
    assert Path(found["refit"]["chosen by"]).samefile(first / "checkpoints" / f"{stage}.ckpt")
    assert found["epoch"] == best and choice(str(second / "checkpoints" / "best.ckpt")).epoch == best
    said = capsys.readouterr().out
    assert "refit: chosen" in said and f"has chosen: {f'epoch {best}' if best else 'frozen fit'}." in said


@pytest.mark.slow
@pytest.mark.parametrize("epoch", [0, 1, 2])
def test_a_refit_is_the_run_on_all_images_up_to_the_epoch(work: Path, epoch: int) -> None:
    name = f"xepoch={epoch}.ckpt" if epoch else "frozen.ckpt"
    chosen = prepared("chosen", *FINETUNE, "--trainer.callbacks", EACH_EPOCH) / "checkpoints" / name
    whole = prepared("whole", *FINETUNE, *ALL_IMAGES, "--trainer.callbacks", EACH_EPOCH)
    refit = run("refit", *FINETUNE, *ALL_IMAGES, "--run.refit", str(chosen))
    last = refit / "checkpoints" / ("last.ckpt" if epoch else "frozen.ckpt")
    assert_same(saved(last), saved(whole / "checkpoints" / name))
    assert last.samefile(refit / "checkpoints" / "best.ckpt")
    assert metrics(refit)["refit"]["epoch"] == metrics(refit)["epoch"] == epoch
    assert (refit / "checkpoints" / "last.ckpt").exists() == (epoch > 0)
    # resumed from its end, it does not change; repeated by its own config, it is equal
    assert main(["--config", "runs/refit/config.yaml", "--ckpt_path", "runs/refit"]) == 0
    assert_same(saved(last), saved(whole / "checkpoints" / name))
    assert main(["--config", "runs/refit/config.yaml"]) == 0
    assert metrics(Path("runs/refit-2"))["metrics"] == metrics(refit)["metrics"]


def test_a_frozen_refit_is_the_frozen_fit_of_all_images(work: Path) -> None:
    whole = prepared("whole")
    refit = run("a", "--data.validation", "0.34", "--run.refit", "true") / "refit"
    assert metrics(refit)["metrics"] == metrics(whole)["metrics"]
    assert_same(saved(refit / "checkpoints" / "best.ckpt"), saved(whole / "checkpoints" / "best.ckpt"))


@pytest.mark.slow
@pytest.mark.parametrize("at", ["before", "within"])
def test_an_interrupted_refit_continues(
    work: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], at: str
) -> None:
    # without a frozen fit, a gradient epoch is chosen
    command = [*FINETUNE, "--model.start", "scratch", "--run.refit", "true"]
    whole = prepared("whole", *command) / "refit"
    end = StopAfter.on_train_epoch_end

    def power_cut(callback: StopAfter, trainer: pl.Trainer, task: pl.LightningModule) -> None:
        if at == "before":
            raise KeyboardInterrupt
        end(callback, trainer, task)

    with monkeypatch.context() as patch:
        patch.setattr(StopAfter, "on_train_epoch_end", power_cut)
        if at == "within":  # the checkpoint exists, the test does not
            patch.setattr(pl.Trainer, "test", lambda *args, **kwargs: (_ for _ in ()).throw(KeyboardInterrupt))
        assert main([*ARGUMENTS, "--run.name", "cut", *command]) == 130
    said = capsys.readouterr().err.strip().rpartition("To continue: python -m cxlp train ")[2]
    where = {"before": "runs/cut/config.yaml", "within": "runs/cut/refit/config.yaml"}[at]
    assert Path(said.split()[1]).samefile(where)
    assert main(said.split()) == 0
    assert metrics(Path("runs/cut/refit"))["metrics"] == metrics(whole)["metrics"]
    assert sorted(p.name for p in Path("runs/cut").iterdir() if "refit" in p.name) == ["refit"]
    # and the first run, resumed from its end, finds the second run
    assert main(["--config", "runs/cut/config.yaml", "--ckpt_path", "runs/cut"]) == 0
    assert metrics(Path("runs/cut/refit"))["metrics"] == metrics(whole)["metrics"]


def test_a_refit_follows_the_current_choice(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The first run is extended or continued, and chooses another epoch than the one of its refit."""
    scratch = [*FINETUNE, "--model.start", "scratch", "--run.refit", "true", "--data.validation", "0.34"]
    fast = [f"--model.optimizer.{part}_lr=0.1" for part in ("backbone", "projection", "classifier")]
    first = run("a", *scratch, *fast, "--trainer.max_epochs", "1")
    before = metrics(first / "refit")
    assert before["refit"]["epoch"] == 1
    longer = ["--ckpt_path", str(first), "--trainer.max_epochs", "6"]
    assert main([*ARGUMENTS, *scratch, *fast, *longer]) == 0
    curve = logged(first, "val/accuracy")
    best = min(epoch for epoch, value in curve.items() if value == max(curve.values()))
    found = metrics(first / "refit")
    assert found["refit"]["epoch"] == found["epoch"] == best > 1
    said = capsys.readouterr().out
    assert f"epoch 1, to {first.absolute()}/refit.1" in said
    assert finished(first) == first / "refit" and finished(first / "refit.1") is None
    # if the choice is the same, the finished refit is kept
    assert main(["--config", f"{first}/config.yaml", "--ckpt_path", str(first)]) == 0
    assert metrics(first / "refit")["metrics"] == found["metrics"] and not (first / "refit.2").exists()


def test_an_extended_run_with_the_same_best_epoch_keeps_its_refit(work: Path) -> None:
    still = [f"--model.optimizer.{part}_lr=0" for part in ("backbone", "projection", "classifier")]  # ties
    first = run("a", *FINETUNE, *still, "--run.refit", "true")
    found = metrics(first / "refit")
    longer = ["--ckpt_path", str(first), "--trainer.max_epochs", "3"]
    assert main([*ARGUMENTS, *FINETUNE, *still, "--run.refit", "true", *longer]) == 0
    assert metrics(first / "refit")["metrics"] == found["metrics"]
    assert sorted(path.name for path in first.glob("refit*")) == ["refit"]


@pytest.mark.slow
def test_two_processes_choose_and_refit_as_one_does(work: Path) -> None:
    command = [*FINETUNE, "--run.refit", "true", "--trainer.max_epochs", "2"]
    one = metrics(run("one", *command) / "refit")
    # two processes with half the batch size
    ddp = ["--trainer.devices", "2", "--trainer.strategy", "ddp", "--data.batch_size", "2", "--run.name", "two"]
    train = Path(__file__).parents[2] / "train.py"
    subprocess.run([sys.executable, str(train), *ARGUMENTS, *command, *ddp], check=True, timeout=300)
    two = metrics(Path("runs/two/refit"))
    assert not Path("runs/two/metrics.json").exists()
    assert two["refit"]["epoch"] == one["refit"]["epoch"] and two["images"] == one["images"]
    assert two["metrics"] == pytest.approx(one["metrics"], rel=1e-3)


def test_callbacks_that_monitor_held_out_images_are_left_out(work: Path) -> None:
    patience = "[{class_path: pytorch_lightning.callbacks.EarlyStopping, init_args: {monitor: val/loss}}]"
    refit = run("a", *FINETUNE, "--run.refit", "true", "--trainer.callbacks", patience) / "refit"
    assert metrics(refit)["images"]["val"] == 0


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (["--run.refit", "true", *ALL_IMAGES], "set data.validation, such as 0.1"),
        (["--run.refit", "true", "--trainer.enable_checkpointing", "false"], "remove trainer.enable_checkpointing"),
        (
            ["--run.refit", "true", "--model.start", "runs/first"],
            "but model.start runs/first",
        ),
        (["--run.refit", "nowhere.ckpt", *ALL_IMAGES], "run.refit is 'nowhere.ckpt': expected true, false, or"),
    ],
)
def test_runs_that_cannot_be_refitted_are_refused(
    work: Path, capsys: pytest.CaptureFixture[str], change: list[str], said: str
) -> None:
    assert main([*ARGUMENTS, *FINETUNE, *change]) == 2
    assert said in capsys.readouterr().err


def test_a_refit_needs_the_same_recipe(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    chosen = prepared("a", *FINETUNE, "--trainer.callbacks", EACH_EPOCH) / "checkpoints/xepoch=2.ckpt"
    for change, said in {
        "--data.validation=0.34": "are held out: set data.validation: 0",
        "--model.optimizer.backbone_lr=0.5": "run.refit: model.optimizer.backbone_lr is 0.5, but the checkpoint's run",
        f"--{POOLING}.pca_dim=3": f"run.refit: {POOLING}.pca_dim is 3",
        "--data.augment.crop_scale=0.9": "run.refit: data.augment.crop_scale is 0.9",
        "--model.start=projection": "run.refit: model.start is 'projection', but the checkpoint's run had 'frozen'",
        "--trainer.gradient_clip_val=0.1": "run.refit: trainer.gradient_clip_val is 0.1",
        "--seed_everything=1": "run.refit: seed_everything is 1",
        "--data.batch_size=2": "trainer.accumulate_grad_batches) is 2, but",
        "--trainer.max_epochs=1": "run.refit: trainer.max_epochs is 1",
        "--trainer.max_epochs=9": "run.refit: trainer.max_epochs is 9",
    }.items():
        assert main([*ARGUMENTS, *FINETUNE, *ALL_IMAGES, "--run.refit", str(chosen), change]) == 2
        assert said in capsys.readouterr().err


def test_a_run_past_the_epoch_is_refused(work: Path) -> None:
    folder = prepared("a", *FINETUNE, *ALL_IMAGES)
    chosen = choice(str(folder / "checkpoints" / "last.ckpt"))
    assert chosen.epoch == 2 and chosen.validated == {}
    trainer = pl.Trainer(accelerator="cpu", devices=1, logger=False, enable_checkpointing=False)
    trainer.fit_loop.epoch_progress.current.completed = 3
    with pytest.raises(CxlpError, match=r"epoch 1 was chosen.* epoch 3"):
        StopAfter(0).on_train_start(trainer, pl.LightningModule())


def test_the_closing_fit_keeps_its_position(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    closing = ["--model.closing_fit", "true"]
    chosen = prepared("a", *FINETUNE, *closing) / "checkpoints" / "closing.ckpt"
    found = choice(str(chosen))
    assert (found.stage, found.epoch) == ("closing", 3)
    again = [*FINETUNE, *closing, *ALL_IMAGES, "--run.refit", str(chosen)]
    assert main([*ARGUMENTS, *again, "--trainer.max_epochs", "5"]) == 2
    assert "run.refit: trainer.max_epochs is 5" in capsys.readouterr().err
    refitted = run("b", *again)
    whole = prepared("whole", *FINETUNE, *closing, *ALL_IMAGES)
    assert_same(saved(refitted / "checkpoints" / "best.ckpt"), saved(whole / "checkpoints" / "closing.ckpt"))
    assert metrics(refitted)["refit"]["epoch"] == metrics(refitted)["epoch"] == 3


def test_a_refit_of_the_closing_fit_has_as_many_epochs_before_it(work: Path) -> None:
    patience = "{monitor: val/loss, patience: 1, min_delta: 100.0}"
    stops = f"[{{class_path: pytorch_lightning.callbacks.EarlyStopping, init_args: {patience}}}]"
    given = [*FINETUNE, "--model.closing_fit", "true", "--trainer.max_epochs", "6", "--trainer.callbacks", stops]
    chosen = run("a", *given) / "checkpoints" / "closing.ckpt"
    assert choice(str(chosen)).epoch == 3  # it stopped after two of six epochs
    refitted = run("b", *given, *ALL_IMAGES, "--run.refit", str(chosen))
    assert metrics(refitted)["refit"]["epoch"] == metrics(refitted)["epoch"] == 3
