"""The closing fit: PCA and SVMs once more, behind what gradient descent has made of the backbone."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning import seed_everything
from pytorch_lightning.callbacks import EarlyStopping, StochasticWeightAveraging, Timer
from sklearn.model_selection import StratifiedKFold
from sklearn.svm import SVC
from torch import Tensor
from torch.nn import functional as F

from cxlp.data.datamodule import ImageDataModule
from cxlp.data.voc2007 import VOC2007
from cxlp.frozen.fit import FrozenConfig
from cxlp.models.checkpoint import load_network
from cxlp.tasks import FineTune, Frozen
from cxlp.tasks.optim import OptimizerConfig
from cxlp.utils.errors import CxlpError
from cxlp.utils.labels import classification_loss, strata
from tests.generate import write_folder, write_voc2007
from tests.tasks.small import NETWORK, PLAIN, pictures, trainer
from tests.tasks.test_ema import StopAfter

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


@pytest.mark.parametrize("start", ["frozen", "projection"])
def test_it_is_the_frozen_fit_of_the_trained_backbone(folder: Path, tmp_path: Path, start: str) -> None:
    track, tuned = Track(), task(start=start)
    trainer(tmp_path, max_epochs=3, callbacks=[track]).fit(tuned, pictures(folder))
    assert [s[0] for s in track.seen] == [0] * 3 + [1] * 3 + [2] * 3
    assert [s[1] for s in track.seen] == [0, 0, 0, 1, 2, 3, 4, 4, 4]  # the closing fit counts as a step
    assert [i for s in track.seen[6:] for i in s[3]] == list(range(12))  # in order
    assert track.seen[5][2] == pytest.approx(0.0, abs=1e-9)  # the schedule has come to its end

    first, frozen = Frozen(NETWORK), Frozen(NETWORK)
    for solved, backbone in ((first, track.backbones[0]), (frozen, track.backbones[5])):
        solved.network.backbone.load_state_dict(backbone)
        trainer(tmp_path, max_epochs=1).fit(solved, pictures(folder))
    assert first.report["logit_scale"] != frozen.report["logit_scale"]
    # The same up to the scale of the logits: a cross-validation of features that have seen the labels would flatter.
    ratio = tuned.report["logit_scale"] / frozen.report["logit_scale"]
    assert tuned.report == {"C": frozen.report["C"], "logit_scale": first.report["logit_scale"]}
    for key, value in frozen.network.state_dict().items():
        scale = ratio if key.startswith("classifier") else 1.0
        torch.testing.assert_close(tuned.network.state_dict()[key], scale * value if scale != 1.0 else value)
    assert any(not torch.equal(track.backbones[0][k], v) for k, v in track.backbones[5].items())


def test_it_sees_the_average_of_the_weights(folder: Path, tmp_path: Path) -> None:
    track, tuned = Track(), task(ema=0.5)
    run = trainer(tmp_path, max_epochs=3, callbacks=[track], enable_checkpointing=True)
    run.fit(tuned, pictures(folder, validation=0.25))
    average, *earlier = reversed(track.backbones)
    assert any(not torch.equal(earlier[2][k], v) for k, v in average.items())  # than the last step's own weights
    saved = load_network(run.checkpoint_callback.best_model_path)  # type: ignore[union-attr]
    assert saved.classifier is not None
    for key, value in saved.backbone.state_dict().items():
        assert torch.equal(value, average[key]), key
    frozen = Frozen(NETWORK)
    frozen.network.backbone.load_state_dict(average)
    trainer(tmp_path, max_epochs=1).fit(frozen, pictures(folder, validation=0.25))
    assert frozen.network.classifier is not None
    ratio = tuned.report["logit_scale"] / frozen.report["logit_scale"]
    torch.testing.assert_close(saved.classifier.weight, ratio * frozen.network.classifier.weight)


# --- training by the cross-validation's classifiers


class Scores(pl.Callback):
    """Notes the classifier and the loss after each step."""

    def __init__(self) -> None:
        self.classifiers: list[Tensor] = []
        self.losses: list[float] = []

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any) -> None:
        assert isinstance(pl_module, FineTune) and pl_module.network.classifier is not None
        self.classifiers.append(pl_module.network.classifier.weight.clone())
        if trainer.current_epoch == 1:
            self.losses.append(float(trainer.callback_metrics["train/loss_step"]))


def test_images_are_scored_by_classifiers_that_have_not_seen_them(folder: Path, tmp_path: Path) -> None:
    still = OptimizerConfig(backbone_lr=0, projection_lr=0, classifier_lr=1.0)
    noted, tuned = Scores(), task(optimizer=still, cross_fit=True, frozen=FrozenConfig(folds=3, pca_vectors=48))
    trainer(tmp_path, max_epochs=2 + 1, callbacks=[noted]).fit(tuned, pictures(folder))
    first, *later = noted.classifiers[3:6]
    assert first.any() and all(torch.equal(first, w) for w in later)  # whatever its learning rate
    assert tuned.fold_classifiers is None  # freed by the closing fit

    data = pictures(folder, image_size=32)
    logits, y = cross_validated(tuned, data, folds=3)
    assert np.mean(noted.losses) == pytest.approx(float(F.cross_entropy(logits, y)), rel=1e-3)


def cross_validated(tuned: FineTune, data: ImageDataModule, folds: int) -> tuple[Tensor, Tensor]:
    """Logits of an independent cross-validation of a network's features, and the labels."""
    data.setup()
    samples = [data.splits["train"][i] for i in range(len(data.splits["train"]))]
    with torch.no_grad():
        x = tuned.network.eval().features(torch.stack([s["image"] for s in samples])).double().numpy()
    labels = torch.stack([s["label"] for s in samples])
    targets = labels.numpy().T if labels.ndim == 2 else 2 * F.one_hot(labels).numpy().T - 1
    scores = np.zeros(targets.T.shape)
    groups = strata(labels, folds).numpy()
    for train, test in StratifiedKFold(folds, shuffle=True, random_state=0).split(x, groups):
        for k, target in enumerate(targets):
            known = train[target[train] != 0]
            svm = SVC(kernel="linear", C=10.0, tol=1e-8).fit(x[known], target[known])
            scores[test, k] = svm.decision_function(x[test])
    return torch.from_numpy(scores) * tuned.report["logit_scale"], labels


