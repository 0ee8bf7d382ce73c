"""The moving average: its recursion, its use in validation, checkpoints and test, and continuing with it."""

from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.optim.swa_utils import AveragedModel

from cxlp.models.checkpoint import load_network
from cxlp.tasks import FineTune, Frozen
from cxlp.tasks.ema import AverageWeights, warmed_up
from cxlp.tasks.optim import OptimizerConfig
from tests.tasks.small import network, pictures, trainer

RATES = OptimizerConfig(backbone_lr=0.01, projection_lr=0.01, classifier_lr=1.0, warmup_epochs=0)


class Track(pl.Callback):
    """Records the classifier after each step and in validation."""

    def __init__(self) -> None:
        self.steps: list[Tensor] = []
        self.validated: list[Tensor] = []

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any) -> None:
        self.steps.append(weight(pl_module))

    def on_validation_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any) -> None:
        self.validated.append(weight(pl_module))


def weight(task: pl.LightningModule) -> Tensor:
    assert isinstance(task, FineTune) and task.network.classifier is not None
    return task.network.classifier.weight.detach().clone()


def decay(number: int, most: float) -> float:
    """Compute the formula in plain Python."""
    return min(most, (1 + number) / (10 + number))


def test_decay_warms_up() -> None:
    found = [float(warmed_up(0.9, torch.tensor(step))) for step in (1, 10, 1000)]
    assert found == pytest.approx([2 / 11, 11 / 20, 0.9])


def averaged(model: torch.nn.Module, most: float) -> AveragedModel:
    """Return the average of the model, as the callback creates it at the start of a fit."""
    callback, task = AverageWeights(most, torch.device("cpu")), pl.LightningModule()
    task.model = model
    fit = pl.Trainer(accelerator="cpu", devices=1, logger=False, enable_checkpointing=False)
    callback.setup(fit, task, "fit")
    callback.on_train_start(fit, task)
    average = callback._average_model
    assert isinstance(average, AveragedModel)
    return average


def test_averages_equal_the_recursion_for_each_tensor_type() -> None:
    model = torch.nn.BatchNorm1d(3)  # its count of batches is an integer, which is copied
    counted = model.num_batches_tracked
    assert counted is not None
    torch.nn.init.constant_(model.weight, 7.0)
    average, expected = averaged(model, 0.5), torch.full((3,), 7.0)
    for step in range(1, 5):
        torch.nn.init.constant_(model.weight, 7.0 + step)
        counted.fill_(step)
        expected = decay(step, 0.5) * expected + (1 - decay(step, 0.5)) * model.weight.detach()
        average.update_parameters(model)
        found = average.module.state_dict()
        torch.testing.assert_close(found["model.weight"], expected)
        assert found["model.num_batches_tracked"] == step


def test_an_update_reads_nothing_from_the_device() -> None:
    """Only cxlp's own code is checked: torch's AveragedModel reads its count."""
    update = averaged(torch.nn.Linear(3, 2), 0.9).multi_avg_fn
    assert update is not None
    for kind in (torch.float32, torch.int64):
        # Meta tensors have no values: reading one raises an error.
        there = [torch.empty(3, dtype=kind, device="meta") for _ in range(4)]
        update(there[:2], there[2:], torch.tensor(3, device="meta"))
        with pytest.raises(RuntimeError, match="meta"):
            there[0].sum().item()


def test_validation_checkpoint_and_network_hold_the_average(folder: Path, tmp_path: Path) -> None:
    data, built = pictures(folder, validation=0.25, batch_size=8), network()
    trainer(tmp_path, max_epochs=1).fit(Frozen(built), data)
    solution = built.get_parameter("classifier.weight").detach().clone()
    assert solution.any()
    track, task = Track(), FineTune(built, RATES, ema=0.5)
    run = trainer(tmp_path, max_epochs=3, callbacks=[track], enable_checkpointing=True, num_sanity_val_steps=1)
    run.fit(task, data)
    assert torch.equal(track.validated[0], solution)  # the sanity check runs before any step
    average, found = solution, []
    for step, current in enumerate(track.steps, start=1):
        average = decay(step, 0.5) * average + (1 - decay(step, 0.5)) * current
        found.append(average)
    assert len(found) == 6  # nine images in batches of eight, three epochs
    for shown, expected in zip(track.validated[1:], found[1::2], strict=True):
        torch.testing.assert_close(shown, expected)
    assert not torch.allclose(track.validated[-1], track.steps[-1])
    checkpoint = run.checkpoint_callback.best_model_path  # type: ignore[union-attr]
    loaded = load_network(checkpoint).classifier
    assert loaded is not None
    torch.testing.assert_close(loaded.weight, average)
    assert torch.equal(weight(FineTune.load_from_checkpoint(checkpoint)), loaded.weight)
    # the following stage, such as a closing frozen fit, has the average, too
    assert torch.equal(weight(task), loaded.weight)
    # the test of the checkpoint, in another task, uses the average, too
    tested = FineTune(network(), RATES, ema=0.5)
    run.test(tested, data, ckpt_path=checkpoint, weights_only=True, verbose=False)
    assert torch.equal(weight(tested), loaded.weight)


def test_a_resumed_run_continues_with_both(folder: Path, tmp_path: Path) -> None:
    found = []
    for stops in ([3], [2, 3]):
        checkpoint: str | None = None
        for stop in stops:
            task = FineTune(network(), RATES, ema=0.9)
            # the schedule has the length of the whole run
            run = trainer(tmp_path / f"{len(stops)}-{stop}", max_epochs=3, enable_checkpointing=True)
            if stop < 3:
                run.callbacks.append(StopAfter(stop))  # type: ignore[attr-defined]
            run.fit(task, pictures(folder), ckpt_path=checkpoint, weights_only=True if checkpoint else None)
            checkpoint = run.checkpoint_callback.best_model_path  # type: ignore[union-attr]
        found.append(torch.load(str(checkpoint), weights_only=True))
    assert found[0]["epoch"] == found[1]["epoch"] == 2 and found[1]["global_step"] == 9
    for key in ("state_dict", "current_model_state"):
        for name, value in found[0][key].items():
            torch.testing.assert_close(found[1][key][name], value, rtol=0, atol=0)


class StopAfter(pl.Callback):
    """Ends a run after some epochs, as if it were killed after its checkpoint."""

    def __init__(self, epochs: int) -> None:
        self.epochs = epochs

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        trainer.should_stop = trainer.current_epoch + 1 >= self.epochs
