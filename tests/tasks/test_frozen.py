"""The frozen mode under a Trainer: nothing moves but the solution, one pass whole, and nothing half-made is left."""

import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch

from cxlp.errors import CxlpError
from cxlp.frozen.fit import FrozenConfig, FrozenFit
from cxlp.tasks import Frozen
from cxlp.tasks.base import Batch
from tests.tasks.small import NETWORK, pictures, trainer

pytestmark = pytest.mark.usefixtures("one_thread")


class Watch(pl.Callback):
    """Notes the modes of the network and of all its parts."""

    def __init__(self) -> None:
        self.training: list[bool] = []

    def note(self, task: pl.LightningModule) -> None:
        assert isinstance(task, Frozen)
        self.training += [module.training for module in task.network.modules()]

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any) -> None:
        self.note(pl_module)

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any) -> None:
        self.note(pl_module)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.note(pl_module)  # after validation


def test_the_network_evaluates_and_its_backbone_takes_no_gradients(folder: Path, tmp_path: Path) -> None:
    task = Frozen(NETWORK)
    watch = Watch()
    assert not any(p.requires_grad for p in task.network.backbone.parameters())
    trainer(tmp_path, max_epochs=1, callbacks=[watch]).fit(task, pictures(folder, validation=0.25))
    assert watch.training and not any(watch.training)
    assert not any(p.requires_grad for p in task.network.backbone.parameters())
    # while the head keeps its own: DDP refuses a module without any
    assert task.network.projection is not None and task.network.classifier is not None
    assert task.network.projection.weight.requires_grad and task.network.classifier.weight.requires_grad


def test_one_pass_is_the_fit_and_validation_sees_its_solution(folder: Path, tmp_path: Path) -> None:
    task = Frozen(NETWORK)
    run = trainer(tmp_path, max_epochs=5)
    run.fit(task, pictures(folder, validation=0.25))
    assert run.current_epoch == 1
    assert task.network.classifier is not None and task.network.classifier.weight.any()
    assert run.callback_metrics["val/loss"] < torch.log(torch.tensor(3.0))  # that of no opinion at all
    assert {k: float(run.callback_metrics[f"frozen/{k}"]) for k in task.report} == pytest.approx(task.report)
    assert {"extraction", "validation", "SVM"} <= task.times.keys()


def test_the_solution_does_not_hang_on_the_batch_size(folder: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    start = Frozen(NETWORK).state_dict()
    found = []
    for size in (4, 5, 12):  # of twelve
        task = Frozen(NETWORK)
        task.load_state_dict(start)
        trainer(tmp_path, max_epochs=1).fit(task, pictures(folder, batch_size=size))
        found.append(task.network.classifier)
    for other in found[1:]:
        assert found[0] is not None and other is not None
        torch.testing.assert_close(other.weight, found[0].weight, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("interval", [1, 0.5])
def test_validation_within_the_pass_is_refused(folder: Path, tmp_path: Path, interval: float) -> None:
    run = trainer(tmp_path, max_epochs=1, val_check_interval=interval)
    with pytest.raises(CxlpError, match=rf"val_check_interval is {interval}: the frozen fit has nothing to validate"):
        run.fit(Frozen(NETWORK), pictures(folder, validation=0.25))
    assert not (tmp_path / "features").exists()


@pytest.mark.parametrize("interval", [1.0, 3])
def test_validation_behind_the_pass_may_be_asked_for(folder: Path, tmp_path: Path, interval: float) -> None:
    run = trainer(tmp_path, max_epochs=1, val_check_interval=interval)
    run.fit(Frozen(NETWORK), pictures(folder, validation=0.25))  # nine images: three batches
    assert torch.isfinite(run.callback_metrics["val/loss"])


@pytest.mark.parametrize("keep", [False, True])
def test_features_are_kept_on_disk_where_asked(folder: Path, tmp_path: Path, keep: bool) -> None:
    task = Frozen(NETWORK, FrozenConfig(keep_features=keep))
    trainer(tmp_path, max_epochs=1).fit(task, pictures(folder))
    left = {str(p.relative_to(tmp_path)): p.stat().st_size for p in tmp_path.rglob("*") if p.is_file()}
    assert left == ({"features/features.bin": 12 * 4 * task.network.out_features} if keep else {})
    assert (tmp_path / "features").exists() == keep


@pytest.fixture
def ctrl_c() -> Iterator[None]:
    """Lightning ignores further interruptions after the first one: undo that."""
    handler = signal.getsignal(signal.SIGINT)
    yield
    signal.signal(signal.SIGINT, handler)


@pytest.mark.usefixtures("ctrl_c")
@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
@pytest.mark.parametrize("keep", [False, True])
def test_an_interrupted_pass_leaves_nothing(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: type[BaseException], keep: bool
) -> None:
    step = Frozen.training_step
    there: list[set[str]] = []

    def interrupted(task: Frozen, batch: Batch, batch_idx: int) -> None:
        step(task, batch, batch_idx)
        if batch_idx == 1:
            there.append({p.name for p in (tmp_path / "features").iterdir()})
            raise error

    monkeypatch.setattr(Frozen, "training_step", interrupted)
    task = Frozen(NETWORK, FrozenConfig(keep_features=keep))
    with pytest.raises((error, SystemExit)):
        trainer(tmp_path, max_epochs=1).fit(task, pictures(folder))
    assert there == [{"features.bin", "maps-0.bin"}]
    assert list(tmp_path.iterdir()) == []  # half the features are of no use, even to those who want them kept


def test_an_error_while_solving_leaves_nothing(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise MemoryError("no room for the Gram matrix")

    monkeypatch.setattr(FrozenFit, "_fit_classifier", refuse)
    with pytest.raises(MemoryError):
        trainer(tmp_path, max_epochs=1).fit(Frozen(NETWORK), pictures(folder))
    assert list(tmp_path.iterdir()) == []
