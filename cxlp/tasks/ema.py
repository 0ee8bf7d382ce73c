"""An exponential moving average of the weights."""

from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import WeightAveraging
from torch import Tensor


def warmed_up(decay: float, updates: Tensor) -> Tensor:
    """Decay of an average that has been updated so often: ``min(decay, (1 + t) / (10 + t))``.

    A constant decay of 0.999 would still be made of the start by a third after 1,000 steps, which are more than a small
    data set has in a whole run.

    Args:
        decay: In the long run.
        updates: t, a tensor, so that nothing waits for a GPU.
    """
    return ((1 + updates) / (10 + updates)).clamp(max=decay)


class AverageWeights(WeightAveraging):
    """Lightning's weight averaging with a decay that grows to its value.

    The averaged weights are what is validated, tested and loaded from a checkpoint; it keeps the current ones beside
    them, so that a resumed run goes on with both.

    Args:
        decay: Of the average, per step.
        device: Where it is kept.
    """

    def __init__(self, decay: float, device: torch.device) -> None:
        def update(averages: list[Tensor], currents: list[Tensor], updates: Tensor) -> None:
            # All tensors of one type at a time.
            if averages[0].is_floating_point():
                weight = 1 - warmed_up(decay, updates).to(averages[0])
                torch._foreach_lerp_(averages, currents, [weight] * len(averages))
            else:
                torch._foreach_copy_(averages, currents)

        super().__init__(device=device, multi_avg_fn=update)

    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Go on with current and averaged weights; a test wants the averaged ones, which are loaded already."""
        if trainer.state.fn == "fit":
            super().on_load_checkpoint(trainer, pl_module, checkpoint)
