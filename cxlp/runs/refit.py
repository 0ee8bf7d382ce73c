"""The best epoch is chosen on held-out images; then the same recipe is run on all training images, up to that epoch.

The schedule of the second run has the length that the first one's had (``trainer.max_epochs``): what is learnt by the
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
    """The epoch that a run with held-out images has chosen.

    Attributes:
        checkpoint: The best one, as the user gave it.
        stage: The stage that wrote it.
        epoch: The last one that it has seen, as :mod:`cxlp.runs.epochs` counts. For a checkpoint from within
            an epoch, that epoch: it is fitted to its end.
        validated: What the held-out images said of it.
        images_per_step: In the run that has chosen.
    """

    checkpoint: str
    stage: Stage
    epoch: int
    validated: dict[str, float]
    images_per_step: int

    @property
    def last_gradient_epoch(self) -> int:
        """The last gradient epoch that it has seen, counted likewise: a closing fit is one behind it."""
        return self.epoch - (self.stage == "closing")

    @classmethod
    def of(cls, path: str, saved: Mapping[str, Any]) -> "Choice":
        """Say which epoch a checkpoint is of.

        Args:
            path: Its place.
            saved: What is in it.
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
    """Find what the second run goes on from; one that another choice had begun is put aside.

    Args:
        folder: The second run's.
        choice: What the first run chooses now.
        recipe: The chosen checkpoint's.

    Returns:
        Its newest checkpoint; ``None``: it begins anew.
    """
    # Without a Trainer: where the first run was done before, there was none. Only rank 0 clears away.
    first = launched_rank() == 0
    last = take_up(folder) if first else last_checkpoint(folder)
    begun = None if last is None else read_run(last)["cxlp_run"]
    before = Choice(**begun["choice"]) if begun else choice
    if begun is None or (before.stage, before.epoch, begun["recipe"]) == (choice.stage, choice.epoch, recipe):
        return last
    if first:
        aside = next(p for n in count(1) if not (p := folder.with_suffix(f".{n}")).exists())
        folder.rename(aside)
        say(f"what was there is of another choice, {title(before.stage, before.epoch)}: it is in {aside} now")
    return None


def stage_of(saved: Mapping[str, Any]) -> Stage:
    """Say which stage of a run wrote a checkpoint."""
    if saved["cxlp"]["task"] == "FineTune":
        return "finetune"
    return "closing" if saved["cxlp_run"]["first_epoch"] else "frozen"


class StopAfter(Callback):
    """Ends the gradient epochs after the chosen one, with the schedule of ``trainer.max_epochs``.

    Args:
        epoch: Counted by the Trainer, from 0.
    """

    def __init__(self, epoch: int) -> None:
        self.epoch = epoch

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Look where a resumed run is.

        Raises:
            CxlpError: If it is past the epoch already.
        """
        if trainer.current_epoch > self.epoch + 1:
            raise CxlpError(
                f"run.refit: gradient epoch {self.epoch + 1} was chosen, but this run has got to epoch "
                f"{trainer.current_epoch}: delete it, and refit anew"
            )
        if trainer.current_epoch > self.epoch:
            trainer.should_stop = True

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Ask for the end."""
        if trainer.current_epoch >= self.epoch:
            trainer.should_stop = True