@pytest.mark.parametrize("ema", [0.0, 0.5])
def test_the_backbone_learns_by_them_and_a_resumed_run_does_the_same(folder: Path, tmp_path: Path, ema: float) -> None:
    found = []
    for stops in ([4], [2, 4]):
        checkpoint: str | None = None
        for stop in stops:
            tuned = task(cross_fit=True, ema=ema)
            run = trainer(tmp_path / f"{len(stops)}-{stop}", max_epochs=4, enable_checkpointing=True)
            if stop < 4:
                run.callbacks.append(StopAfter(stop))  # type: ignore[attr-defined]
            run.fit(tuned, pictures(folder), ckpt_path=checkpoint, weights_only=True if checkpoint else None)
            checkpoint = run.checkpoint_callback.best_model_path  # type: ignore[union-attr]
        saved = torch.load(str(checkpoint), weights_only=True)
        assert saved["cxlp"]["fold_classifiers"] is None  # nothing is trained with them after the closing fit
        found.append(saved["state_dict"])
    for name, value in found[0].items():
        assert torch.equal(found[1][name], value), name
    plain = task(ema=ema)  # by the SVMs of all images, the backbone learns something else
    trainer(tmp_path, max_epochs=4).fit(plain, pictures(folder))
    learnt = plain.network.backbone.state_dict()
    assert any(not torch.equal(found[0][f"network.backbone.{k}"], v) for k, v in learnt.items())


