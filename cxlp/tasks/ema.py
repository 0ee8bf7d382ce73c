"""An exponential moving average of the weights, from the frozen solution on."""

from typing import Any

import pytorch_lightning as pl
import torch
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
        def update(averages: list[Tensor], currents: list[Tensor], updates: int | Tensor) -> None:
            # All tensors of one type at a time.
            if averages[0].is_floating_point():
                torch._foreach_lerp_(averages, currents, 1 - warmed_up(decay, updates))
            else:
                torch._foreach_copy_(averages, currents)

        super().__init__(multi_avg_fn=update)

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Copy the weights to where they will be: Lightning has not moved them yet."""
        self._device = trainer.strategy.root_device
        super().setup(trainer, pl_module, stage)

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Have a closing fit see the average; before the first step there is none."""
        if self._average_model is not None and self._average_model.n_averaged and _is_frozen(pl_module):
            self._copy_average_to_current(pl_module)

    def on_validation_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Show validation the average; after a frozen fit, that is its solution."""
        self._begin_with_solution(pl_module)
        super().on_validation_epoch_start(trainer, pl_module)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Begin with a frozen solution also where nothing is validated: the checkpoint follows."""
        self._begin_with_solution(pl_module)
        super().on_train_epoch_end(trainer, pl_module)

    def _begin_with_solution(self, pl_module: pl.LightningModule) -> None:
        if self._average_model is not None and _is_frozen(pl_module):
            self._average_model.module.load_state_dict(pl_module.state_dict())
            self._average_model.n_averaged.fill_(1)  # 0 would make the next update a copy

    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Go on with current and averaged weights; a test wants the averaged ones, which are loaded already."""
        if trainer.state.fn == "fit":
            super().on_load_checkpoint(trainer, pl_module, checkpoint)


def _is_frozen(task: pl.LightningModule) -> bool:
    return bool(getattr(task, "in_frozen_epoch", False))
