"""The frozen mode under a Trainer: only the solution changes, one pass is complete, and no partial state is left."""

import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch

from cxlp.backbones.backbone import BackboneConfig
from cxlp.frozen.config import FrozenConfig
from cxlp.frozen.fit import FrozenFit
from cxlp.tasks import Frozen
from cxlp.utils.errors import CxlpError
from tests.tasks.small import network, pictures, reuse, trainer


class Watch(pl.Callback):
    """Records the modes of the network and of all its parts, and the parameters with gradients."""

    def __init__(self) -> None:
        self.training: list[bool] = []
        self.gradients: list[set[str]] = []

    def note(self, task: pl.LightningModule) -> None:
        assert isinstance(task, Frozen)
        self.training += [module.training for module in task.network.modules()]
        self.gradients.append({name for name, p in task.network.named_parameters() if p.requires_grad})

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any) -> None:
        self.note(pl_module)

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any) -> None:
        self.note(pl_module)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.note(pl_module)  # after validation


def test_the_network_evaluates_and_its_backbone_takes_no_gradients(folder: Path, tmp_path: Path) -> None:
    task = Frozen(network())
    watch = Watch()
    task.network.get_parameter("backbone.trunk.conv1.0.weight").requires_grad_(False)
    before = {name for name, p in task.network.named_parameters() if p.requires_grad}
    backbone = {k: v.clone() for k, v in task.network.backbone.state_dict().items()}
    trainer(tmp_path, max_epochs=1, callbacks=[watch]).fit(task, pictures(folder, validation=0.25))
    assert watch.training and not any(watch.training)
    # the head keeps its own: DDP requires at least one parameter with gradients
    heads = {"heads.0.projection.weight", "classifier.weight"}
    assert all(heads <= names and not any(name.startswith("backbone") for name in names) for names in watch.gradients)
    # and the backbone has its gradients again: it may be trained next
    assert {name for name, p in task.network.named_parameters() if p.requires_grad} == before
    assert any(name.startswith("backbone") for name in before)
    for key, value in task.network.backbone.state_dict().items():
        assert torch.equal(value, backbone[key]), key  # BatchNorm's statistics, too


def test_the_fit_takes_one_pass_and_validation_uses_its_solution(folder: Path, tmp_path: Path) -> None:
    task = Frozen(network())
    run = trainer(tmp_path, max_epochs=5)
    run.fit(task, pictures(folder, validation=0.25))
    assert run.current_epoch == 1
    assert task.network.classifier is not None and task.network.classifier.weight.any()
    assert run.callback_metrics["val/loss"] < torch.log(torch.tensor(3.0))  # that of a zero classifier
    found = {k: value for k, value in task.report.items() if k != "primal"}  # which is not a metric
    assert {k: float(run.callback_metrics[f"frozen/{k}"]) for k in found} == pytest.approx(found)
    assert "frozen/primal" not in run.callback_metrics
    assert {"extraction", "validation", "SVM"} <= task.times.keys()


