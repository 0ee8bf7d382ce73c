"""Runs that are killed at any moment and continued end like uninterrupted runs."""

import json
import random
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from cxlp.models.checkpoint import read_checkpoint
from cxlp.runs.done import STAGES
from cxlp.runs.folder import take_up
from cxlp.runs.places import last_checkpoint
from tests.killing import Runner
from tests.small_run import ARGUMENTS, FINETUNE, logged, metrics, write_pictures

RANDOM_KILLS = 6
EPOCHS = 3
COMMAND = [*ARGUMENTS, *FINETUNE, "--trainer.max_epochs", str(EPOCHS), "--trainer.log_every_n_steps", "1"]
SCRATCH = ["--model.start", "scratch"]
EMA = "[{class_path: pytorch_lightning.callbacks.EMAWeightAveraging, init_args: {decay: 0.5}}]"
CLOSING = [
    *("--model.closing_fit", "true"),
    *("--model.cross_fit", "true"),
    *("--model.ema", "0.5"),
    *("--data.num_workers", "1"),
]
#: The runs, by additional arguments.
CASES = {
    "frozen": ["--data.num_workers", "1"],
    "scratch": SCRATCH,
    "EMA": [*SCRATCH, "--trainer.callbacks", EMA],
    "closing": CLOSING,
    "start": ["--model.start", "runs/first"],
}
#: Numbers of epochs before and after gradient descent.
AROUND = {"frozen": (1, 0), "scratch": (0, 0), "EMA": (0, 0), "closing": (1, 1), "start": (1, 0)}
#: Moments, each reached by continuing from the one before: within a pass, between stages and epochs, within an epoch,
#: while saving. Their values are the newest checkpoint at that time, and the epoch of its stage.
FROZEN = {
    "stage frozen": None,
    "pass frozen 1": None,
    "save frozen 1": None,
    "done frozen": ("frozen", 1),
    "stage finetune": ("frozen", 1),
}
GRADIENTS = {
    "batch 0 1": None,
    "save finetuned 0": None,
    "save last 0": None,
    "start 1": ("last", 0),
    "batch 1 1": ("last", 0),
    "save last 1": ("last", 0),
    "batch 2 2": ("last", 1),
    "save last 2": ("last", 1),
    "done finetune": ("last", 2),
}
CLOSING_FIT = {
    "stage closing": ("last", 2),
    "pass closing 1": ("last", 2),
    "save closing 1": ("last", 2),
    "done closing": ("closing", 1),
}


def moments(case: str) -> dict[str, tuple[str, int] | None]:
    """Return the moments of a case, in order."""
    before, after = AROUND[case]
    known = (
        ("frozen", 1) if before and case != "start" else None
    )  # the checkpoint before the end of the first gradient epoch
    return {
        **(FROZEN if known else {}),
        **{moment: saved or known for moment, saved in GRADIENTS.items()},
        **(CLOSING_FIT if after else {}),
        "stage test": ("closing", 1) if after else ("last", 2),
        "test": ("closing", 1) if after else ("last", 2),
    }


@pytest.fixture(scope="module")
def runner(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runner]:
    """Runs in a folder of pictures."""
    folder = tmp_path_factory.mktemp("killed")
    write_pictures(folder)
    runner = Runner(folder)
    held_out = ["--data.validation", "0.34"]
    assert runner([*ARGUMENTS, *held_out, "--run.name", "first"]) == 0, runner.log.read_text()
    yield runner
    runner.close()


@pytest.fixture(params=list(CASES), scope="module")
def reference(request: pytest.FixtureRequest, runner: Runner) -> tuple[str, list[str], Path]:
    """A case, its command, and the folder of its uninterrupted run."""
    command = [*COMMAND, *CASES[request.param]]
    folder = runner.log.parent / "runs" / f"whole {request.param}"
    assert runner([*command, "--run.root", str(folder.parent), "--run.name", folder.name]) == 0, runner.log.read_text()
    return request.param, command, folder


def session(runner: Runner, command: list[str], folder: Path, moment: str | None = None) -> int:
    """Start a run, or continue it with the arguments that it printed; remains of a kill must not matter."""
    if take_up(folder) is None:
        arguments = [*command, "--run.root", str(folder.parent), "--run.name", folder.name]
    else:
        arguments = ["--config", str(folder / "config.yaml"), "--ckpt_path", str(folder)]
    status = runner(arguments, moment)
    assert status in (0, -9), runner.log.read_text()
    for checkpoint in (folder / "checkpoints").glob("*.ckpt"):
        read_checkpoint(checkpoint)  # complete
    return status


