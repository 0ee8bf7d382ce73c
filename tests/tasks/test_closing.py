"""The closing fit: PCA and SVMs once more, behind what gradient descent has made of the backbone."""

from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning import seed_everything
from torch import Tensor

from cxlp.errors import CxlpError
from cxlp.frozen.fit import FrozenConfig
from cxlp.network import load_network
from cxlp.tasks import FineTune, Frozen
from cxlp.tasks.optim import OptimizerConfig
from tests.tasks.small import NETWORK, pictures, trainer

pytestmark = pytest.mark.usefixtures("one_thread")

RATES = OptimizerConfig(backbone_lr=0.01, projection_lr=0.01, classifier_lr=0.1, warmup_epochs=0)


def task(**options: Any) -> FineTune:
    """A task with the same random weights at each call."""
    seed_everything(0, verbose=False)
    return FineTune(**{"network": NETWORK, "optimizer": RATES, "closing_fit": True, **options})


class Track(pl.Callback):
    """Notes, after each training batch: epoch, step, learning rate, positions of the images; and the backbone."""

    def __init__(self) -> None:
        self.seen: list[tuple[int, int, float, list[int]]] = []
        self.backbones: list[dict[str, Tensor]] = []

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, *_: Any
    ) -> None:
        assert isinstance(pl_module, FineTune)
        rate = trainer.optimizers[0].param_groups[0]["lr"]
        self.seen.append((trainer.current_epoch, trainer.global_step, rate, batch["index"].tolist()))
        self.backbones.append({k: v.clone() for k, v in pl_module.network.backbone.state_dict().items()})


@pytest.mark.parametrize("start", ["frozen", "projection", "scratch"])
def test_it_is_the_frozen_fit_of_the_trained_backbone(folder: Path, tmp_path: Path, start: str) -> None:
    track, tuned = Track(), task(start=start)
    trainer(tmp_path, max_epochs=3, callbacks=[track]).fit(tuned, pictures(folder))
    assert [s[0] for s in track.seen] == [0] * 3 + [1] * 3 + [2] * 3
    first = [1, 2, 3] if start == "scratch" else [0] * 3
    second = [first[-1] + i for i in (1, 2, 3)]
    assert [s[1] for s in track.seen] == [*first, *second, *[second[-1] + 1] * 3]  # the closing fit counts as one
    assert [i for s in track.seen[6:] for i in s[3]] == list(range(12))  # in order
    assert track.seen[5][2] == pytest.approx(0.0, abs=1e-9)  # the schedule has come to its end

    frozen = Frozen(NETWORK)
    frozen.network.backbone.load_state_dict(track.backbones[5])
    trainer(tmp_path, max_epochs=1).fit(frozen, pictures(folder))
    for key, value in frozen.network.state_dict().items():
        torch.testing.assert_close(tuned.network.state_dict()[key], value)
    assert tuned.report == pytest.approx(frozen.report)
    assert any(not torch.equal(track.backbones[0][k], v) for k, v in track.backbones[5].items())


def test_it_sees_the_average_of_the_weights(folder: Path, tmp_path: Path) -> None:
    track, tuned = Track(), task(ema=0.5)
    run = trainer(tmp_path, max_epochs=3, callbacks=[track], enable_checkpointing=True)
    run.fit(tuned, pictures(folder, validation=0.25))
    average, *earlier = reversed(track.backbones)
    assert any(not torch.equal(earlier[3][k], v) for k, v in average.items())  # than the last step's own weights
    saved = load_network(run.checkpoint_callback.best_model_path)  # type: ignore[union-attr]
    assert saved.classifier is not None
    for key, value in saved.backbone.state_dict().items():
        assert torch.equal(value, average[key]), key
    frozen = Frozen(NETWORK)
    frozen.network.backbone.load_state_dict(average)
    trainer(tmp_path, max_epochs=1).fit(frozen, pictures(folder, validation=0.25))
    assert frozen.network.classifier is not None
    torch.testing.assert_close(saved.classifier.weight, frozen.network.classifier.weight)


def test_its_features_are_not_kept(folder: Path, tmp_path: Path) -> None:
    found = []
    for store in (None, str(tmp_path / "store")):
        tuned = task(frozen=FrozenConfig(store=store))
        trainer(tmp_path, max_epochs=3).fit(tuned, pictures(folder))
        found.append(tuned.network.state_dict())
    for key, value in found[0].items():
        assert torch.equal(found[1][key], value), key
    assert list(tmp_path.rglob("features*")) == []


def test_an_epoch_must_be_left_for_gradients(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(CxlpError, match="max_epochs is 2, of which 2 fit without gradients: none is left"):
        trainer(tmp_path, max_epochs=2).fit(task(), pictures(folder))
    with pytest.raises(CxlpError, match=r"max_steps is 5, but model.closing_fit comes after the last step"):
        trainer(tmp_path, max_epochs=3, max_steps=5).fit(task(), pictures(folder))


@pytest.mark.parametrize(
    ("option", "named"),
    [
        ({"limit_train_batches": 2}, "was given 2"),
        ({"check_val_every_n_epoch": 2}, "validated and saved after its own"),
    ],
)
def test_what_would_spoil_it_is_refused_before_anything_is_trained(
    folder: Path, tmp_path: Path, option: dict[str, Any], named: str
) -> None:
    track = Track()
    with pytest.raises(CxlpError, match=named):
        trainer(tmp_path, max_epochs=3, callbacks=[track], **option).fit(task(start="scratch"), pictures(folder))
    assert track.seen == []
