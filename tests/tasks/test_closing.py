"""The closing fit, PCA and SVMs on the backbone after gradient descent; and cross-fitting."""

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from sklearn.model_selection import StratifiedKFold
from sklearn.svm import SVC
from torch import Tensor
from torch.nn import functional as F

from cxlp.data.datamodule import ImageDataModule
from cxlp.data.voc2007 import VOC2007
from cxlp.frozen.config import FrozenConfig
from cxlp.frozen.folds import FoldClassifiers
from cxlp.heads import CrossLayerPooling
from cxlp.models.checkpoint import load_network
from cxlp.models.network import Network
from cxlp.tasks import FineTune, Frozen
from cxlp.tasks.optim import OptimizerConfig
from cxlp.utils.errors import CxlpError
from cxlp.utils.labels import classification_loss, strata
from tests.generate import write_folder, write_voc2007
from tests.tasks.small import PLAIN, RATES, network, pictures, trainer
from tests.tasks.test_ema import StopAfter


def fit(task: pl.LightningModule, data: ImageDataModule, place: Path, **options: Any) -> pl.Trainer:
    """Fit a task; a frozen one in a single pass."""
    run = trainer(place, **{"max_epochs": 1, **options})
    run.fit(task, data)
    return run


def settled(first: Frozen) -> tuple[float, float]:
    """Return the state that a closing fit takes over from the first fit."""
    return first.report["C"], first.report["logit_scale"]


class Track(pl.Callback):
    """Records the images and the backbone after each training batch."""

    def __init__(self) -> None:
        self.seen: list[list[int]] = []
        self.backbones: list[dict[str, Tensor]] = []

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, *_: Any
    ) -> None:
        assert isinstance(pl_module, Frozen | FineTune)
        self.seen.append(batch["index"].tolist())
        self.backbones.append({k: v.clone() for k, v in pl_module.network.backbone.state_dict().items()})


@pytest.mark.parametrize("reset", [False, True])
def test_the_closing_fit_equals_a_frozen_fit_of_the_trained_backbone(folder: Path, tmp_path: Path, reset: bool) -> None:
    data, built = pictures(folder), network()
    first = Frozen(built)
    fit(first, data, tmp_path)
    if reset:  # gradient descent may start from the projection only
        built.reset_classifier()
    start = {k: v.clone() for k, v in built.backbone.state_dict().items()}
    fit(FineTune(built, RATES), data, tmp_path)
    trained = {k: v.clone() for k, v in built.backbone.state_dict().items()}
    assert any(not torch.equal(start[k], v) for k, v in trained.items())

    track = Track()
    closing = Frozen(built, FrozenConfig(store=str(tmp_path / "store")), settled=settled(first))
    fit(closing, data, tmp_path, callbacks=[track])
    assert [i for seen in track.seen for i in seen] == list(range(12))  # in order
    for backbone in (*track.backbones, built.backbone.state_dict()):
        assert all(torch.equal(backbone[k], v) for k, v in trained.items())
    assert list(tmp_path.iterdir()) == []  # features of trained weights are not stored: other runs cannot use them

    again = Frozen(network())
    again.network.backbone.load_state_dict(trained)
    fit(again, data, tmp_path)
    assert first.report["logit_scale"] != again.report["logit_scale"]
    # Equal up to the scale of the logits: cross-validating features that were trained on the labels is optimistic.
    ratio = closing.report["logit_scale"] / again.report["logit_scale"]
    assert closing.report == {"C": again.report["C"], "logit_scale": first.report["logit_scale"], "primal": 0.0}
    for key, value in again.network.state_dict().items():
        scale = ratio if key.startswith("classifier") else 1.0
        torch.testing.assert_close(built.state_dict()[key], scale * value if scale != 1.0 else value)


