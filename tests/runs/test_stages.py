"""The stages of a run: their outputs, their starting points, and continuing a run at any of them."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from cxlp.commands.train import main
from cxlp.data.dataset import ImageDataset
from cxlp.frozen.fit import FrozenFit
from cxlp.models.checkpoint import load_network
from cxlp.reports.history import by_epoch, history
from cxlp.runs.recipe import GRADIENT_MODEL_KEYS, GRADIENT_TRAINER_KEYS
from cxlp.tasks import FineTune, Frozen
from tests.small_run import ARGUMENTS, BACKBONE, FINETUNE, POOLING, logged, metrics, prepared, run

HELD_OUT = ["--data.validation", "0.34"]
ALL_IMAGES = ["--data.validation", "0"]
CLOSING = ["--model.closing_fit", "true"]
CROSS_FIT = [*CLOSING, "--model.cross_fit", "true", "--model.ema", "0.5"]
STILL = [f"--model.optimizer.{part}_lr=0" for part in ("backbone", "projection", "classifier")]


def stages(folder: Path) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = json.loads((folder / "stages.json").read_text())
    return found


def checkpoint(folder: Path, name: str) -> dict[str, Any]:
    found: dict[str, Any] = torch.load(folder / "checkpoints" / f"{name}.ckpt", weights_only=True)
    return found


def weights(folder: Path, name: str) -> dict[str, Tensor]:
    return load_network(folder / "checkpoints" / f"{name}.ckpt").state_dict()


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(value, other[key]) for key, value in one.items())


class Counts:
    """Count the frozen fits, and the decoded training pictures including the held-out ones."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.fits = self.decoded = 0
        begin, decode = FrozenFit.__init__, ImageDataset.__getitem__

        def counted_fit(fit: FrozenFit, *args: Any, **options: Any) -> None:
            self.fits += 1
            begin(fit, *args, **options)

        def counted_decode(data: ImageDataset, draw: Any) -> Any:
            item = decode(data, draw)
            self.decoded += "train" in data.samples[0].path.parts and "image" in item
            return item

        monkeypatch.setattr(FrozenFit, "__init__", counted_fit)
        monkeypatch.setattr(ImageDataset, "__getitem__", counted_decode)


# --- the stages


@pytest.mark.parametrize(
    ("options", "expected", "files"),
    [
        ([], {"frozen": (0, 1)}, ["frozen"]),
        (HELD_OUT, {"frozen": (0, 1)}, ["frozen"]),
        (FINETUNE, {"frozen": (0, 1), "finetune": (1, 3)}, ["finetuned", "frozen", "last"]),
        ([*FINETUNE, *ALL_IMAGES], {"frozen": (0, 1), "finetune": (2, 3)}, ["frozen", "last"]),
        ([*FINETUNE, "--model.start", "scratch"], {"finetune": (1, 3)}, ["finetuned", "last"]),
        (
            [*FINETUNE, "--model.start", "projection"],
            {"frozen": (0, 1), "finetune": (1, 3)},
            ["finetuned", "frozen", "last"],
        ),
        (
            [*FINETUNE, *CROSS_FIT],
            {"frozen": (0, 1), "finetune": (1, 3), "closing": (3, 4)},
            ["closing", "finetuned", "frozen", "last"],
        ),
        (
            [*FINETUNE, *CLOSING, *ALL_IMAGES],
            {"frozen": (0, 1), "finetune": (2, 3), "closing": (3, 4)},
            ["closing", "frozen", "last"],
        ),
    ],
    ids=["frozen", "held out", "finetune", "all images", "scratch", "projection", "cross-fit", "closing"],
)
def test_stages_and_their_checkpoints(
    work: Path, options: list[str], expected: dict[str, tuple[int, int]], files: list[str]
) -> None:
    # no step changes anything: ties keep the earlier epoch
    folder = run("a", *options, *(STILL if FINETUNE[1] in options else []))
    found = stages(folder)
    assert {name: (stage["epoch"], stage["epochs"]) for name, stage in found.items()} == expected
    assert sorted(p.stem for p in (folder / "checkpoints").iterdir()) == sorted(["best", *files])
    for stage in found.values():  # relative to the run's folder
        assert (folder / stage["checkpoint"]).is_file() and (folder / stage["last"]).is_file()
        assert not Path(stage["checkpoint"]).is_absolute() and not Path(stage["last"]).is_absolute()
    # each stage logs into its own folder; epochs are counted over all of them
    assert sorted(p.name for p in (folder / "csv").iterdir()) == sorted([*expected, "test"])
    epochs = list(found.values())[-1]["epochs"]
    gradients = range(1, epochs - ("closing" in found)) if "finetune" in found else range(0)
    assert list(by_epoch(folder, "train/loss_epoch")) == list(gradients)
    held_out = metrics(folder)["images"]["val"] > 0
    assert list(by_epoch(folder, "val/loss")) == (list(range(int("frozen" not in found), epochs)) if held_out else [])
    assert list(by_epoch(folder, "frozen/C")) == [epoch for name, (epoch, _) in expected.items() if name != "finetune"]
    seen = [row["images_seen"] for rows in history(folder).values() for row in rows if "images_seen" in row]
    assert seen == sorted(seen)
    # the tested one: the best on the held-out images, or the last
    tested = metrics(folder)
    name = next(iter(found)) if held_out else list(found)[-1]
    assert (tested["tested"], tested["epoch"]) == (found[name]["checkpoint"], found[name]["epoch"])
    assert (folder / "checkpoints" / "best.ckpt").samefile(folder / tested["tested"])
    assert logged(folder, "test/accuracy") == {tested["epoch"]: tested["metrics"]["test/accuracy"]}


