"""Finished stages of a run, read from ``stages.json`` and checkpoints."""

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

#: The file that lists the finished stages of a run.
STAGES = "stages.json"
#: Name of the checkpoint that a run resumes a stage from.
_LAST = {"frozen": "frozen", "finetune": "last", "closing": "closing"}


@dataclass(frozen=True)
class Done:
    """A finished stage.

    Attributes:
        checkpoint: Path of its best checkpoint, relative to the run's folder; empty if none was saved.
        last: Path of its last checkpoint, which the next stage starts from.
        epoch: The epoch of ``checkpoint``, see :mod:`cxlp.runs.epochs`.
        epochs: Number of the first epoch after the stage.
        validated: Metrics of ``checkpoint`` on the held-out images.
        precision: The Trainer's precision in the stage.
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
    """Find the finished stages, from ``stages.json`` and from the resumed checkpoint itself.

    Args:
        folder: The run's folder.
        resumed: Path of the checkpoint that the run resumes from.
        saved: Content of that checkpoint.
        is_new: Whether the folder is new and the checkpoint lies elsewhere; then the checkpoint and those of the stages
            before it are copied.
        fits_first: Whether a stage precedes the gradient epochs.
        is_longer: Whether the run now has more gradient epochs than before.
    """
    run, stage = saved["cxlp_run"], stage_of(saved)
    if is_new:
        path, done = f"checkpoints/{_LAST[stage]}.ckpt", _copy_stages(folder, resumed, saved)
    else:
        state = folder / STAGES
        found = json.loads(state.read_text()) if state.is_file() else {}
        path, done = path_in_run(folder, resumed), {k: Done(**v) for k, v in found.items() if v["checkpoint"]}
    if stage != "frozen" and fits_first:
        done.setdefault("frozen", Done(path, path, 0, 1, {}, run["precision"]))
    if stage == "closing":
        first = run["first_epoch"]
        done.setdefault("finetune", Done(path, path, first - 1, first, {}, run["precision"]))
    if stage != "finetune":  # the run was killed before it wrote stages.json
        epoch = run["first_epoch"]
        done.setdefault(stage, Done(path, path, epoch, epoch + 1, saved["cxlp"]["validated"], run["precision"]))
    elif is_longer:
        done.pop("finetune", None)
    return {name: done[name] for name in ("frozen", "finetune", "closing") if name in done}


def _copy_stages(folder: Path, resumed: Path, saved: Mapping[str, Any]) -> dict[str, Done]:
    """Copy a checkpoint from another folder, and the checkpoints of the stages before it."""
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
            say(f"warning: {source}, the best checkpoint of stage {name}, no longer exists and cannot be tested")
    return done


def path_in_run(folder: Path, path: str | Path) -> str:
    """The path of a file, relative to the run's folder if inside it, since the folder may be moved."""
    real, own = Path(os.path.realpath(path)), Path(os.path.realpath(folder))
    return str(real.relative_to(own) if real.is_relative_to(own) else real)


def write_done(folder: Path, done: Mapping[str, Done]) -> None:
    """Write the finished stages to ``stages.json``."""
    found = {stage: asdict(each) for stage, each in done.items()}
    write_whole(folder / STAGES, json.dumps(found, indent=2) + "\n")
