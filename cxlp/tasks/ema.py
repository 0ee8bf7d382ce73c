"""An exponential moving average of the weights."""

from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import WeightAveraging
from torch import Tensor


def warmed_up(decay: float, step: Tensor) -> Tensor:
    """Return the decay of the average at a step: ``min(decay, (1 + step) / (10 + step))``.

    With a constant decay of 0.999, the initial weights would still make up a third of the average after 1,000 steps,
    and a run on a small data set is shorter than that.

    Args:
        decay: The final decay.
        step: The step, counted from 1, as a scalar tensor to avoid synchronising with a GPU.
    """
    return ((1 + step) / (10 + step)).clamp(max=decay)


class AverageWeights(WeightAveraging):
    """An exponential moving average of the weights, with a decay that grows to its final value.

    ``average_0`` holds the initial weights; after step t, ``average_t = d_t average_{t-1} + (1 - d_t) weights_t``, with
    ``d_t = min(decay, (1 + t) / (10 + t))``. Validation and test use the averaged weights, and a checkpoint loads them.
    The checkpoint also holds the current weights, so that a resumed run continues with both.

    Args:
        decay: Final decay of the average per step.
        device: Device of the average.
    """

    def __init__(self, decay: float, device: torch.device) -> None:
        def update(averages: list[Tensor], currents: list[Tensor], updates: Tensor) -> None:
            # torch passes all tensors of one dtype together.
            if averages[0].is_floating_point():
                weight = 1 - warmed_up(decay, updates).to(averages[0])
                torch._foreach_lerp_(averages, currents, [weight] * len(averages))
            else:
                torch._foreach_copy_(averages, currents)

        super().__init__(device=device, multi_avg_fn=update)
        self._begun = False

    def should_update(self, step_idx: int | None = None, epoch_idx: int | None = None) -> bool:
        """Return True after each step, and for the first update, in :meth:`on_train_start`."""
        return step_idx is not None or not self._begun

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Set the average to the initial weights: torch copies the weights at the first update."""
        if not self._begun:
            self.on_train_epoch_end(trainer, pl_module)
            self._begun = True

    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Restore current and averaged weights for a fit; a test uses the averaged ones, already loaded."""
        if trainer.state.fn == "fit":
            super().on_load_checkpoint(trainer, pl_module, checkpoint)
            self._begun = "averaging_state" in checkpoint
