"""An exponential moving average of the weights."""

from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import WeightAveraging
from torch import Tensor


def warmed_up(decay: float, step: Tensor) -> Tensor:
    """Decay of the average at a step, the first of which is 1: ``min(decay, (1 + step) / (10 + step))``.

    A constant decay of 0.999 would still be made of the start by a third after 1,000 steps, which are more than a small
    data set has in a whole run.

    Args:
        decay: In the long run.
        step: A scalar tensor, so that nothing waits for a GPU.
    """
    return ((1 + step) / (10 + step)).clamp(max=decay)


class AverageWeights(WeightAveraging):
    """Lightning's weight averaging, from the weights that training starts from, with a decay that grows to its value.

    ``average_0`` is the start; after step t, ``average_t = d_t average_{t-1} + (1 - d_t) weights_t``, with
    ``d_t = min(decay, (1 + t) / (10 + t))``. The averaged weights are what is validated, tested and loaded from a
    checkpoint, which keeps the current ones beside them, so that a resumed run goes on with both.

    Args:
        decay: Decay of the average per step, in the long run.
        device: Where the average is kept.
    """

    def __init__(self, decay: float, device: torch.device) -> None:
        def update(averages: list[Tensor], currents: list[Tensor], updates: Tensor) -> None:
            # torch passes all tensors of one type at a time.
            if averages[0].is_floating_point():
                weight = 1 - warmed_up(decay, updates).to(averages[0])
                torch._foreach_lerp_(averages, currents, [weight] * len(averages))
            else:
                torch._foreach_copy_(averages, currents)

        super().__init__(device=device, multi_avg_fn=update)
        self._begun = False

    def should_update(self, step_idx: int | None = None, epoch_idx: int | None = None) -> bool:
        """Say yes after each step, and at what :meth:`on_train_start` calls the end of an epoch."""
        return step_idx is not None or not self._begun

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Begin with the weights at the start: torch copies what it is given first."""
        if not self._begun:
            self.on_train_epoch_end(trainer, pl_module)
            self._begun = True

    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Go on with current and averaged weights; a test wants the averaged ones, which are loaded already."""
        if trainer.state.fn == "fit":
            super().on_load_checkpoint(trainer, pl_module, checkpoint)
            self._begun = "averaging_state" in checkpoint
