"""Handling of signals that end a run."""

import signal
import threading

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Callback

from cxlp.utils.processes import end_together


class Signals(Callback):
    """Makes a signal end all processes of a run on this machine immediately.

    The callback restores the SIGTERM handler that the process had when the callback was created. The Trainer's handler
    waits for the end of a batch and, with several processes, starts a collective while other collectives may be
    running. Lightning's launcher belongs to the first Trainer of a run; later Trainers do not know its processes.
    """

    def __init__(self) -> None:
        self._handler = signal.getsignal(signal.SIGTERM)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Restore the handler; at the end the Trainer restores it by itself."""
        end_together(getattr(trainer.strategy.launcher, "procs", []))
        if callable(self._handler) and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, self._handler)

    def on_test_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Restore the handler for the test."""
        self.on_train_start(trainer, pl_module)
