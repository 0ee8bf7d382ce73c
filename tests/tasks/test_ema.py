"""The moving average: its recursion, its beginning at the frozen solution, what is saved and tested."""

from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import EMAWeightAveraging
from torch import Tensor

from cxlp.models.checkpoint import load_network
from cxlp.tasks import FineTune, Frozen
from cxlp.tasks.base import CrossLayerTask
from cxlp.tasks.ema import _Average, warmed_up
from cxlp.tasks.optim import OptimizerConfig
from cxlp.utils.errors import CxlpError
from tests.tasks.small import NETWORK, pictures, trainer

pytestmark = pytest.mark.usefixtures("one_thread")

RATES = OptimizerConfig(backbone_lr=0.01, projection_lr=0.01, classifier_lr=1.0, warmup_epochs=0)


class Track(pl.Callback):
    """Follows the classifier: after the frozen fit and after each step, and what validation is shown."""

    def __init__(self) -> None:
        self.steps: list[Tensor] = []
        self.validated: list[Tensor] = []

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any) -> None:
        if trainer.global_step:
            self.steps.append(weight(pl_module))

    def on_validation_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any) -> None:
        self.validated.append(weight(pl_module))


def weight(task: pl.LightningModule) -> Tensor:
    assert isinstance(task, FineTune) and task.network.classifier is not None
    return task.network.classifier.weight.detach().clone()


def test_decay_warms_up() -> None:
    assert [warmed_up(0.9, t) for t in (1, 10, 1000)] == pytest.approx([2 / 11, 11 / 20, 0.9])


def test_an_average_is_that_of_the_recursion_for_each_type_of_tensor() -> None:
    model = torch.nn.BatchNorm1d(3)  # its count of batches is an integer, which is copied
    counted = model.num_batches_tracked
    assert counted is not None
    average = _Average(model, torch.device("cpu"), 0.5)
    expected = torch.full((3,), 7.0)
    for step in range(4):
        with torch.no_grad():
            model.weight.fill_(7.0 + step)
        counted.fill_(step)
        expected = expected + (model.weight.detach() - expected) * (1 - warmed_up(0.5, step) if step else 1)
        average.update_parameters(model)
        found = average.module.state_dict()
        torch.testing.assert_close(found["weight"], expected)
        assert found["num_batches_tracked"] == step
    assert average.n_averaged == 4


def test_an_update_reads_nothing_from_the_device() -> None:
    model = torch.nn.Linear(3, 2, device="meta")  # has no values: whoever reads one fails
    average = _Average(model, torch.device("meta"), 0.9)
    for _ in range(3):
        average.update_parameters(model)
    assert average.n_averaged == 3


@pytest.mark.parametrize("start", ["frozen", "scratch"])
def test_validation_and_checkpoint_hold_the_average(folder: Path, tmp_path: Path, start: str) -> None:
    torch.manual_seed(0)
    track = Track()
    task = FineTune(NETWORK, optimizer=RATES, start=start, ema=0.5)
    run = trainer(tmp_path, max_epochs=2, callbacks=[track], enable_checkpointing=True)
    data = pictures(folder, validation=0.25, batch_size=8)
    run.fit(task, data)
    frozen = start == "frozen"
    if frozen:
        assert track.validated[0].any()  # the SVMs, not the weights from before
        average, updates, steps = track.validated[0], 1, track.steps
    else:
        average, updates, steps = track.steps[0], 1, track.steps[1:]  # torch's average begins with the first step
    for current in steps:
        average = average + (current - average) * (1 - warmed_up(0.5, updates))
        updates += 1
    torch.testing.assert_close(track.validated[-1], average)
    assert not torch.equal(track.validated[-1], track.steps[-1])
    checkpoint = run.checkpoint_callback.best_model_path  # type: ignore[union-attr]
    loaded = load_network(checkpoint).classifier
    assert loaded is not None
    torch.testing.assert_close(loaded.weight, average)
    # the test, too: of the checkpoint, in the same process
    tested = Track()
    run.callbacks.append(tested)  # type: ignore[attr-defined]
    run.test(task, data, ckpt_path=checkpoint, weights_only=True, verbose=False)
    torch.testing.assert_close(weight(task), average)


def test_a_resumed_run_goes_on_with_both(folder: Path, tmp_path: Path) -> None:
    found = []
    for stops in ([3], [2, 3]):
        checkpoint: str | None = None
        for stop in stops:
            torch.manual_seed(0)
            task = FineTune(NETWORK, optimizer=RATES, start="frozen", ema=0.9)
            # the schedule spans the whole run
            run = trainer(tmp_path / f"{len(stops)}-{stop}", max_epochs=3, enable_checkpointing=True)
            if stop < 3:
                run.callbacks.append(StopAfter(stop))  # type: ignore[attr-defined]
            run.fit(task, pictures(folder), ckpt_path=checkpoint, weights_only=True if checkpoint else None)
            checkpoint = run.checkpoint_callback.best_model_path  # type: ignore[union-attr]
        found.append(torch.load(str(checkpoint), weights_only=True))
    for key in ("state_dict", "current_model_state"):
        for name, value in found[0][key].items():
            torch.testing.assert_close(found[1][key][name], value, rtol=0, atol=0)


class StopAfter(pl.Callback):
    """Ends a run after some epochs, as if it were killed behind its checkpoint."""

    def __init__(self, epochs: int) -> None:
        self.epochs = epochs

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        trainer.should_stop = trainer.current_epoch + 1 >= self.epochs


@pytest.mark.parametrize("task", [Frozen(NETWORK), FineTune(NETWORK), FineTune(NETWORK, start="scratch", ema=0.5)])
def test_another_average_beside_the_frozen_fit_or_our_own_is_refused(
    folder: Path, tmp_path: Path, task: CrossLayerTask
) -> None:
    with pytest.raises(
        CxlpError, match="EMAWeightAveraging averages the weights before the frozen fit, too, or beside"
    ):
        trainer(tmp_path, max_epochs=2, callbacks=[EMAWeightAveraging()]).fit(task, pictures(folder))