def test_the_closing_fit_uses_the_averaged_weights(folder: Path, tmp_path: Path) -> None:
    data, built, track = pictures(folder, validation=0.25), network(), Track()
    first = Frozen(built)
    fit(first, data, tmp_path)
    run = fit(FineTune(built, RATES, ema=0.5), data, tmp_path, callbacks=[track], enable_checkpointing=True)
    average = {k: v.clone() for k, v in built.backbone.state_dict().items()}
    assert any(not torch.equal(track.backbones[-1][k], v) for k, v in average.items())  # the weights of the last step
    saved = load_network(run.checkpoint_callback.best_model_path)  # type: ignore[union-attr]
    for key, value in saved.backbone.state_dict().items():
        assert torch.equal(value, average[key]), key
    closing = Frozen(built, settled=settled(first))
    fit(closing, data, tmp_path)
    frozen = Frozen(network())
    frozen.network.backbone.load_state_dict(average)
    fit(frozen, data, tmp_path)
    ratio = closing.report["logit_scale"] / frozen.report["logit_scale"]
    torch.testing.assert_close(
        built.get_parameter("classifier.weight"), ratio * frozen.network.get_parameter("classifier.weight")
    )


# --- training with the classifiers of the cross-validation


class Scores(pl.Callback):
    """Records the classifier and the loss after each step."""

    def __init__(self) -> None:
        self.classifiers: list[Tensor] = []
        self.losses: list[float] = []

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any) -> None:
        assert isinstance(pl_module, FineTune) and pl_module.network.classifier is not None
        self.classifiers.append(pl_module.network.classifier.weight.clone())
        self.losses.append(float(trainer.callback_metrics["train/loss_step"]))


def solved(data: ImageDataModule, place: Path, built: Network, config: FrozenConfig = FrozenConfig()) -> Frozen:
    """A frozen fit that keeps the classifiers of its folds."""
    frozen = Frozen(built, config, keep_folds=True)
    fit(frozen, data, place)
    assert frozen.fold_classifiers is not None
    return frozen


def test_images_are_scored_by_classifiers_that_have_not_seen_them(folder: Path, tmp_path: Path) -> None:
    still = OptimizerConfig(backbone_lr=0, projection_lr=0, classifier_lr=1.0)
    data = pictures(folder)
    frozen = solved(data, tmp_path, network(), FrozenConfig(folds=3, pca_vectors=48))
    solution = frozen.network.get_parameter("classifier.weight").detach().clone()
    noted, tuned = Scores(), FineTune(frozen.network, still, frozen.fold_classifiers)
    fit(tuned, data, tmp_path, callbacks=[noted])
    assert solution.any() and len(noted.classifiers) == 3
    assert all(torch.equal(solution, w) for w in noted.classifiers)  # at any learning rate
    assert frozen.network.get_parameter("classifier.weight").requires_grad  # for the following stage

    logits, y = cross_validated(frozen, pictures(folder, image_size=32), folds=3)
    assert np.mean(noted.losses) == pytest.approx(float(F.cross_entropy(logits, y)), rel=1e-3)


def cross_validated(frozen: Frozen, data: ImageDataModule, folds: int) -> tuple[Tensor, Tensor]:
    """Return logits of an independent cross-validation of a network's features, and the labels."""
    data.setup()
    samples = [data.splits["train"][i] for i in range(len(data.splits["train"]))]
    with torch.no_grad():
        x = frozen.network.eval().features(torch.stack([s["image"] for s in samples])).double().numpy()
    labels = torch.stack([s["label"] for s in samples])
    targets = labels.numpy().T if labels.ndim == 2 else 2 * F.one_hot(labels).numpy().T - 1
    scores = np.zeros(targets.T.shape)
    groups = strata(labels, folds).numpy()
    for train, test in StratifiedKFold(folds, shuffle=True, random_state=0).split(x, groups):
        for k, target in enumerate(targets):
            known = train[target[train] != 0]
            svm = SVC(kernel="linear", C=10.0, tol=1e-8).fit(x[known], target[known])
            scores[test, k] = svm.decision_function(x[test])
    return torch.from_numpy(scores) * frozen.report["logit_scale"], labels


