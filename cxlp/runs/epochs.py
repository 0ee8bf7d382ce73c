"""How epochs are counted and named, and the line that stays in the terminal of each.

Gradient epochs count from 1 wherever a user meets them: in the terminal, logs, ``metrics.json``, ``stages.json``,
curves and errors. The frozen fit comes before them: where a number is needed, as on the axis of a curve, it is 0 (from
scratch there is none, and gradient epochs begin with 1 likewise). The closing fit takes the number behind the last one.
The boundary is the Trainer: its ``current_epoch``, and ``epoch`` in the checkpoints that it writes, count from 0 in
each stage anew, as Lightning has it.
"""

import time
from collections.abc import Mapping
from typing import Any, Literal

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Callback

from cxlp.utils.progress import duration, say
from cxlp.utils.spelling import as_text

#: The stages of a run, in their order.
Stage = Literal["frozen", "finetune", "closing"]


def title(stage: str, epoch: int) -> str:
    """Name an epoch: ``frozen fit``, ``epoch 3``, ``closing fit``."""
    return f"epoch {epoch}" if stage == "finetune" else f"{stage} fit"


class EpochLines(Callback):
    """Prints a line for each epoch: training loss, what the held-out images say, the best so far, the time it took.

    Of an epoch that is validated several times, the last one is told; the best one may lie within it.

    Args:
        metric: The one that chooses, such as ``val/accuracy``.
        epochs: How many gradient epochs there are to be.

    Attributes:
        stage: The present one.
        first_epoch: Its first epoch, as :mod:`cxlp.runs.epochs` counts.
        best: The best so far, and when that was.
    """

    def __init__(self, metric: str, epochs: int) -> None:
        self.metric, self.epochs = metric, epochs
        self.stage, self.first_epoch = "frozen", 0
        self.best: tuple[float, str] | None = None
        self._begin = 0.0
        self._validated: dict[str, float] = {}  # within the present epoch: not each one is validated

    def take(self, validated: Mapping[str, float], when: str) -> None:
        """Take in what held-out images say; ties keep the earlier epoch."""
        value = validated.get(self.metric)
        if value is not None and (self.best is None or value > self.best[0]):
            self.best = value, when

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Look at the clock."""
        self._begin, self._validated = time.perf_counter(), {}

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Take in the metrics."""
        if not trainer.sanity_checking:
            found = trainer.callback_metrics.items()
            self._validated = {name: float(value) for name, value in found if name == self.metric}
            self.take(self._validated, title(self.stage, self.first_epoch + trainer.current_epoch))

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Print the line."""
        found = dict(trainer.callback_metrics)  # on all ranks: they compute the epoch's mean of the loss together
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
        """The best so far, for a run that goes on."""
        return {"best": self.best}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take it over."""
        self.best = None if state_dict["best"] is None else tuple(state_dict["best"])