def test_the_solution_does_not_depend_on_the_batch_size(folder: Path, tmp_path: Path) -> None:
    found = []
    for size in (4, 5, 12):  # of twelve
        task = Frozen(network())
        trainer(tmp_path, max_epochs=1).fit(task, pictures(folder, batch_size=size))
        found.append(task.network.classifier)
    for other in found[1:]:
        assert found[0] is not None and other is not None
        torch.testing.assert_close(other.weight, found[0].weight, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("interval", [1, 0.5])
def test_validation_within_the_pass_is_refused(folder: Path, tmp_path: Path, interval: float) -> None:
    run = trainer(tmp_path, max_epochs=1, val_check_interval=interval)
    with pytest.raises(CxlpError, match=rf"val_check_interval is {interval}:"):
        run.fit(Frozen(network()), pictures(folder, validation=0.25))
    assert not (tmp_path / "features").exists()


@pytest.mark.parametrize("interval", [1.0, 3])
def test_validation_after_the_pass_is_allowed(folder: Path, tmp_path: Path, interval: float) -> None:
    run = trainer(tmp_path, max_epochs=1, val_check_interval=interval)
    run.fit(Frozen(network()), pictures(folder, validation=0.25))  # nine images: three batches
    assert torch.isfinite(run.callback_metrics["val/loss"])


@pytest.fixture
def ctrl_c() -> Iterator[None]:
    """Lightning ignores further interruptions after the first one: undo that."""
    handler = signal.getsignal(signal.SIGINT)
    yield
    signal.signal(signal.SIGINT, handler)


@pytest.mark.usefixtures("ctrl_c")
@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
@pytest.mark.parametrize("kept", [False, True])
def test_an_interrupted_pass_leaves_no_files(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: type[BaseException], kept: bool
) -> None:
    monkeypatch.setattr("cxlp.frozen.fit.memory_for_maps", lambda: 0)  # maps go to the disk
    step = Frozen.training_step
    there: list[set[str]] = []

    def interrupted(task: Frozen, batch: Any, batch_idx: int) -> None:
        step(task, batch, batch_idx)
        if batch_idx == 1:
            there.append({p.name for p in tmp_path.rglob("*") if p.is_file() and p.suffix != ".lock"})
            raise error

    monkeypatch.setattr(Frozen, "training_step", interrupted)
    data = pictures(folder)
    config = FrozenConfig(store=str(tmp_path / "store") if kept else None)
    task = Frozen(network(), config, reuse=reuse(config, data) if kept else None)
    with pytest.raises((error, SystemExit)):
        trainer(tmp_path, max_epochs=1).fit(task, data)
    assert there == [{"features.bin", "maps-0.bin"}]
    # incomplete features are deleted, even with a store
    assert [p.name for p in tmp_path.rglob("*")] == (["store"] if kept else [])


def test_an_error_while_solving_leaves_no_files(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise MemoryError("no room for the Gram matrix")

    monkeypatch.setattr(FrozenFit, "_fit_classifier", refuse)
    with pytest.raises(MemoryError):
        trainer(tmp_path, max_epochs=1).fit(Frozen(network()), pictures(folder))
    assert list(tmp_path.iterdir()) == []


class StopEarly(pl.Callback):
    """Ends an epoch after its first batch, like a time limit."""

    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        trainer.should_stop = True


def test_a_pass_that_is_stopped_early_is_refused(folder: Path, tmp_path: Path) -> None:
    task = Frozen(network())
    with pytest.raises(CxlpError, match=r"frozen fit .*max_time"):
        trainer(tmp_path, max_epochs=1, callbacks=[StopEarly()]).fit(task, pictures(folder))
    assert list(tmp_path.iterdir()) == []
    assert not task.network.classifier.weight.any()  # type: ignore[union-attr]


@pytest.mark.parametrize("option", [{"limit_train_batches": 2}, {"fast_dev_run": True}], ids=str)
def test_a_part_of_the_images_is_refused(folder: Path, tmp_path: Path, option: dict[str, Any]) -> None:
    with pytest.raises(CxlpError, match=r"3 batches .* [12]: .*limit_train_batches"):
        trainer(tmp_path, max_epochs=1, **option).fit(Frozen(network()), pictures(folder))
    assert list(tmp_path.iterdir()) == []


class Repeated(pl.Callback):
    """Marks all test batches but the first one as repeated, and records the shapes of outputs."""

    def __init__(self) -> None:
        self.shapes: list[tuple[int, ...]] = []

    def on_test_batch_start(self, *arguments: Any) -> None:
        if arguments[3]:
            arguments[2]["repeat"][:] = True

    def on_test_batch_end(self, *arguments: Any) -> None:
        outputs = arguments[2]
        self.shapes.append((*outputs["score"].shape, len(outputs["label"]), len(outputs["index"])))


@pytest.mark.parametrize("name", ["timm/test_vit", "timm/test_resnet"])
def test_a_batch_of_repeats_alone_scores_nothing(folder: Path, tmp_path: Path, name: str) -> None:
    # the last batch of a rank may be empty; transformers do not accept that
    layers = ("blocks.4", "blocks.5.mlp.act") if "vit" in name else ("layer3.0.conv2", "layer3")
    backbone = BackboneConfig(name, layers, weights=None, image_size=160)
    frozen, repeated = Frozen(network(backbone=backbone)), Repeated()
    run = trainer(tmp_path, max_epochs=1, callbacks=[repeated])
    run.fit(frozen, pictures(folder))
    run.test(frozen, pictures(folder), verbose=False)
    assert repeated.shapes == [(4, 3, 4, 4), (0, 3, 0, 0)]
