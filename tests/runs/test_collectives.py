"""Processes wait for each other in a gradient step only as DDP requires, and otherwise at the logging interval."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
from pytorch_lightning.callbacks import Callback, LearningRateMonitor
from pytorch_lightning.loggers import CSVLogger
from torch.distributed import ProcessGroup
from torch.utils.data import DataLoader, TensorDataset

from cxlp.runs.bars import StageBar
from cxlp.runs.callbacks import EpochSeed, Progress, Record, checkpoints
from cxlp.runs.epochs import EpochLines
from cxlp.runs.signals import Signals
from cxlp.tasks import FineTune
from tests.tasks.small import IMAGES, LABELS, RATES, network, trainer

#: Python calls in which ranks wait for each other. DDP reduces gradients in C++, which is not counted.
#: ``broadcast`` is not counted, either: Lightning's loop uses it at each step to share whether rank 0 got SIGTERM.
COLLECTIVES = ("allreduce", "allgather", "_allgather_base", "barrier", "reduce", "gather", "scatter", "alltoall")
STEPS, EVERY = 9, 4


class CountCollectives(Callback):
    """Records the collectives of this rank in each step, and from then until the end of the epoch."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.begun: list[list[str]] = [[]]

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        for name in COLLECTIVES:
            setattr(ProcessGroup, name, self._counted(name, getattr(ProcessGroup, name)))

    def _counted(self, name: str, begin: Callable[..., Any]) -> Callable[..., Any]:
        def count(*args: Any, **kwargs: Any) -> Any:
            self.begun[-1].append(name)
            return begin(*args, **kwargs)

        return count

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        self.begun.append([])

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        (self.folder / f"{trainer.global_rank}.json").write_text(json.dumps(self.begun))


@pytest.mark.slow
def test_a_gradient_step_waits_for_other_ranks_at_the_logging_interval_only(tmp_path: Path) -> None:
    counter = CountCollectives(tmp_path)
    own: list[Callback] = [
        EpochSeed(),
        Signals(),
        StageBar("finetune"),
        EpochLines("val/accuracy", 2),
        LearningRateMonitor("step"),
        Record(dict, {}),
    ]
    run = trainer(
        tmp_path,
        callbacks=[counter, Progress(), *own, *checkpoints(tmp_path / "checkpoints", None)],
        devices=2,
        strategy="ddp_spawn",
        max_epochs=1,
        log_every_n_steps=EVERY,
        logger=CSVLogger(tmp_path),
        enable_progress_bar=True,
        enable_checkpointing=True,
    )
    task = FineTune(network(), RATES, ema=0.9)
    run.fit(task, DataLoader(TensorDataset(IMAGES, LABELS), batch_size=len(IMAGES) // STEPS // 2))
    assert len(list(tmp_path.glob("?.json"))) == 2
    for file in tmp_path.glob("?.json"):
        _, *steps = json.loads(file.read_text())
        assert len(steps) == STEPS
        due = [(k + 1) % EVERY == 0 for k in range(STEPS)]
        # Whether the loss is finite on all ranks: Lightning's reduction of a boolean, with a barrier before it.
        wanted = [["barrier", "allreduce"] if at else [] for at in due]
        assert steps[:-1] == wanted[:-1]
        assert "allgather" in steps[-1]  # the end of the epoch: its mean loss
