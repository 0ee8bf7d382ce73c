"""An exponential moving average of the weights, from the frozen solution on."""

from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import WeightAveraging
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel


def warmed_up(decay: float, updates: int) -> float:
    """Decay of an average that has been updated so often: ``min(decay, (1 + t) / (10 + t))``.

    A constant decay of 0.999 would still be made of the start by a third after 1,000 steps, which are more than a small
    data set has in a whole run.
    """
    return min(decay, (1 + updates) / (10 + updates))


class _Average(AveragedModel):
    """Torch's averaged model, whose update never waits for the GPU: the count of updates lies on the CPU."""

    def __init__(self, model: nn.Module, device: torch.device, decay: float) -> None:
        super().__init__(model, device, use_buffers=True)
        self.n_averaged = torch.tensor(0)
        self.decay = decay

    @torch.no_grad()
    def update_parameters(self, model: nn.Module) -> None:
        """Move the average a step towards a model; the first update is a copy."""
        by_type: dict[torch.dtype, tuple[list[Tensor], list[Tensor]]] = {}
        for average, current in zip(_tensors(self.module), _tensors(model), strict=True):
            averages, currents = by_type.setdefault(average.dtype, ([], []))
            averages.append(average)
            currents.append(current)
        updates = int(self.n_averaged)
        for dtype, (averages, currents) in by_type.items():
            if updates and dtype.is_floating_point:
                torch._foreach_lerp_(averages, currents, 1 - warmed_up(self.decay, updates))
            else:
                torch._foreach_copy_(averages, currents)
        self.n_averaged += 1


def _tensors(module: nn.Module) -> list[Tensor]:
    return [*module.parameters(), *module.buffers()]


class AverageWeights(WeightAveraging):
    """Lightning's weight averaging, made to begin where the frozen fit ends.

    The averaged weights are what is validated, tested and loaded from a checkpoint; it keeps the current ones beside
    them, so that a resumed run goes on with both.

    Args:
        decay: Of the average, per step.
    """

    def __init__(self, decay: float) -> None:
        super().__init__()
        self.decay = decay

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Copy the weights to where they will be: Lightning has not moved them yet."""
        if stage == "fit":
            self._average_model = _Average(pl_module, trainer.strategy.root_device, self.decay)

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
