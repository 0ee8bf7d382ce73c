"""The best epoch is chosen on held-out images; then the same recipe is run on all training images, up to that epoch.

The schedule of the second run has the length that the first one's had (``trainer.max_epochs``): what is learnt by the
chosen epoch depends on the learning rates until then. Only the second run is tested.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Callback

from cxlp.errors import CxlpError
from cxlp.network import read_checkpoint
from cxlp.tasks.base import CrossLayerTask


@dataclass(frozen=True)
class Choice:
    """The epoch that a run with held-out images has chosen.

    Attributes:
        checkpoint: Its best one.
        epoch: The last of that checkpoint, from 0; in fine-tuning from the frozen solution, 0 is the frozen fit. Of a
            checkpoint from within an epoch, that epoch: it is fitted to its end.
        validated: What the held-out images said of it.
        options: The recipe, see :meth:`cxlp.tasks.base.CrossLayerTask.options`.
        frozen_epochs: Those that fit without gradients.
    """

    checkpoint: str
    epoch: int
    validated: dict[str, float]
    options: dict[str, Any]
    frozen_epochs: tuple[int, ...]

    def check_recipe(self, options: dict[str, Any]) -> None:
        """Refuse another recipe: its best epoch is another.

        Raises:
            CxlpError: Names the option.
        """
        for key, value in options.items():
            if self.options.get(key) != value:
                raise CxlpError(
                    f"run.refit: model.{key} is {value!r}, but the run of {self.checkpoint} had "
                    f"{self.options.get(key)!r}: refit with its own configs, such as --config runs/NAME/config.yaml"
                )


def read_choice(checkpoint: str) -> Choice:
    """Read which epoch a checkpoint is of.

    Raises:
        CxlpError: If there is no such checkpoint.
    """
    if not Path(checkpoint).is_file():
        raise CxlpError(
            f"run.refit is {checkpoint!r}: expected true, false, or the best checkpoint of a run with held-out images"
        )
    saved = read_checkpoint(checkpoint)
    facts = saved["cxlp"]
    epochs = tuple(facts["frozen_epochs"])
    return Choice(checkpoint, int(saved["epoch"]), facts["validated"], facts["options"], epochs)


class StopAfter(Callback):
    """Ends a run after the chosen epoch, with the schedule of ``trainer.max_epochs``.

    Args:
        choice: Its epoch, and which ones fit without gradients.
    """

    def __init__(self, choice: Choice) -> None:
        self.choice, self.epoch = choice, choice.epoch

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Look where a resumed run is.

        Raises:
            CxlpError: If it is past the epoch already, or would end before it, or has its closing fit elsewhere.
        """
        if isinstance(pl_module, CrossLayerTask):
            pl_module.check_same_epochs(self.choice.frozen_epochs)
        if trainer.current_epoch > self.epoch + 1:
            raise CxlpError(
                f"run.refit: epoch {self.epoch} was chosen, but this run has got to epoch {trainer.current_epoch - 1}: "
                "delete it, and refit anew"
            )
        epochs = trainer.max_epochs
        if epochs is not None and 0 <= epochs <= self.epoch:
            raise CxlpError(
                f"run.refit: epoch {self.epoch} was chosen, but trainer.max_epochs is {epochs}: give the schedule of "
                "the run that chose it"
            )
        if trainer.current_epoch > self.epoch:
            trainer.should_stop = True

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Ask for the end."""
        if trainer.current_epoch >= self.epoch:
            trainer.should_stop = True