def test_the_backbone_learns_by_them_and_a_resumed_run_does_the_same(folder: Path, tmp_path: Path) -> None:
    data = pictures(folder)
    frozen = solved(data, tmp_path, network())
    found = []
    for stops in ([3], [1, 3]):
        checkpoint: str | None = None
        for stop in stops:
            tuned = FineTune(copy.deepcopy(frozen.network), RATES, frozen.fold_classifiers, ema=0.5)
            run = trainer(tmp_path / f"{len(stops)}-{stop}", max_epochs=3, enable_checkpointing=True)
            if stop < 3:
                run.callbacks.append(StopAfter(stop))  # type: ignore[attr-defined]
            run.fit(tuned, data, ckpt_path=checkpoint, weights_only=True if checkpoint else None)
            checkpoint = run.checkpoint_callback.best_model_path  # type: ignore[union-attr]
        found.append(torch.load(str(checkpoint), weights_only=True)["state_dict"])
    for name, value in found[0].items():
        assert torch.equal(found[1][name], value), name
    plain = FineTune(copy.deepcopy(frozen.network), RATES, ema=0.5)
    fit(plain, data, tmp_path, max_epochs=3)  # with the SVMs of all images, the backbone learns something else
    learnt = plain.network.backbone.state_dict()
    assert any(not torch.equal(found[0][f"network.backbone.{k}"], v) for k, v in learnt.items())


def test_checkpoints_of_both_tasks_hold_them(folder: Path, tmp_path: Path) -> None:
    """A fit can therefore be continued from either checkpoint, in another process."""
    data = pictures(folder)
    frozen = solved(data, tmp_path, network())
    folds = frozen.fold_classifiers
    assert folds is not None
    frozen.trainer.save_checkpoint(tmp_path / "frozen.ckpt")
    loaded = Frozen.load_from_checkpoint(tmp_path / "frozen.ckpt")
    tuned = FineTune(loaded.network, RATES, loaded.fold_classifiers)
    fit(tuned, data, tmp_path).save_checkpoint(tmp_path / "tuned.ckpt")
    again = FineTune.load_from_checkpoint(tmp_path / "tuned.ckpt")
    for held in (loaded.fold_classifiers, again.fold_classifiers):
        assert isinstance(held, FoldClassifiers)
        for name in ("weight", "bias", "fold"):
            assert torch.equal(getattr(held, name), getattr(folds, name)), name
    without = Frozen(network())
    fit(without, data, tmp_path).save_checkpoint(tmp_path / "without.ckpt")
    assert Frozen.load_from_checkpoint(tmp_path / "without.ckpt").fold_classifiers is None


def test_several_labels_per_image_are_cross_fitted_too(tmp_path: Path) -> None:
    write_voc2007(tmp_path, size=32)
    root = tmp_path / "VOCdevkit" / "VOC2007"
    data = VOC2007(root, num_workers=0, batch_size=16, augment=PLAIN)
    data.setup()
    built = Network(network().backbone, CrossLayerPooling(pca_dim=4), data.classes, multi_label=True)
    frozen = solved(data, tmp_path, built, FrozenConfig(folds=2))
    noted = Scores()
    still = OptimizerConfig(backbone_lr=0, projection_lr=0)
    fit(FineTune(frozen.network, still, frozen.fold_classifiers), data, tmp_path, callbacks=[noted])
    same = VOC2007(root, num_workers=0, image_size=32)
    expected = float(classification_loss(*cross_validated(frozen, same, folds=2)))
    assert np.mean(noted.losses) == pytest.approx(expected, rel=1e-2)


def test_mixed_images_belong_to_no_fold(folder: Path, tmp_path: Path) -> None:
    frozen = solved(pictures(folder), tmp_path, network())
    with pytest.raises(CxlpError, match=r"model\.mix is mixup, .*model\.cross_fit"):
        FineTune(frozen.network, RATES, frozen.fold_classifiers, mix="mixup")


def test_it_needs_two_images_of_each_class(tmp_path: Path) -> None:
    write_folder(tmp_path / "few", train=1, test=1, size=32)
    with pytest.raises(CxlpError, match=r"model\.cross_fit .*'kind0' has 1: add images"):
        fit(Frozen(network(), keep_folds=True), pictures(tmp_path / "few"), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["few"]
