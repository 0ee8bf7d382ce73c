"""Runs that are killed at any moment, and gone on with, end as if nothing had happened."""

import random
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from cxlp.models.checkpoint import read_checkpoint
from cxlp.runs.folder import last_checkpoint, take_up
from tests.killing import Runner
from tests.small_run import ARGUMENTS, FINETUNE, logged, metrics, write_pictures

RANDOM_KILLS = 6
EPOCHS = 4
COMMAND = [*ARGUMENTS, *FINETUNE, "--trainer.max_epochs", str(EPOCHS), "--trainer.log_every_n_steps", "1"]
SCRATCH = ["--model.start", "scratch"]
EMA = "[{class_path: pytorch_lightning.callbacks.EMAWeightAveraging, init_args: {decay: 0.5}}]"
#: What is trained, by further arguments.
CASES = {
    "frozen": ["--data.num_workers", "1"],
    "scratch": SCRATCH,
    "EMA": [*SCRATCH, "--trainer.callbacks", EMA],
    "closing": [
        "--model.closing_fit",
        "true",
        "--model.cross_fit",
        "true",
        "--model.ema",
        "0.5",
        "--data.num_workers",
        "1",
    ],
}
GRADIENT_EPOCHS = {"whole frozen": 3, "whole scratch": 4, "whole EMA": 4, "whole closing": 2}
#: Each is reached by going on from the one before: the first epoch, between epochs, within one, while saving.
MOMENTS = {
    "batch 0 1": None,  # what is saved by then: nothing
    "save best 0": None,
    "save last 0": None,
    "start 1": 0,
    "batch 1 1": 0,
    "save last 1": 0,
    "batch 2 2": 1,
    "start 3": 2,
    "save last 3": 2,
    "test": 3,
}


@pytest.fixture(scope="module")
def runner(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runner]:
    """Runs in a folder of pictures."""
    folder = tmp_path_factory.mktemp("killed")
    write_pictures(folder)
    runner = Runner(folder)
    yield runner
    runner.close()


@pytest.fixture(params=list(CASES), scope="module")
def reference(request: pytest.FixtureRequest, runner: Runner) -> tuple[list[str], Path]:
    """A command, and the folder of its uninterrupted run."""
    command = [*COMMAND, *CASES[request.param]]
    folder = runner.log.parent / "runs" / f"whole {request.param}"
    assert runner([*command, "--run.root", str(folder.parent), "--run.name", folder.name]) == 0, runner.log.read_text()
    return command, folder


def session(runner: Runner, command: list[str], folder: Path, moment: str | None = None) -> int:
    """Begin a run, or go on with it as it says itself; whatever a kill left must not be in the way."""
    last = take_up(folder)
    if last is None:
        arguments = [*command, "--run.root", str(folder.parent), "--run.name", folder.name]
    else:
        arguments = ["--config", str(folder / "config.yaml"), "--ckpt_path", str(last)]
    status = runner(arguments, moment)
    assert status in (0, -9), runner.log.read_text()
    for checkpoint in (folder / "checkpoints").glob("*.ckpt"):
        read_checkpoint(checkpoint)  # whole
    return status


def saved_epoch(folder: Path) -> int | None:
    """The epoch that a run can be gone on from."""
    last = last_checkpoint(folder)
    return None if last is None else int(torch.load(last, weights_only=True)["epoch"])


def assert_same(one: Any, other: Any, where: str = "") -> None:
    """The same plain values and tensors, to the last bit."""
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


def assert_same_run(folder: Path, reference: Path, killed_after: Collection[int | None] = ()) -> None:
    """A run ended as another one.

    Args:
        folder: What was killed and gone on with.
        reference: What was not.
        killed_after: The epochs that were saved when kills came. The trainer writes an epoch's training loss right
            after ``last.ckpt``, so a kill may take that one line of the log; nothing else.
    """
    assert metrics(folder)["metrics"] == metrics(reference)["metrics"]
    for name in ("best.ckpt", "last.ckpt"):
        one, other = (torch.load(run / "checkpoints" / name, weights_only=True) for run in (folder, reference))
        keys = ["epoch", "global_step", "state_dict", "optimizer_states", "lr_schedulers", "averaging_state"]
        assert_same({k: one.get(k) for k in keys}, {k: other.get(k) for k in keys}, name)
    for key in ("val/accuracy", "val/loss", "train/loss_epoch"):
        found, expected = logged(folder, key), logged(reference, key)
        if key == "train/loss_epoch":
            expected = {epoch: v for epoch, v in expected.items() if epoch in found or epoch not in killed_after}
        assert found == expected, key
        assert len(logged(reference, key)) == (EPOCHS if key.startswith("val") else GRADIENT_EPOCHS[reference.name])
    assert not [p.name for p in folder.rglob("*") if p.name.endswith((".part", ".bin"))]
    assert [p.name for p in folder.parent.iterdir() if p.name.startswith(f"{folder.name}-")] == []


@pytest.mark.slow
def test_killed_at_each_kind_of_moment(runner: Runner, reference: tuple[list[str], Path]) -> None:
    command, whole = reference
    folder = whole.parent / f"moments of {whole.name}"
    for moment, epoch in MOMENTS.items():
        assert session(runner, command, folder, moment) == -9, moment
        assert saved_epoch(folder) == epoch, moment
    assert session(runner, command, folder) == 0
    assert_same_run(folder, whole)


@pytest.mark.slow
def test_killed_at_random_moments(runner: Runner, reference: tuple[list[str], Path]) -> None:
    command, whole = reference
    seconds = metrics(whole)["seconds"]["total"]
    draws = random.Random(0)
    kills: list[tuple[str, int | None]] = []
    for attempt in range(10):  # a run that is too fast for its kills is followed by another one
        folder = whole.parent / f"random {attempt} of {whole.name}"
        while len(kills) < RANDOM_KILLS:
            moment = f"after {draws.uniform(0, seconds):.2f}"
            if session(runner, command, folder, moment) == 0:
                seconds *= 0.8  # the machine may have been slower when the reference ran
                break
            kills.append((moment, saved_epoch(folder)))
        assert session(runner, command, folder) == 0
        assert_same_run(folder, whole, [epoch for _, epoch in kills])
        if len(kills) == RANDOM_KILLS:
            break
    print(f"killed {len(kills)} times, with that epoch saved: {kills}")  # noqa: T201
    assert len(kills) == RANDOM_KILLS