def saved_epoch(folder: Path) -> tuple[str, int] | None:
    """Return the checkpoint from which a run can be continued, and its epoch."""
    last = last_checkpoint(folder)
    return None if last is None else (last.stem, int(torch.load(last, weights_only=True)["epoch"]))


def assert_same(one: Any, other: Any, where: str = "") -> None:
    """Compare plain values and tensors bitwise."""
    if isinstance(one, dict):
        assert one.keys() == other.keys(), where
        for key, value in one.items():
            assert_same(value, other[key], f"{where}.{key}")
    elif isinstance(one, list):
        assert_same(dict(enumerate(one)), dict(enumerate(other)), where)
    elif isinstance(one, Tensor):
        assert torch.equal(one, other), where
    else:
        assert one == other, where


def assert_same_run(case: str, folder: Path, reference: Path, killed_after: Collection[int] = ()) -> None:
    """Check that a run ended like another one.

    Args:
        case: The case of both runs.
        folder: The folder of the run that was killed and continued.
        reference: The folder of the uninterrupted run.
        killed_after: The gradient epochs that were saved at the time of the kills. The Trainer writes an epoch's
            training loss right after ``last.ckpt``, so a kill may lose that one line of the log, but nothing else.
    """
    one, other = metrics(folder), metrics(reference)
    for key in ("metrics", "tested", "epoch", "images"):
        assert one[key] == other[key], key
    assert json.loads((folder / STAGES).read_text()) == json.loads((reference / STAGES).read_text())
    names = [sorted(path.name for path in (run / "checkpoints").iterdir()) for run in (folder, reference)]
    assert names[0] == names[1]
    for name in names[0]:
        one, other = (torch.load(run / "checkpoints" / name, weights_only=True) for run in (folder, reference))
        keys = ["epoch", "global_step", "state_dict", "optimizer_states", "lr_schedulers", "averaging_state"]
        assert_same({k: one.get(k) for k in keys}, {k: other.get(k) for k in keys}, name)
        for key in ("images_seen", "images_by_phase", "report", "seen"):
            assert_same(one["cxlp_run"][key], other["cxlp_run"][key], f"{name} {key}")
    before, after = AROUND[case]
    # gradient epochs count from 1; the frozen fit is 0, unless it is missing or was another run's
    validated = range(0 if before and case != "start" else 1, 1 + EPOCHS + after)
    for key, epochs in {
        "val/accuracy": validated,
        "val/loss": validated,
        "train/loss_epoch": range(1, 1 + EPOCHS),
    }.items():
        found, expected = logged(folder, key), logged(reference, key)
        assert list(expected) == list(epochs), key
        if key == "train/loss_epoch":
            lost = {1 + epoch for epoch in killed_after}
            expected = {epoch: v for epoch, v in expected.items() if epoch in found or epoch not in lost}
        assert found == expected, key
    assert not [p.name for p in folder.rglob("*") if p.name.endswith((".part", ".bin"))]
    assert [p.name for p in folder.parent.iterdir() if p.name.startswith(f"{folder.name}-")] == []


@pytest.mark.slow
def test_killed_at_each_kind_of_moment(runner: Runner, reference: tuple[str, list[str], Path]) -> None:
    case, command, whole = reference
    folder = whole.parent / f"moments of {whole.name}"
    for moment, newest in moments(case).items():
        assert session(runner, command, folder, moment) == -9, moment
        assert saved_epoch(folder) == newest, moment
    assert session(runner, command, folder) == 0
    assert_same_run(case, folder, whole)


@pytest.mark.slow
def test_killed_at_random_moments(runner: Runner, reference: tuple[str, list[str], Path]) -> None:
    case, command, whole = reference
    seconds = metrics(whole)["seconds"]["total"]
    draws = random.Random(0)
    kills: list[tuple[str, tuple[str, int] | None]] = []
    for attempt in range(10):  # if a run ends before its kills, another one follows
        folder = whole.parent / f"random {attempt} of {whole.name}"
        while len(kills) < RANDOM_KILLS:
            moment = f"after {draws.uniform(0, seconds):.2f}"
            if session(runner, command, folder, moment) == 0:
                seconds *= 0.8  # the machine may have been slower during the reference run
                break
            kills.append((moment, saved_epoch(folder)))
        assert session(runner, command, folder) == 0
        lost = [newest[1] for _, newest in kills if newest is not None and newest[0] == "last"]
        assert_same_run(case, folder, whole, lost)
        if len(kills) == RANDOM_KILLS:
            break
    print(f"killed {len(kills)} times, with that checkpoint saved: {kills}")  # noqa: T201
    assert len(kills) == RANDOM_KILLS
