"""The start of a run: nothing is written if it cannot start, and a continued refit finds the run of its choice."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl

from cxlp.commands.train import main
from cxlp.frozen.fit import FrozenFit
from cxlp.runs import stages
from cxlp.runs.trainers import build_trainer
from cxlp.tasks import FineTune
from cxlp.utils.errors import CxlpError
from tests.small_run import ARGUMENTS, BACKBONE, FINETUNE, metrics, prepared, run

ALL_IMAGES = ["--data.validation", "0"]


@pytest.fixture(autouse=True)
def no_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A user without wandb."""
    for name in ("WANDB_API_KEY", "WANDB_MODE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "none"))


def stop(error: BaseException) -> Callable[..., Any]:
    def stopped(*args: Any, **options: Any) -> Any:
        raise error

    return stopped


# --- errors before the work begins


@pytest.mark.parametrize(
    "change",
    [
        ["--data.root", "nowhere"],
        [f"--{BACKBONE}.name", "resnet5"],
        ["--model.head.pca_dim", "9999"],
        [*FINETUNE, "--model.start", "nowhere"],
        [*FINETUNE, *ALL_IMAGES, "--run.refit", "nowhere.ckpt"],
        ["--ckpt_path", "nowhere"],
        ["--run.name", "a/b"],
        ["--trainer.accelerator", "gpu"],
    ],
    ids=lambda change: change[-1],
)
def test_a_failed_start_leaves_no_files(work: Path, change: list[str]) -> None:
    assert main([*ARGUMENTS, "--run.wandb", "offline", *change]) == 2
    assert not list(work.rglob("runs/*")) and not (work / "wandb").exists()


@pytest.mark.parametrize("error", [CxlpError("broken"), KeyboardInterrupt()], ids=["error", "interrupt"])
def test_a_failed_pass_leaves_no_files_and_prints_the_image_counts(
    work: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], error: BaseException
) -> None:
    shutil.copytree("pictures", "copied")
    shutil.copy("copied/train/kind0/00.png", "copied/test/kind0/copy.png")
    monkeypatch.setattr(FrozenFit, "observe", stop(error))
    arguments = [*ARGUMENTS, "--run.wandb", "offline", "--data.root", "copied"]
    assert main(arguments) == (2 if isinstance(error, CxlpError) else 130)
    assert not list(work.rglob("runs/*"))
    assert "warning: 1 test images have the same content as training images" in capsys.readouterr().err


def test_finished_stages_are_kept_if_a_later_one_fails(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FineTune, "training_step", stop(CxlpError("broken")))
    assert main([*ARGUMENTS, *FINETUNE, "--run.name", "a"]) == 2
    assert Path("runs/a/checkpoints/frozen.ckpt").is_file()
    assert main([*ARGUMENTS, *FINETUNE, "--model.start", "scratch", "--run.name", "b"]) == 2
    assert not Path("runs/b").exists()  # its first batch was not complete


