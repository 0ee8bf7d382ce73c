"""Refit: choose an epoch on held-out images, then repeat the run on all images up to that epoch.

The second run uses the first run's schedule with its full length (``trainer.max_epochs``), since the result at the
chosen epoch depends on the learning rates until then. Only the second run is tested.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Callback

from cxlp.runs.epochs import Stage, title
from cxlp.runs.folder import read_run, take_up
from cxlp.runs.launch import launched_rank
from cxlp.runs.places import chosen_checkpoint, last_checkpoint
from cxlp.utils.errors import CxlpError
from cxlp.utils.progress import say


@dataclass(frozen=True)
class Choice:
    """The epoch that a run with held-out images chose.

    Attributes:
        checkpoint: Path of the best checkpoint, as given by the user.
        stage: The stage that wrote the checkpoint.
        epoch: Its last epoch, see :mod:`cxlp.runs.epochs`. For a checkpoint from within an epoch, that epoch: the refit
            completes it.
        validated: Metrics of the checkpoint on the held-out images.
        images_per_step: Global batch size of the run that chose the epoch.
    """

    checkpoint: str
    stage: Stage
    epoch: int
    validated: dict[str, float]
    images_per_step: int

    @property
    def last_gradient_epoch(self) -> int:
        """The last gradient epoch before the checkpoint; the epoch number of a closing fit is one higher."""
        return self.epoch - (self.stage == "closing")

    @classmethod
    def of(cls, path: str, saved: Mapping[str, Any]) -> "Choice":
        """Read the choice from a checkpoint.

        Args:
            path: Path of the checkpoint.
            saved: Content of the checkpoint.
        """
        run, stage = saved["cxlp_run"], stage_of(saved)
        epoch = run["first_epoch"] + (saved["epoch"] if stage == "finetune" else 0)
        return cls(path, stage, epoch, saved["cxlp"]["validated"], run["images_per_step"])


def read_chosen(path: str) -> dict[str, Any]:
    """Read the checkpoint that ``run.refit`` names.

    Raises:
        CxlpError: If there is no such checkpoint.
    """
    return read_run(chosen_checkpoint(path))


def find_refit(folder: Path, choice: Choice, recipe: Mapping[str, Any]) -> Path | None:
    """Find the checkpoint to resume the second run from; rename one started for another choice.

    Args:
        folder: Folder of the second run.
        choice: The current choice of the first run.
        recipe: The recipe of the chosen checkpoint.

    Returns:
        The newest checkpoint of the second run; ``None`` if it starts from the beginning.
    """
    # Uses no Trainer: there is none if the first run was already finished. Only rank 0 renames folders.
    first = launched_rank() == 0
    last = take_up(folder) if first else last_checkpoint(folder)
    begun = None if last is None else read_run(last)["cxlp_run"]
    before = Choice(**begun["choice"]) if begun else choice
    if begun is None or (before.stage, before.epoch, begun["recipe"]) == (choice.stage, choice.epoch, recipe):
        return last
    if first:
        aside = next(p for n in count(1) if not (p := folder.with_suffix(f".{n}")).exists())
        folder.rename(aside)
        say(f"moved the refit of an earlier choice, {title(before.stage, before.epoch)}, to {aside}")
    return None


def stage_of(saved: Mapping[str, Any]) -> Stage:
    """Return the stage of a run that wrote a checkpoint."""
    if saved["cxlp"]["task"] == "FineTune":
        return "finetune"
    return "closing" if saved["cxlp_run"]["first_epoch"] else "frozen"


class StopAfter(Callback):
    """Stops training after the chosen gradient epoch.

    The schedule keeps the length of ``trainer.max_epochs``.

    Args:
        epoch: The chosen epoch, counted from 0 as by the Trainer.
    """

    def __init__(self, epoch: int) -> None:
        self.epoch = epoch

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Stop a resumed run if it has already finished the chosen epoch.

        Raises:
            CxlpError: If the run has gone beyond the chosen epoch.
        """
        if trainer.current_epoch > self.epoch + 1:
            raise CxlpError(
                f"run.refit: gradient epoch {self.epoch + 1} was chosen, but this run has already reached epoch "
                f"{trainer.current_epoch}: delete the run and start the refit again"
            )
        if trainer.current_epoch > self.epoch:
            trainer.should_stop = True

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Stop after the chosen epoch."""
        if trainer.current_epoch >= self.epoch:
            trainer.should_stop = True