def test_several_labels_per_image_are_cross_fitted_too(tmp_path: Path) -> None:
    write_voc2007(tmp_path, size=32)
    data = VOC2007(tmp_path / "VOCdevkit" / "VOC2007", num_workers=0, batch_size=16, augment=PLAIN)
    still = OptimizerConfig(backbone_lr=0, projection_lr=0)
    tuned, noted = task(optimizer=still, cross_fit=True, frozen=FrozenConfig(folds=2)), Scores()
    trainer(tmp_path, max_epochs=3, callbacks=[noted]).fit(tuned, data)
    same = VOC2007(tmp_path / "VOCdevkit" / "VOC2007", num_workers=0, image_size=32)
    expected = float(classification_loss(*cross_validated(tuned, same, folds=2)))
    assert np.mean(noted.losses) == pytest.approx(expected, rel=1e-2)


@pytest.mark.parametrize("options", [{"start": "scratch"}, {"closing_fit": False}, {"mix": "mixup"}], ids=str)
def test_it_needs_the_frozen_fit_and_a_closing_one(options: dict[str, Any]) -> None:
    with pytest.raises(CxlpError, match="it takes start: frozen, closing_fit: true"):
        task(**{"cross_fit": True, **options})


def test_it_needs_two_images_of_each_class(tmp_path: Path) -> None:
    write_folder(tmp_path / "few", train=1, test=1, size=32)
    track = Track()
    with pytest.raises(CxlpError, match=r"model.cross_fit needs two training images of each class, but 'kind0' has 1"):
        trainer(tmp_path, max_epochs=3, callbacks=[track]).fit(task(cross_fit=True), pictures(tmp_path / "few"))
    assert track.seen == []  # no pass was made for that


# --- what it does not do


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
        trainer(tmp_path, max_epochs=3, callbacks=[track], **option).fit(task(), pictures(folder))
    assert track.seen == []


@pytest.mark.parametrize("start", ["scratch", "runs/a/checkpoints/best.ckpt"])
def test_without_a_first_fit_there_is_no_closing_one(start: str) -> None:
    with pytest.raises(CxlpError, match=f"takes C and the scale of the logits from a first fit, but .* is {start}"):
        task(start=start)


@pytest.mark.parametrize(
    ("callback", "named"),
    [
        (EarlyStopping("val/loss"), "EarlyStopping .* would end the run before model.closing_fit"),
        (Timer("00:01:00:00"), "Timer .* would end the run before model.closing_fit"),
        (StochasticWeightAveraging(1e-3), "StochasticWeightAveraging would undo model.closing_fit by an average"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_would_end_the_run_before_it_or_undo_it_is_refused(
    folder: Path, tmp_path: Path, callback: pl.Callback, named: str
) -> None:
    with pytest.raises(CxlpError, match=named):
        trainer(tmp_path, max_epochs=3, callbacks=[callback]).fit(task(), pictures(folder, validation=0.25))


def test_a_run_of_another_length_is_no_resumption(folder: Path, tmp_path: Path) -> None:
    run = trainer(tmp_path, max_epochs=3, enable_checkpointing=True)
    run.fit(task(), pictures(folder))
    checkpoint = run.checkpoint_callback.best_model_path  # type: ignore[union-attr]
    with pytest.raises(CxlpError, match=r"in epochs 0, 2, this one in epochs 0, 4: give the same trainer.max_epochs"):
        trainer(tmp_path, max_epochs=5).fit(task(), pictures(folder), ckpt_path=checkpoint, weights_only=True)
    # to test it takes no plan
    run = trainer(tmp_path)
    run.test(FineTune(NETWORK, closing_fit=True), pictures(folder), ckpt_path=checkpoint, weights_only=True)
    # the same task again plans anew
    again = task()
    for epochs in (3, 4):
        trainer(tmp_path, max_epochs=epochs).fit(again, pictures(folder))
        assert again.frozen_epochs == {0, epochs - 1}