def test_a_resumed_run_is_never_deleted(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = prepared("a")
    before = sorted(path.relative_to(folder) for path in folder.rglob("*"))
    monkeypatch.setattr(pl.Trainer, "test", stop(CxlpError("broken")))
    assert main(["--config", "runs/a/config.yaml", "--ckpt_path", "runs/a"]) == 2
    after = [path.relative_to(folder) for path in folder.rglob("*") if path.name != "config-resumed.yaml"]
    assert set(before) <= set(after)


def test_tested_runs_are_kept_and_deleted_runs_are_not_continued(
    work: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copy(prepared("a") / "checkpoints" / "frozen.ckpt", "mine.ckpt")
    arguments = [*ARGUMENTS, "--ckpt_path", "mine.ckpt"]  # all of its stages are finished
    with monkeypatch.context() as patched:
        patched.setattr("cxlp.runs.results.write_report", stop(KeyboardInterrupt()))
        assert main([*arguments, "--run.name", "b"]) == 130
    assert Path("runs/b/metrics.json").is_file()
    assert "interrupted. To continue: python -m cxlp train --config runs/b/config.yaml" in capsys.readouterr().err
    monkeypatch.setattr(pl.Trainer, "test", stop(KeyboardInterrupt()))
    assert main([*arguments, "--run.name", "c"]) == 130
    assert not Path("runs/c").exists()
    assert "interrupted. Nothing was saved yet: start again" in capsys.readouterr().err


# --- images that were used before


@pytest.mark.parametrize("how", ["one folder deeper", "train and test exchanged", "renamed and exchanged"])
def test_a_start_recognises_test_images_in_any_folder(work: Path, capsys: pytest.CaptureFixture[str], how: str) -> None:
    first = prepared("first")
    root = work / "pictures"
    if how == "one folder deeper":  # a split of former training images
        root = root / "train"
    else:
        root = root.rename(work / "others")
        for one, other in (("train", "x"), ("test", "train"), ("x", "test")):
            (root / one).rename(root / other)
    if how == "renamed and exchanged":
        for number, picture in enumerate(sorted(root.rglob("*.png"), reverse=True)):
            picture.rename(picture.with_name(f"image{number}.png"))
    capsys.readouterr()
    more = ["--data.root", str(root), "--trainer.max_epochs", "1"]
    assert main([*ARGUMENTS, *more, "--model.start", str(first)]) == 2
    assert "of these test images" in capsys.readouterr().err
    assert main([*ARGUMENTS, "--data.root", str(root), "--ckpt_path", str(first)]) == 2
    assert "images differ from those of the checkpoint's run" in capsys.readouterr().err


# --- an interrupted test


def test_an_incomplete_test_is_refused(
    work: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:

    def cutting(*args: Any, **options: Any) -> pl.Trainer:
        trainer = build_trainer(*args, **options)
        trainer.limit_test_batches = 1  # as a callback may
        return trainer

    monkeypatch.setattr(stages, "build_trainer", cutting)
    assert main([*ARGUMENTS, "--run.name", "a"]) == 2
    assert " 4 of 9 images" in capsys.readouterr().err
    assert not Path("runs/a/metrics.json").exists() and not Path("runs/a/per_class.csv").exists()


# --- gradient descent that ends early


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        (["--trainer.max_steps", "2"], ("checkpoints/last.ckpt", 1)),  # within the first epoch: there was no validation
        (["--trainer.check_val_every_n_epoch", "3"], ("checkpoints/last.ckpt", 2)),
        (["--trainer.max_time", "00:00:00:00"], None),
    ],
)
def test_without_validation_the_last_epoch_counts_and_without_training_there_is_no_result(
    work: Path, capsys: pytest.CaptureFixture[str], more: list[str], expected: tuple[str, int] | None
) -> None:
    status = main([*ARGUMENTS, *FINETUNE, "--model.start", "scratch", "--run.name", "a", *more])
    if expected is None:
        assert status == 2 and "trainer.max_time" in capsys.readouterr().err
        assert not Path("runs/a/metrics.json").exists()
        return
    found = metrics(Path("runs/a"))
    assert (found["tested"], found["epoch"]) == expected and "val/accuracy" not in found["metrics"]
    assert main(["--config", "runs/a/config.yaml", "--ckpt_path", "runs/a"]) == 0
    assert metrics(Path("runs/a"))["metrics"] == found["metrics"]


# --- refits


@pytest.mark.parametrize("way", ["renamed", "moved", "copied"])
def test_a_refit_continues_after_both_runs_were_moved(work: Path, monkeypatch: pytest.MonkeyPatch, way: str) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(pl.Trainer, "test", stop(KeyboardInterrupt()))
        assert main([*ARGUMENTS, *FINETUNE, "--run.refit", "true", "--run.name", "a"]) == 130
    if way == "copied":
        shutil.copytree("runs", "copy")
        shutil.rmtree("runs")
        folder = Path("copy/a")
    else:
        folder = Path("runs/a").rename("runs/z" if way == "renamed" else "z")
    monkeypatch.setattr(pl.Trainer, "fit", stop(AssertionError("all is fitted already")))
    # the second run by its own folder, whose config names a missing checkpoint; then both
    for place in (folder / "refit", folder):
        assert main(["--config", f"{place}/config.yaml", "--ckpt_path", str(place)]) == 0
    assert [path.name for path in folder.iterdir() if "refit" in path.name] == ["refit"]
    assert metrics(folder / "refit")["images"]["train"] == 18


def test_a_refit_cannot_become_another_run_or_vice_versa(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    chosen = prepared("a", *FINETUNE) / "checkpoints" / "best.ckpt"
    whole = run("b", *FINETUNE, *ALL_IMAGES, "--run.refit", str(chosen))
    assert main(["--config", f"{whole}/config.yaml", "--ckpt_path", str(whole), "--run.refit", "false"]) == 2
    assert "error: run.refit " in capsys.readouterr().err
    prepared("c", *FINETUNE, *ALL_IMAGES)
    again = ["--config", "runs/c/config.yaml", "--ckpt_path", "runs/c", "--run.refit", str(chosen)]
    assert main(again) == 2
    assert "error: run.refit " in capsys.readouterr().err


@pytest.mark.parametrize("change", ["weights", "labels", "test images", "class order"])
def test_a_refit_needs_the_same_weights_and_images(work: Path, capsys: pytest.CaptureFixture[str], change: str) -> None:
    chosen = prepared("a", *FINETUNE) / "checkpoints" / "best.ckpt"
    pictures = work / "pictures"
    more: list[str] = []
    if change == "weights":
        import timm
        import torch

        torch.save(timm.create_model("test_resnet", pretrained=False).state_dict(), "other.pth")
        more = [f"--{BACKBONE}.weights", "other.pth"]
    elif change == "labels":
        next((pictures / "train" / "kind0").iterdir()).rename(pictures / "train" / "kind1" / "moved.png")
    elif change == "test images":
        next((pictures / "test" / "kind0").iterdir()).unlink()
    else:
        for split in ("train", "test"):
            (pictures / split / "kind0").rename(pictures / split / "last")
    command = [*ARGUMENTS, *FINETUNE, *ALL_IMAGES, *more, "--run.refit", str(chosen), "--run.name", "b"]
    assert main(command) == 2
    assert "error: run.refit: " in capsys.readouterr().err and not Path("runs/b").exists()
