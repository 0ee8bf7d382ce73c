"""The best epoch is chosen on held-out images; then the same recipe is run on all training images, up to that epoch.

The schedule of the second run has the length that the first one's had (``trainer.max_epochs``): what is learnt by the
chosen epoch depends on the learning rates until then. Only the second run is tested.
"""

from dataclasses import dataclass
from pathlib import Path

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Callback

from cxlp.models.checkpoint import read_checkpoint
from cxlp.tasks.base import CrossLayerTask
from cxlp.tasks.compatibility import Saved
from cxlp.utils.errors import CxlpError


@dataclass(frozen=True)
class Choice:
    """The epoch that a run with held-out images has chosen.

    Attributes:
        checkpoint: Its best one.
        epoch: The last of that checkpoint, from 0; in fine-tuning from the frozen solution, 0 is the frozen fit. Of a
            checkpoint from within an epoch, that epoch: it is fitted to its end.
        validated: What the held-out images said of it.
        saved: What the checkpoint holds of the run, its recipe among it.
    """

    checkpoint: str
    epoch: int
    validated: dict[str, float]
    saved: Saved


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
    return Choice(checkpoint, int(saved["epoch"]), saved["cxlp"]["validated"], saved["cxlp"])


class StopAfter(Callback):
    """Ends a run after the chosen epoch, with the schedule of ``trainer.max_epochs``.

    Args:
        choice: Its epoch, and the recipe that it was chosen for: another one's best epoch is another.
    """

    def __init__(self, choice: Choice) -> None:
        self.choice, self.epoch = choice, choice.epoch

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Look where a resumed run is.

        Raises:
            CxlpError: If it is past the epoch already, or is of another recipe.
        """
        if trainer.current_epoch > self.epoch + 1:
            raise CxlpError(
                f"run.refit: epoch {self.epoch} was chosen, but this run has got to epoch {trainer.current_epoch - 1}: "
                "delete it, and refit anew"
            )
        if isinstance(pl_module, CrossLayerTask):
            try:
                pl_module.check_recipe(self.choice.saved)
            except CxlpError as error:
                raise CxlpError(f"run.refit: {error}") from error
        if trainer.current_epoch > self.epoch:
            trainer.should_stop = True

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Ask for the end."""
        if trainer.current_epoch >= self.epoch:
            trainer.should_stop = True
