"""Fine-tuning tasks with the same weights each time, and a callback that inspects them."""

from collections.abc import Callable
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytorch_lightning as pl
from torch import Tensor

from cxlp.tasks import FineTune, Frozen
from tests.tasks.small import RATES, network, pictures, state, trainer


def task(**options: Any) -> FineTune:
    """Return a task with the same random weights at each call."""
    return FineTune(network(), **{"optimizer": RATES, **options})


@cache
def solution(folder: Path, precision: Any) -> dict[str, Tensor]:
    """Return the solution of a frozen fit."""
    net = network()
    with TemporaryDirectory() as place:
        trainer(Path(place), max_epochs=1, precision=precision).fit(Frozen(net), pictures(folder, validation=0.25))
    return state(net)


def solved(folder: Path, precision: Any = "32-true", **options: Any) -> FineTune:
    """Return a task at the solution of a frozen fit."""
    tuned = task(**options)
    tuned.network.load_state_dict(solution(folder, precision))
    return tuned


class AtEachBatch(pl.Callback):
    """Calls a function after each training batch, before the task itself handles the batch."""

    def __init__(self, call: Callable[[pl.Trainer, FineTune], None]) -> None:
        self.call = call

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any) -> None:
        assert isinstance(pl_module, FineTune)
        self.call(trainer, pl_module)
