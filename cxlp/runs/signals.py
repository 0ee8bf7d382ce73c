"""Signals that end a run within a Trainer's stage."""

import signal
import threading

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Callback

from cxlp.utils.processes import end_together


class Signals(Callback):
    """Has a signal end all processes of a run on this machine, at once.

    It keeps the handler of SIGTERM that the process had when this callback was made. The Trainer's own waits for the
    end of a batch, and among several processes it begins with a collective, in the middle of whatever collective each
    of them is in. Lightning's launcher belongs to the first Trainer of a run: the others do not know its processes.
    """

    def __init__(self) -> None:
        self._handler = signal.getsignal(signal.SIGTERM)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Put the handler back, which the Trainer restores in the end by itself."""
        end_together(getattr(trainer.strategy.launcher, "procs", []))
        if callable(self._handler) and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, self._handler)

    def on_test_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Put it back for the test."""
        self.on_train_start(trainer, pl_module)
