"""The progress bar of a stage."""

from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import ProgressBar

from cxlp.utils.progress import Bar, bar

#: Labels of the stages; gradient epochs are labelled by their number.
_NAMES = {"layers": "choice of layers", "frozen": "frozen fit", "closing": "closing fit", "test": "test"}


class StageBar(ProgressBar):
    """Shows the current training, validation or test pass on rank 0, with :func:`cxlp.utils.progress.bar`.

    The loss is read at the logging interval only: reading it at each step, as Lightning's bars do, waits for the GPU.

    Args:
        stage: ``layers``, ``frozen``, ``finetune``, ``closing`` or ``test``.
    """

    def __init__(self, stage: str) -> None:
        super().__init__()
        self._stage = stage
        self._bar: Bar | None = None
        self._trained = 0
        self._enabled = True

    def disable(self) -> None:
        """Stop showing progress."""
        self._enabled = False
        self._close()

    def enable(self) -> None:
        """Show progress again."""
        self._enabled = True

    def _open(self, what: str, total: int | float, done: int = 0) -> None:
        self._close()
        if self._enabled and self.trainer.is_global_zero:
            # Lightning uses infinity for an unknown length
            self._bar = bar(what, int(total) if total < float("inf") else None, "batches", done)

    def _close(self) -> None:
        if self._bar is not None:
            self._bar.close()
        self._bar = None

    @property
    def _name(self) -> str:
        return _NAMES.get(self._stage) or f"epoch {self.trainer.current_epoch + 1} of {self.trainer.max_epochs}"

    def _open_training(self) -> None:
        self._open(self._name, self.total_train_batches, self._trained)

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Open a bar for training."""
        self._trained = 0
        self._open_training()

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,  # noqa: ANN401 (Lightning's type is wider)
        batch: Any,  # noqa: ANN401 (Lightning's type)
        batch_idx: int,
    ) -> None:
        """Advance the bar, and close it after the last batch, since a frozen fit then shows its own bars."""
        self._trained = batch_idx + 1
        every: int = trainer.log_every_n_steps  # type: ignore[attr-defined]
        if self._bar is None:
            return
        loss = trainer.callback_metrics.get("train/loss_step") if every and self._trained % every == 0 else None
        if loss is not None:
            self._bar.note(f"loss {float(loss):.4f}")
        self._bar.update()
        if trainer.is_last_batch:
            self._close()

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Replace the training bar by a validation bar."""
        self._open(f"{self._name}, validation", sum(trainer.num_val_batches))

    def on_validation_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,  # noqa: ANN401 (as above)
        batch: Any,  # noqa: ANN401 (as above)
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Advance the bar."""
        if self._bar is not None:
            self._bar.update()

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Show the training bar again if the epoch is not over."""
        self._close()
        if trainer.training and not trainer.is_last_batch:
            self._open_training()

    def on_test_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Open a bar for the test."""
        self._open(self._name, sum(trainer.num_test_batches))

    def on_test_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,  # noqa: ANN401 (as above)
        batch: Any,  # noqa: ANN401 (as above)
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Advance the bar."""
        if self._bar is not None:
            self._bar.update()

    def on_test_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Close the bar."""
        self._close()

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Close the bar."""
        self._close()

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Close the bar."""
        self._close()
