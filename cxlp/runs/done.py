"""Which stages of a run are done, as ``stages.json`` and checkpoints tell."""

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from cxlp.models.checkpoint import read_checkpoint
from cxlp.runs.launch import launched_rank
from cxlp.runs.protocol import same_run
from cxlp.runs.refit import stage_of
from cxlp.utils.files import copy_whole, write_whole
from cxlp.utils.progress import say

#: What a run writes about its stages.
STAGES = "stages.json"
#: The checkpoint of a stage that a run goes on from.
_LAST = {"frozen": "frozen", "finetune": "last", "closing": "closing"}


@dataclass(frozen=True)
class Done:
    """A stage that is done.

    Attributes:
        checkpoint: Its best one, relative to the run's folder; empty: none was saved.
        last: Its last one, which the next stage starts from.
        epoch: The epoch of ``checkpoint``, see :mod:`cxlp.runs.epochs`.
        epochs: The number of the epoch that comes after the stage.
        validated: What the held-out images say of ``checkpoint``.
        precision: The Trainer's in that stage.
    """

    checkpoint: str
    last: str
    epoch: int
    epochs: int
    validated: dict[str, float]
    precision: str


def find_done(
    folder: Path, resumed: Path, saved: Mapping[str, Any], is_new: bool, fits_first: bool, is_longer: bool
) -> dict[str, Done]:
    """Find the stages that are done: those of ``stages.json``, and what a checkpoint itself tells.

    Args:
        folder: The run's.
        resumed: The checkpoint that the run goes on from.
        saved: What is in it.
        is_new: Whether the folder is, and the checkpoint belongs to another run's: it is copied, with what it needs.
        fits_first: Whether gradient epochs have a stage before them.
        is_longer: Whether the run gets more gradient epochs than it had.
    """
    run, stage = saved["cxlp_run"], stage_of(saved)
    if is_new:
        path, done = f"checkpoints/{_LAST[stage]}.ckpt", _bring_stages(folder, resumed, saved)
    else:
        state = folder / STAGES
        found = json.loads(state.read_text()) if state.is_file() else {}
        path, done = place(folder, resumed), {k: Done(**v) for k, v in found.items() if v["checkpoint"]}
    if stage != "frozen" and fits_first:
        done.setdefault("frozen", Done(path, path, 0, 1, {}, run["precision"]))
    if stage == "closing":
        first = run["first_epoch"]
        done.setdefault("finetune", Done(path, path, first - 1, first, {}, run["precision"]))
    if stage != "finetune":  # killed before stages.json was written
        epoch = run["first_epoch"]
        done.setdefault(stage, Done(path, path, epoch, epoch + 1, saved["cxlp"]["validated"], run["precision"]))
    elif is_longer:
        done.pop("finetune", None)
    return {name: done[name] for name in ("frozen", "finetune", "closing") if name in done}


def _bring_stages(folder: Path, resumed: Path, saved: Mapping[str, Any]) -> dict[str, Done]:
    """Copy a checkpoint from elsewhere, with those of the stages before it, so that this run has all it needs."""
    copies = launched_rank() == 0
    if copies:
        copy_whole(resumed, folder / "checkpoints" / f"{_LAST[stage_of(saved)]}.ckpt")
    done = {}
    for name, facts in saved["cxlp_run"]["stages"].items():
        source = Path(saved["cxlp_run"]["folder"], facts["checkpoint"])
        found = read_checkpoint(source) if source.is_file() else None
        same = found is not None and same_run(found, saved, start=source.name == "start.ckpt")
        if found is not None and same and found["cxlp"]["validated"] == facts["validated"]:
            path = f"checkpoints/{source.name}"
            done[name] = Done(**{**facts, "checkpoint": path, "last": path})
            if copies:
                copy_whole(source, folder / path)
        elif facts["validated"] and copies:
            say(f"warning: {source}, the best of the stage {name}, is not there any more: it does not compete")
    return done


def place(folder: Path, path: str | Path) -> str:
    """Where a file is: relative to the run's folder if it is in there, since that may be moved."""
    real, own = Path(os.path.realpath(path)), Path(os.path.realpath(folder))
    return str(real.relative_to(own) if real.is_relative_to(own) else real)


def write_done(folder: Path, done: Mapping[str, Done]) -> None:
    """Write ``stages.json``."""
    found = {stage: asdict(each) for stage, each in done.items()}
    write_whole(folder / STAGES, json.dumps(found, indent=2) + "\n")
