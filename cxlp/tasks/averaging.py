"""An exponential moving average of the weights, from the frozen solution on."""

from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import WeightAveraging
from torch import Tensor


def warmed_up(decay: float, updates: int | Tensor) -> float:
    """Decay of an average that has been updated so often: ``min(decay, (1 + t) / (10 + t))``.

    A constant decay of 0.999 would still be made of the start by a third after 1,000 steps, which are more than a small
    data set has in a whole run.
    """
    t = int(updates)
    return min(decay, (1 + t) / (10 + t))


class AverageWeights(WeightAveraging):
    """Lightning's weight averaging, made to begin where the frozen fit ends.

    The averaged weights are what is validated, tested and loaded from a checkpoint; it keeps the current ones beside
    them, so that a resumed run goes on with both.

    Args:
        decay: Of the average, per step.
    """

    def __init__(self, decay: float) -> None:
        def update(average: Tensor, current: Tensor, updates: int | Tensor) -> Tensor:
            return average + (current - average) * (1 - warmed_up(decay, updates))

        super().__init__(avg_fn=update)

    def on_validation_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Show validation the average; after the frozen fit, that is its solution."""
        self._begin_with_solution(pl_module)
        super().on_validation_epoch_start(trainer, pl_module)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Begin with the frozen solution also where nothing is validated: the checkpoint follows."""
        self._begin_with_solution(pl_module)
        super().on_train_epoch_end(trainer, pl_module)

    def _begin_with_solution(self, pl_module: pl.LightningModule) -> None:
        if self._average_model is not None and getattr(pl_module, "in_frozen_epoch", False):
            self._average_model.module.load_state_dict(pl_module.state_dict())
            self._average_model.n_averaged.fill_(1)  # 0 would make the next update a copy

    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Go on with current and averaged weights; a test wants the averaged ones, which are loaded already."""
        if trainer.state.fn == "fit":
            super().on_load_checkpoint(trainer, pl_module, checkpoint)
