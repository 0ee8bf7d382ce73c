"""Numbers and names of epochs, and the line that is printed for each epoch.

Gradient epochs are numbered from 1 in everything that a user sees: terminal, logs, ``metrics.json``, ``stages.json``,
curves and error messages. The frozen fit precedes them and is epoch 0 where a number is needed, as on the axis of a
curve; training from scratch has no frozen fit and also starts with epoch 1. The closing fit has the number after the
last gradient epoch. Only the Trainer differs: its ``current_epoch``, and ``epoch`` in its checkpoints, count from 0 in
each stage, as usual in Lightning.
"""

import time
from collections.abc import Mapping
from typing import Any, Literal

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Callback

from cxlp.utils.progress import duration, say
from cxlp.utils.spelling import as_text

#: The stages of a run, in order.
Stage = Literal["frozen", "finetune", "closing"]


def title(stage: str, epoch: int) -> str:
    """Name an epoch: ``frozen fit``, ``epoch 3``, ``closing fit``."""
    return f"epoch {epoch}" if stage == "finetune" else f"{stage} fit"


class EpochLines(Callback):
    """Prints a line for each epoch: training loss, validation metric, best value so far, and duration.

    If an epoch is validated several times, the line shows the last value; the best value may be an earlier one.

    Args:
        metric: The metric that chooses the best epoch, such as ``val/accuracy``.
        epochs: Total number of gradient epochs.

    Attributes:
        stage: The current stage.
        first_epoch: The first epoch of the current stage, see :mod:`cxlp.runs.epochs`.
        best: The best value so far, and the title of its epoch.
    """

    def __init__(self, metric: str, epochs: int) -> None:
        self.metric, self.epochs = metric, epochs
        self.stage, self.first_epoch = "frozen", 0
        self.best: tuple[float, str] | None = None
        self._begin = 0.0
        self._validated: dict[str, float] = {}  # empty if the current epoch is not validated

    def take(self, validated: Mapping[str, float], when: str) -> None:
        """Update the best value with new validation metrics; ties keep the earlier epoch."""
        value = validated.get(self.metric)
        if value is not None and (self.best is None or value > self.best[0]):
            self.best = value, when

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Record the start time."""
        self._begin, self._validated = time.perf_counter(), {}

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Record the validation metric."""
        if not trainer.sanity_checking:
            found = trainer.callback_metrics.items()
            self._validated = {name: float(value) for name, value in found if name == self.metric}
            self.take(self._validated, title(self.stage, self.first_epoch + trainer.current_epoch))

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Print the line of the epoch."""
        found = dict(trainer.callback_metrics)  # on all ranks, since they compute the epoch's mean loss together
        if not trainer.is_global_zero:
            return
        name = title(self.stage, self.first_epoch + trainer.current_epoch)
        if self.stage == "finetune":
            name += f" of {self.epochs}"
        parts = []
        if "train/loss_epoch" in found:
            parts.append(f"train loss {float(found['train/loss_epoch']):.4f}")
        parts += [
            f"cross-validated {as_text(key, float(value))}"
            for key, value in found.items()
            if key in ("frozen/cv_accuracy", "frozen/cv_mAP")
        ]
        parts += [f"{name} {as_text(name, value)}" for name, value in self._validated.items()]
        if self.best is not None:
            parts.append(f"best {as_text(self.metric, self.best[0])} ({self.best[1]})")
        spent = duration(time.perf_counter() - self._begin)
        say("   ".join([f"{name:<{len(f'epoch {self.epochs} of {self.epochs}')}}", *parts, spent]))

    def state_dict(self) -> dict[str, Any]:
        """Return the best value so far, for resuming."""
        return {"best": self.best}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the best value."""
        self.best = None if state_dict["best"] is None else tuple(state_dict["best"])
