"""``train.py --seeds N``: each run once, in its own process, and their mean and deviation."""

import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from statistics import stdev

import pytest
import torch
from jsonargparse import Namespace

from cxlp.commands.train import main
from cxlp.runs.cli import parse
from cxlp.runs.provenance import versions
from cxlp.studies.seeds import check_same_run, seeds_of, summarise
from cxlp.utils.errors import CxlpError
from cxlp.utils.locking import hold
from tests.small_run import ARGUMENTS, FINETUNE, metrics, run, write_pictures


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A new working directory with pictures, without a launcher."""
    monkeypatch.chdir(tmp_path)
    for name in ("RANK", "SLURM_PROCID", "SLURM_NTASKS"):
        monkeypatch.delenv(name, raising=False)
    write_pictures(tmp_path)
    return tmp_path


def from_seed(seed: int) -> Namespace:
    config = Namespace()  # type: ignore[no-untyped-call]
    config["seed_everything"] = seed
    return config


def test_mean_and_deviation_ignore_undefined_values() -> None:
    found = summarise({4: {"a": 1.0, "b": None, "c": 2.0}, 5: {"a": 2.0, "b": 3.0}, 6: {"a": 6.0, "b": 4.0}})
    assert found["a"] == {"values": [1.0, 2.0, 6.0], "mean": 3.0, "deviation": pytest.approx(7**0.5)}
    assert found["b"] == {"values": [None, 3.0, 4.0], "mean": 3.5, "deviation": pytest.approx(0.5**0.5)}
    assert found["c"] == {"values": [2.0, None, None], "mean": 2.0, "deviation": None}


def test_seeds_are_counted_from_the_configured_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RANK", raising=False)
    assert seeds_of(from_seed(7), 3) == [7, 8, 9]
    # a job with one task, as for a single machine of a cluster
    monkeypatch.setenv("SLURM_PROCID", "0")
    monkeypatch.setenv("SLURM_NTASKS", "1")
    assert seeds_of(from_seed(0), 1) == [0]
    monkeypatch.setenv("SLURM_NTASKS", "8")  # a batch script
    assert seeds_of(from_seed(0), 1) == [0]


@pytest.mark.parametrize(
    "launched",
    [{"RANK": "0"}, {"SLURM_PROCID": "0", "SLURM_NTASKS": "2", "SLURM_STEP_ID": "0"}],
    ids=["torchrun", "srun"],
)
def test_launching_a_series_by_torchrun_or_srun_is_refused(
    monkeypatch: pytest.MonkeyPatch, launched: dict[str, str]
) -> None:
    for name, value in launched.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(CxlpError, match="one job per seed, with --seed_everything 0, 1"):
        seeds_of(from_seed(0), 3)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (["--seeds", "0"], "seeds is 0: it must be 1 or more"),
        (["--seeds", "x"], "seeds is 'x': expected int (or null)"),
        (["--seeds", "2", "--ckpt_path", "a.ckpt"], "the same --run.name"),
        (["--seeds", "2", "--run.name", "single"], "runs/single is a single run"),
        (["--seeds", "2", "--run.name", "a/b"], "without slashes"),
        (["--seeds", "2", "--run.resume", "auto"], "run.resume is auto, which finds a run by its name: set run.name"),
    ],
)
def test_wrong_arguments_are_explained(
    work: Path, capsys: pytest.CaptureFixture[str], change: list[str], said: str
) -> None:
    (work / "runs" / "single").mkdir(parents=True)
    (work / "runs" / "single" / "config.yaml").touch()
    assert main([*ARGUMENTS, *change]) == 2
    assert said in capsys.readouterr().err
    assert [p.name for p in work.rglob("*seed*")] == []


def test_the_help_describes_seeds(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help-all"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "--seeds" in said and "data.split_seed is null" in said


def test_runs_of_another_command_are_not_reused(
    work: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    given = [
        *ARGUMENTS,
        *FINETUNE,
        "--trainer.callbacks",
        "[{class_path: pytorch_lightning.callbacks.ModelSummary}]",
    ]
    place = run("a", *given[len(ARGUMENTS) :])
    capsys.readouterr()
    # changes without effect on the result: location, name, speed, order of arguments
    (work / "pictures").rename(work / "moved")
    given += ["--data.root", "moved"]
    for changes in (
        ["--run.root", "x", "--run.group", "y", "--model.frozen.store", "z"],
        ["--data.batch_size", "4", "--model.optimizer.backbone_lr=0.01"],
        ["--data.num_workers", "1", "--trainer.log_every_n_steps", "1"],
    ):
        check_same_run(place, parse([*given, *changes]))
    check_same_run(work / "nothing", parse(given))
    assert capsys.readouterr().out == ""
    for change, said in {
        "--seed_everything=1": "seed_everything is 1, but the checkpoint's run had 0",
        "--trainer.max_epochs=3": "trainer.max_epochs is 3",
        "--data.batch_size=8": "data.init_args.batch_size is 8",
        "--data.validation=0.2": "the training images differ",
        "--trainer.precision=64-true": "trainer.precision",
        "--run.refit=true": "run.refit is True, but the checkpoint's run had False",
        "--trainer.callbacks=null": "trainer.callbacks",
    }.items():
        with pytest.raises(CxlpError, match=f"a is a different run, choose another --run.name: {said}"):
            check_same_run(place, parse([*given, change]))
    # other versions may have the same result: this is a warning
    monkeypatch.setattr("cxlp.studies.seeds.versions", lambda: {**versions(), "wandb": "99", "timm": "98"})
    check_same_run(place, parse(given))
    assert capsys.readouterr().out == f"warning: {place} was started with another version of timm, wandb\n"
    # runs of this command on other images or with other weights are not reused, either
    run_of = torch.load(place / "checkpoints" / "last.ckpt", weights_only=True)
    run_of["cxlp_run"]["weights"] = "other"
    torch.save(run_of, place / "checkpoints" / "closing.ckpt")
    with pytest.raises(CxlpError, match=r"weights of model\.backbone\.weights differ"):
        check_same_run(place, parse(given))
    (place / "checkpoints" / "closing.ckpt").unlink()
    kinds = [work / "moved" / split / "kind0" for split in ("train", "test")]
    next(kinds[0].iterdir()).write_bytes(next(kinds[1].iterdir()).read_bytes())
    with pytest.raises(CxlpError, match=r"the (training|held-out) images differ"):
        check_same_run(place, parse(given))
    # a run without a record of its recipe is not reused, either
    shutil.rmtree(place / "checkpoints")
    with pytest.raises(CxlpError, match="a has no checkpoint with its recipe"):
        check_same_run(place, parse(given))


def test_a_run_with_another_start_is_not_reused(work: Path) -> None:
    held = ["--data.validation", "0.34"]
    run("first", *held)
    place = run("a", *FINETUNE, "--model.start", "runs/first")
    given = [*ARGUMENTS, *FINETUNE, "--model.start"]
    for start in ("runs/first", "runs/first/checkpoints/best.ckpt"):
        check_same_run(place, parse([*given, start]))
    run("first", *held, "--model.frozen.c", "1")
    with pytest.raises(CxlpError, match=r"weights of model\.start differ"):
        check_same_run(place, parse([*given, "runs/first-2"]))
    with pytest.raises(CxlpError, match=r"model\.start is 'runs/none': expected"):
        check_same_run(place, parse([*given, "runs/none"]))


def test_a_series_reports_a_missing_output(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def run_in(place: Path, arguments: Sequence[str], log: Path) -> Path:
        place.mkdir(parents=True)
        outputs = {"failed": ["report.html"] if place.name == "a-seed0" else []}
        (place / "metrics.json").write_text(json.dumps({"metrics": {"test/accuracy": 0.5}, "outputs": outputs}))
        return place

    monkeypatch.setattr("cxlp.studies.seeds.run_in", run_in)
    assert main([*ARGUMENTS, "--run.name", "a", "--seeds", "2"]) == 3


def test_only_the_first_run_takes_the_wandb_id_of_the_environment(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str | None] = []

    def run_in(place: Path, *_: object) -> Path:
        seen.append(os.environ.get("WANDB_RUN_ID"))
        place.mkdir(parents=True, exist_ok=True)
        raise CxlpError("failed")

    monkeypatch.setattr("cxlp.studies.seeds.run_in", run_in)
    for done in (False, True):
        monkeypatch.setenv("WANDB_RUN_ID", "agents")
        if done:  # restarted
            monkeypatch.setattr("cxlp.studies.seeds.finished", lambda place: place if place.name == "a-seed0" else None)
            monkeypatch.setattr("cxlp.studies.seeds.check_same_run", lambda *_: None)
            monkeypatch.setattr("cxlp.studies.seeds.read_results", lambda _: {"metrics": {}})
        assert main([*ARGUMENTS, "--run.name", "a", "--seeds", "2"]) == 1
    assert seen == ["agents", None, None]


@pytest.mark.slow
def test_a_series_runs_once_and_is_summarised(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = [*ARGUMENTS, *FINETUNE, "--seed_everything", "3", "--run.name", "a", "--seeds", "2"]
    assert main(command) == 0
    folder = Path("runs/a")
    places = [folder / "a-seed3", folder / "a-seed4"]
    singles = [metrics(place)["metrics"] for place in places]
    found = json.loads((folder / "results.json").read_text())
    assert found["seeds"] == [3, 4] and found["failed"] == [] and found["runs"] == [str(place) for place in places]
    loss = found["metrics"]["test/loss"]
    assert loss["values"] == [single["test/loss"] for single in singles]
    assert loss["mean"] == pytest.approx(sum(loss["values"]) / 2) and loss["deviation"] == stdev(loss["values"]) > 0
    assert "| test/loss |" in (folder / "results.md").read_text()
    assert "test/loss" in capsys.readouterr().out
    # the seed changes the random weights, but not the held-out images
    saved = [torch.load(place / "checkpoints" / "last.ckpt", weights_only=True) for place in places]
    assert torch.equal(*(found["cxlp_run"]["images"]["fingerprints"]["train"] for found in saved))
    key = next(key for key, value in saved[0]["state_dict"].items() if "backbone" in key and value.ndim == 4)
    assert not torch.equal(saved[0]["state_dict"][key], saved[1]["state_dict"][key])
    # again, with one more seed, at which another process works: finished runs are kept, and the rest is summarised
    before = {p: p.stat().st_mtime_ns for place in places for p in place.rglob("*") if p.is_file()}
    (folder / "a-seed5").mkdir()
    hold(folder / "a-seed5")  # until train.py ends, which releases all locks
    capsys.readouterr()
    assert main([*command[:-1], "3"]) == 1
    said = capsys.readouterr().out
    assert said.count("done already") == 2 and "no result: seed 5" in said
    assert {p: p.stat().st_mtime_ns for p in before} == before
    again = json.loads((folder / "results.json").read_text())
    assert again["failed"] == [5] and again["metrics"] == found["metrics"]
    # runs of another command are not reused
    capsys.readouterr()
    assert main([*command, "--model.optimizer.backbone_lr", "0.2"]) == 1
    assert "model.optimizer.backbone_lr is 0.2, but the checkpoint's run had 0.01" in capsys.readouterr().out


@pytest.mark.slow
def test_a_series_of_refits_uses_their_tests(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    drawn = ["--data.validation", "0.34", "--data.split_seed", "null"]
    command = [*ARGUMENTS, *drawn, "--run.refit", "true", "--run.name", "a", "--seeds", "1"]
    assert main(command) == 0
    assert main(command) == 0
    assert "done already, in runs/a/a-seed0/refit" in capsys.readouterr().out
    found = json.loads(Path("runs/a/results.json").read_text())
    assert found["runs"] == ["runs/a/a-seed0/refit"]
    assert found["metrics"]["test/accuracy"]["deviation"] is None