def test_each_stage_starts_from_the_exact_weights_of_the_previous_one(
    work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    began: list[tuple[str, dict[str, Tensor]]] = []

    def remembering(start: Callable[[Any], None]) -> Callable[[Any], None]:
        def remember(task: Any) -> None:
            state = {key: value.clone() for key, value in task.network.state_dict().items()}
            began.append((type(task).__name__, state))
            start(task)

        return remember

    for kind in (Frozen, FineTune):
        monkeypatch.setattr(kind, "on_train_start", remembering(kind.on_train_start))
    folder = run("a", *FINETUNE, *CROSS_FIT)
    assert [name for name, _ in began] == ["Frozen", "FineTune", "Frozen"]
    assert same(began[1][1], weights(folder, "frozen"))
    assert same(began[2][1], weights(folder, "last"))
    assert not same(weights(folder, "last"), weights(folder, "frozen"))
    # the closing fit does not change the backbone, and uses C and scale of the first fit
    last, closing = weights(folder, "last"), weights(folder, "closing")
    for key in (key for key in last if key.startswith("backbone.")):
        assert torch.equal(closing[key], last[key]), key
    reports = [checkpoint(folder, name)["cxlp"]["report"] for name in ("frozen", "closing")]
    assert all(reports[0][key] == reports[1][key] for key in ("C", "logit_scale"))


def test_the_best_by_validation_is_tested_and_ties_keep_the_earlier_stage(work: Path) -> None:
    still = run("still", *FINETUNE, *CLOSING, *STILL)
    found = stages(still)
    values = [stage["validated"]["val/accuracy"] for stage in found.values()]
    assert len(values) == 3 and values[0] == values[1] == max(values)
    assert metrics(still)["tested"] == "checkpoints/frozen.ckpt"
    # after a bad fit, with a zero classifier, the closing fit is better than the result before it
    better = run("better", *FINETUNE, "--model.start", "scratch", "--model.optimizer.classifier_lr", "1")
    curve = logged(better, "val/accuracy")
    best = min(epoch for epoch, value in curve.items() if value == max(curve.values()))
    assert metrics(better)["epoch"] == best
    assert metrics(better)["metrics"]["val/loss"] == pytest.approx(logged(better, "val/loss")[best])


def test_without_checkpoints_the_final_weights_are_tested(work: Path) -> None:
    folder = run("a", *FINETUNE, "--trainer.enable_checkpointing", "false")
    assert not list(folder.rglob("*.ckpt")) and not (folder / "stages.json").exists()
    found = metrics(folder)
    assert (found["tested"], found["epoch"]) == ("final weights", 2)
    assert found["metrics"]["val/loss"] == pytest.approx(logged(folder, "val/loss")[2])


def test_stages_are_compared_with_a_custom_checkpoint_callback(work: Path) -> None:
    options = "{monitor: val/loss, filename: 'x{epoch}'}"
    mine = f"[{{class_path: pytorch_lightning.callbacks.ModelCheckpoint, init_args: {options}}}]"
    folder = run("a", *FINETUNE, *STILL, "--trainer.callbacks", mine)
    assert stages(folder)["finetune"]["checkpoint"] == "checkpoints/xepoch=1.ckpt"  # ties keep the earlier epoch
    assert metrics(folder)["tested"] == "checkpoints/frozen.ckpt"


def test_a_closing_fit_follows_the_last_epoch_with_any_callbacks(work: Path) -> None:
    options = "{monitor: val/loss, mode: max, filename: worst, save_top_k: 1}"
    mine = f"[{{class_path: pytorch_lightning.callbacks.ModelCheckpoint, init_args: {options}}}]"
    folders = [
        run(name, *FINETUNE, *CLOSING, *more) for name, more in {"a": (), "b": ("--trainer.callbacks", mine)}.items()
    ]
    assert same(*(weights(folder, "closing") for folder in folders))


def test_a_custom_checkpoint_callback_works_in_the_frozen_mode(work: Path) -> None:
    mine = "[{class_path: pytorch_lightning.callbacks.ModelCheckpoint, init_args: {filename: mine}}]"
    folder = run("a", "--trainer.callbacks", mine)
    assert same(weights(folder, "mine"), weights(folder, "frozen"))


# --- an existing start


@pytest.mark.parametrize("given", ["runs/first", "runs/first/checkpoints/frozen.ckpt"])
def test_an_existing_frozen_run_is_the_first_stage(work: Path, monkeypatch: pytest.MonkeyPatch, given: str) -> None:
    first = prepared("first", *HELD_OUT)
    whole = prepared("whole", *FINETUNE)
    counts = Counts(monkeypatch)
    folder = run("a", *FINETUNE, "--model.start", given)
    assert counts.fits == 0
    assert counts.decoded == 2 * (12 + 7)  # two gradient epochs of three full batches: no other pass
    assert same(weights(folder, "start"), weights(first, "frozen"))
    # it is the start of a run with its own first pass
    assert same(weights(folder, "last"), weights(whole, "last"))
    found = [metrics(place) for place in (folder, whole)]
    assert found[0]["metrics"] == found[1]["metrics"]
    # and validation may choose it
    assert stages(folder)["frozen"]["validated"] == stages(first)["frozen"]["validated"]
    assert (found[0]["tested"], found[0]["epoch"]) == ("checkpoints/start.ckpt", 0)
    assert "extraction" not in found[0]["images_per_second"] and "extraction" not in found[0]["seconds"]


def test_a_start_with_other_held_out_images_is_not_compared(work: Path) -> None:
    prepared("first", *HELD_OUT, "--data.split_seed", "5")
    folder = run("a", *FINETUNE, "--model.start", "runs/first")
    assert stages(folder)["frozen"]["validated"] == {}
    assert metrics(folder)["tested"] == "checkpoints/finetuned.ckpt"


def test_a_closing_fit_after_a_start_counts_one_pass(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    prepared("first", *HELD_OUT)
    counts = Counts(monkeypatch)
    found = metrics(run("a", *FINETUNE, *CLOSING, "--model.start", "runs/first"))
    assert counts.fits == 1
    speeds, seconds = found["images_per_second"], found["seconds"]
    assert speeds["extraction"] == pytest.approx(11 / seconds["extraction"])
    assert speeds["fine-tuning"] == pytest.approx(24 / seconds["fine-tuning"])


def test_cross_fitting_starts_from_a_run_that_keeps_its_folds(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    prepared("frozen", *HELD_OUT)
    assert main([*ARGUMENTS, *FINETUNE, *CROSS_FIT, "--model.start", "runs/frozen"]) == 2
    assert "runs/frozen/checkpoints/best.ckpt lacks" in capsys.readouterr().err
    first = prepared("first", *FINETUNE, *CROSS_FIT)
    folder = run("a", *FINETUNE, *CROSS_FIT, "--model.start", str(first / "checkpoints" / "frozen.ckpt"))
    assert same(weights(folder, "closing"), weights(first, "closing"))


def test_cross_fitting_takes_no_folds_of_other_images(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    prepared("first", *FINETUNE, *CROSS_FIT)
    start = ["--model.start", "runs/first/checkpoints/frozen.ckpt"]
    assert main([*ARGUMENTS, *FINETUNE, *CROSS_FIT, *start, "--data.split_seed", "5"]) == 2
    assert "other training images" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (f"--{BACKBONE}.activation=before", "its backbone is"),
        (f"--{POOLING}.sqrt=false", "its heads is"),
        (f"--{BACKBONE}.image_size=40", "its backbone is"),
        ("--model.test_views.kind=crops", "its test_views is"),
        ("--data.aspect=crop", "data.aspect is 'crop', but runs/first/checkpoints/best.ckpt was fitted with 'warp'"),
    ],
)
def test_a_start_needs_the_same_network_and_preprocessing(
    work: Path, capsys: pytest.CaptureFixture[str], change: str, said: str
) -> None:
    prepared("first", *HELD_OUT)
    assert main([*ARGUMENTS, *FINETUNE, "--model.start", "runs/first", change]) == 2
    error = capsys.readouterr().err
    assert said in error and ("a different network" in error) == (said.startswith("its"))
    assert [path.name for path in Path("runs").iterdir()] == ["first"]  # before any output


def test_a_checkpoint_outside_a_run_is_explained(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    saved = checkpoint(prepared("first", *HELD_OUT), "frozen")
    del saved["cxlp_run"]  # as a Trainer in a script writes it
    torch.save(saved, "own.ckpt")
    for option in ("--model.start", "--ckpt_path"):
        assert main([*ARGUMENTS, *FINETUNE, option, "own.ckpt"]) == 2
        assert "own.ckpt was written by your own Trainer" in capsys.readouterr().err


@pytest.mark.slow
def test_two_processes_start_from_a_checkpoint(work: Path) -> None:
    prepared("first", *HELD_OUT)
    script = Path(__file__).parents[2] / "train.py"
    ddp = ["--trainer.devices", "2", "--trainer.strategy", "ddp", "--data.batch_size", "2", "--run.name", "two"]
    start = [*FINETUNE, "--model.start", "runs/first"]
    subprocess.run([sys.executable, str(script), *ARGUMENTS, *start, *ddp], check=True, timeout=300)
    one = weights(run("one", *start), "last")
    for key, value in weights(Path("runs/two"), "last").items():
        torch.testing.assert_close(value, one[key], rtol=1e-3, atol=1e-4)


# --- continuing


def cut(monkeypatch: pytest.MonkeyPatch, owner: type, hook: str, when: Any, *more: str) -> Path:
    """Start ``runs/cut``, and interrupt it in a hook of a task if ``when(task)`` is true."""
    work = getattr(owner, hook)

    def interrupted(task: Any, *args: Any) -> Any:
        if when(task):
            raise KeyboardInterrupt
        return work(task, *args)

    with monkeypatch.context() as patch:
        patch.setattr(owner, hook, interrupted)
        assert main([*ARGUMENTS, "--run.name", "cut", *FINETUNE, *more]) == 130
    return Path("runs/cut")


def in_closing_fit(task: Frozen) -> bool:
    return task.settled is not None


CUTS = {
    "first epoch": (FineTune, "on_train_epoch_start", lambda task: task.current_epoch == 0, ["frozen"]),
    "later epoch": (FineTune, "on_validation_start", lambda task: task.current_epoch == 1, ["frozen"]),
    "closing fit": (Frozen, "on_train_epoch_start", in_closing_fit, ["frozen", "finetune"]),
    "closing validation": (Frozen, "on_validation_epoch_start", in_closing_fit, ["frozen", "finetune"]),
}


@pytest.mark.parametrize("at", CUTS)
@pytest.mark.parametrize("moved", [False, True], ids=["stayed", "moved"])
def test_a_stopped_run_continues_at_its_stage(
    work: Path, monkeypatch: pytest.MonkeyPatch, at: str, moved: bool
) -> None:
    whole = prepared("whole", *FINETUNE, *CROSS_FIT)
    owner, hook, when, done = CUTS[at]
    folder = cut(monkeypatch, owner, hook, when, *CROSS_FIT)
    assert list(stages(folder)) == done
    if moved:
        Path("elsewhere").mkdir()
        folder = folder.rename("elsewhere/b")
    counts = Counts(monkeypatch)
    assert main(["--config", str(folder / "config.yaml"), "--ckpt_path", str(folder)]) == 0
    assert counts.fits == 1  # the closing one: finished stages are not repeated
    assert stages(folder) == stages(whole)
    for name in ("frozen", "finetuned", "last", "closing", "best"):
        assert same(weights(folder, name), weights(whole, name)), name
    one, other = metrics(folder), metrics(whole)
    assert all(one[key] == other[key] for key in ("metrics", "tested", "epoch"))
    for key in ("val/accuracy", "val/loss", "train/loss_epoch"):
        assert by_epoch(folder, key) == by_epoch(whole, key), key
    assert not Path("runs/cut-2").exists() and not (moved and Path("runs/cut").exists())


def test_a_run_that_was_stopped_in_its_first_pass_starts_again(
    work: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = cut(monkeypatch, Frozen, "on_validation_epoch_start", lambda task: True)
    assert "Nothing was saved yet: start again" in capsys.readouterr().err
    assert not folder.exists()  # nothing is left if nothing was finished
    folder.mkdir()
    assert main([*ARGUMENTS, "--ckpt_path", str(folder)]) == 2
    assert "runs/cut contains no checkpoint" in capsys.readouterr().err


def test_a_finished_run_that_was_moved_is_tested_again(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = metrics(prepared("a", *FINETUNE, *CLOSING))
    Path("runs").rename("elsewhere")
    counts = Counts(monkeypatch)
    for given in ("elsewhere/a", "elsewhere/a/checkpoints/closing.ckpt", "elsewhere/a/checkpoints/best.ckpt"):
        assert main(["--config", "elsewhere/a/config.yaml", "--ckpt_path", given]) == 0
        assert metrics(Path("elsewhere/a"))["metrics"] == first["metrics"]
    assert counts.decoded == 0 and not Path("runs").exists()


def test_a_moved_and_extended_run_keeps_its_best_epoch(work: Path) -> None:
    # after a good first epoch, gradients are zero: a schedule that depends on the length would blur it
    wild = ["--model.start", "scratch", "--model.optimizer.classifier_lr", "1"]
    found = {}
    for name in ("stayed", "moved"):
        folder = run(name, *FINETUNE, *wild)
        if name == "moved":
            folder = Path(shutil.move(folder, "elsewhere"))
        assert main(["--config", f"{folder}/config.yaml", "--ckpt_path", str(folder), "--trainer.max_epochs", "4"]) == 0
        curve = by_epoch(folder, "val/accuracy")
        assert list(curve) == [1, 2, 3, 4]
        best = min(epoch for epoch, value in curve.items() if value == max(curve.values()))
        assert metrics(folder)["epoch"] == best
        assert metrics(folder)["metrics"]["val/accuracy"] == pytest.approx(max(curve.values()))
        found[name] = (metrics(folder)["metrics"], stages(folder))
    assert found["moved"] == found["stayed"]


def test_an_extended_run_stays_extended(
    work: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = prepared("a", *FINETUNE)
    again = ["--config", str(folder / "config.yaml"), "--ckpt_path", str(folder)]
    assert main([*again, "--trainer.max_epochs", "1"]) == 2
    assert "trainer.max_epochs is 1, but the checkpoint's run had 2" in capsys.readouterr().err

    def stop(task: FineTune) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(FineTune, "on_train_epoch_start", stop)
        assert main([*again, "--trainer.max_epochs", "3"]) == 130
    assert not (folder / "metrics.json").exists()  # a series of runs would consider it finished
    assert main(again) == 0
    assert checkpoint(folder, "last")["epoch"] == 2
    assert (folder / "metrics.json").exists()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("--seed_everything=1", "seed_everything is 1, but the checkpoint's run had 0"),
        ("--trainer.limit_train_batches=1", "trainer.limit_train_batches is 1"),
        ("--trainer.precision=bf16-mixed", "trainer.precision is 'bf16-mixed'"),
        ("--model.start=projection", "model.start is 'projection', but the checkpoint's run had 'frozen'"),
    ],
)
def test_a_run_resumes_with_its_own_recipe_only(
    work: Path, capsys: pytest.CaptureFixture[str], change: str, said: str
) -> None:
    folder = prepared("a", *FINETUNE)
    assert main(["--config", str(folder / "config.yaml"), "--ckpt_path", str(folder), change]) == 2
    assert said in capsys.readouterr().err


def test_a_run_below_a_link_finds_its_checkpoints(work: Path) -> None:
    (work / "disk" / "deep").mkdir(parents=True)
    (work / "runs").symlink_to(work / "disk" / "deep")
    folder = run("a", *FINETUNE, "--model.start", "scratch")
    assert stages(folder)["finetune"]["checkpoint"] == "checkpoints/finetuned.ckpt"


@pytest.mark.parametrize("stage", ["frozen", "last", "closing"])
def test_a_checkpoint_alone_is_resumed_in_a_new_run(work: Path, monkeypatch: pytest.MonkeyPatch, stage: str) -> None:
    whole = prepared("whole", *FINETUNE, *CROSS_FIT)
    shutil.copy(whole / "checkpoints" / f"{stage}.ckpt", "my.ckpt")
    counts = Counts(monkeypatch)
    folder = run("b", *FINETUNE, *CROSS_FIT, "--ckpt_path", "my.ckpt")
    assert counts.fits == (stage != "closing")
    for name in ("closing", "best"):
        assert same(weights(folder, name), weights(whole, name)), name
    assert metrics(folder)["metrics"] == metrics(whole)["metrics"]


@pytest.mark.parametrize("gone", [False, True])
def test_a_checkpoint_alone_brings_its_best_epoch_if_it_exists(
    work: Path, capsys: pytest.CaptureFixture[str], gone: bool
) -> None:
    whole = run("whole", *FINETUNE, *STILL)  # ties keep the frozen stage
    shutil.copy(whole / "checkpoints" / "last.ckpt", "my.ckpt")
    if gone:
        whole.rename("elsewhere")
    capsys.readouterr()
    folder = run("b", *FINETUNE, *STILL, "--ckpt_path", "my.ckpt", "--trainer.max_epochs", "3")
    said = capsys.readouterr().out
    assert ["frozen.ckpt, the best" in said, "finetuned.ckpt, the best" in said] == [gone, gone]
    assert metrics(folder)["tested"] == f"checkpoints/{'finetuned' if gone else 'frozen'}.ckpt"
    assert metrics(folder)["epoch"] == (3 if gone else 0)
    Path("my.ckpt").unlink()
    shutil.rmtree("elsewhere" if gone else whole)
    moved = folder.rename("moved")  # it needs only its own folder
    assert main(["--config", str(moved / "config.yaml"), "--ckpt_path", str(moved)]) == 0


@pytest.mark.parametrize("change", [["--seed_everything", "1"], ["--data.split_seed", "1"]], ids=["recipe", "images"])
def test_the_best_epoch_of_another_run_is_not_copied(
    work: Path, capsys: pytest.CaptureFixture[str], change: list[str]
) -> None:
    """Another run has replaced the run of a checkpoint, with the same scores."""
    folder = prepared("a", *FINETUNE, *STILL)
    shutil.copy(folder / "checkpoints" / "last.ckpt", "my.ckpt")
    other = prepared("b", *FINETUNE, *STILL, *change) / "checkpoints" / "frozen.ckpt"
    scores = checkpoint(folder, "frozen")["cxlp"]["validated"]
    saved = torch.load("my.ckpt", weights_only=True)
    saved["cxlp_run"]["folder"] = str(folder.absolute())
    torch.save(saved, "my.ckpt")
    theirs = torch.load(other, weights_only=True)
    theirs["cxlp"]["validated"] = scores
    torch.save(theirs, folder / "checkpoints" / "frozen.ckpt")
    capsys.readouterr()
    found = run("c", *FINETUNE, *STILL, "--ckpt_path", "my.ckpt", "--trainer.max_epochs", "3")
    said = capsys.readouterr().out
    assert ["frozen.ckpt, the best" in said, "finetuned.ckpt, the best" in said] == [True, False]
    assert not (found / "checkpoints" / "frozen.ckpt").exists()


def test_a_custom_checkpoint_is_resumed(work: Path) -> None:
    options = "{save_top_k: -1, filename: 'x{epoch}', save_on_train_epoch_end: true}"
    mine = f"[{{class_path: pytorch_lightning.callbacks.ModelCheckpoint, init_args: {options}}}]"
    folder = run("a", *FINETUNE, "--trainer.callbacks", mine)
    before = checkpoint(folder, "xepoch=2")["state_dict"]
    (folder / "stages.json").unlink()
    for name in ("xepoch=2", "last"):
        (folder / "checkpoints" / f"{name}.ckpt").unlink()
    given = str(folder / "checkpoints" / "xepoch=1.ckpt")
    assert main(["--config", str(folder / "config.yaml"), "--ckpt_path", given]) == 0
    assert same(checkpoint(folder, "xepoch=2")["state_dict"], before)
    assert len(list((folder / "csv" / "finetune").iterdir())) == 2
    assert len(list((folder / "csv" / "frozen").iterdir())) == 1


# --- errors


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("model.closing_fit", "true"),
        ("model.ema", "0.5"),
        ("model.label_smoothing", "0.1"),
        ("model.mix", "mixup"),
        ("model.freeze_batch_norm", "false"),
        ("model.recompute", "true"),
        ("model.compile", "true"),
        ("trainer.max_steps", "5"),
        ("trainer.max_time", "00:00:01:00"),
        ("trainer.min_epochs", "1"),
        ("trainer.limit_train_batches", "1"),
        ("trainer.val_check_interval", "1"),
        ("trainer.check_val_every_n_epoch", "2"),
        ("trainer.accumulate_grad_batches", "2"),
        ("trainer.gradient_clip_val", "1"),
        ("trainer.gradient_clip_algorithm", "norm"),
        ("trainer.sync_batchnorm", "true"),
    ],
)
def test_options_of_gradient_epochs_are_refused_without_them(
    work: Path, capsys: pytest.CaptureFixture[str], key: str, value: str
) -> None:
    assert key.partition(".")[2] in (*GRADIENT_MODEL_KEYS, *GRADIENT_TRAINER_KEYS)
    assert main([*ARGUMENTS, f"--{key}", value]) == 2
    assert f"{key} is given, but trainer.max_epochs is 0" in capsys.readouterr().err
    assert not Path("runs").exists()  # before any output


def test_rates_without_gradient_epochs_are_refused(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*ARGUMENTS, "--model.optimizer.backbone_lr", "0.5"]) == 2
    assert "model.optimizer is given, but trainer.max_epochs is 0" in capsys.readouterr().err


# --- numbers of images


@pytest.mark.parametrize("more", [[], CLOSING], ids=["finetune", "closing"])
def test_the_extraction_speed_excludes_stored_features(
    work: Path, monkeypatch: pytest.MonkeyPatch, more: list[str]
) -> None:
    store = ["--model.frozen.store", "features"]
    first, again = (metrics(run(name, *HELD_OUT, *store)) for name in ("first", "again"))
    assert first["images_per_second"]["extraction"] == pytest.approx(11 / first["seconds"]["extraction"])
    assert "features made by an earlier run" in again
    assert "extraction" not in again["images_per_second"]  # nothing passed through the backbone
    tuned = metrics(run("tuned", *FINETUNE, *more, *store))
    speeds, seconds = tuned["images_per_second"], tuned["seconds"]
    assert speeds["fine-tuning"] == pytest.approx(24 / seconds["fine-tuning"])
    if more:  # only the closing fit's pass uses the backbone
        assert speeds["extraction"] == pytest.approx(11 / seconds["extraction"])
    else:
        assert "extraction" not in speeds
    # stored features are of the frozen network: later stages do not use them
    plain = prepared("plain", *FINETUNE, *more)
    for key in ("val/accuracy", "val/loss"):
        assert logged(Path("runs/tuned"), key) == pytest.approx(logged(plain, key), rel=1e-4), key
    assert tuned["metrics"] == pytest.approx(metrics(plain)["metrics"], rel=1e-4)
    # also of a continued run
    cut(monkeypatch, FineTune, "on_validation_start", lambda task: task.current_epoch == 1, *more, *store)
    assert main(["--config", "runs/cut/config.yaml", "--ckpt_path", "runs/cut"]) == 0
    speeds, seconds = metrics(Path("runs/cut"))["images_per_second"], metrics(Path("runs/cut"))["seconds"]
    assert speeds["fine-tuning"] == pytest.approx(24 / seconds["fine-tuning"])
    assert speeds.get("extraction") == (pytest.approx(11 / seconds["extraction"]) if more else None)
