"""Features of both tasks: state after a failed fit, evaluation, other callbacks, loaders and precisions."""

import os
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest
import torch
from pytorch_lightning.callbacks import EMAWeightAveraging, ModelCheckpoint, WeightAveraging
from pytorch_lightning.plugins.precision import MixedPrecision
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset
from torchvision.transforms import v2

from cxlp.backbones.backbone import Backbone
from cxlp.deploy.predictor import Predictor
from cxlp.frozen.config import FrozenConfig
from cxlp.heads import SparseFisherVector
from cxlp.models.network import Network
from cxlp.tasks import FineTune, Frozen
from cxlp.tasks.base import ClassificationTask
from cxlp.tasks.feature_reuse import FeatureReuse
from cxlp.tasks.optim import OptimizerConfig
from cxlp.utils.errors import CxlpError
from tests.tasks.small import (
    CLASSES,
    IMAGES,
    LABELS,
    RATES,
    assert_equal,
    loader,
    network,
    pictures,
    state,
    trainer,
)

# --- the state after a failed fit


def test_a_failed_frozen_fit_leaves_a_network_that_can_be_trained(tmp_path: Path) -> None:
    net = network()
    run = trainer(tmp_path, max_epochs=1)
    with pytest.raises(CxlpError, match="images have values from"):
        run.fit(Frozen(net), loader(5 * IMAGES))
    assert all(p.requires_grad for p in net.backbone.parameters())
    run = trainer(tmp_path, max_epochs=1)
    run.fit(Frozen(net), loader())
    before = state(net.backbone)
    trainer(tmp_path, max_epochs=1).fit(FineTune(net, RATES), loader())
    assert any(not torch.equal(value, before[key]) for key, value in state(net.backbone).items())


def test_a_task_releases_only_its_own_hold(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = Predictor(network())
    net, before = model.network, model.network.backbone._holds[:]
    assert len(before) == 1
    trainer(tmp_path, max_epochs=1).fit(Frozen(net), loader(), loader())
    held: list[int] = []

    def fail(*_: object) -> None:
        held.append(len(net.backbone._holds))
        raise ZeroDivisionError

    monkeypatch.setattr(Network, "classify", fail)
    for task in (Frozen(net), ClassificationTask(net)):
        with pytest.raises(ZeroDivisionError):
            if isinstance(task, Frozen):
                trainer(tmp_path, max_epochs=1).fit(task, loader(), loader())
            else:
                trainer(tmp_path).predict(task, loader())
    assert held == [2, 2] and net.backbone._holds == before
    del model
    assert not net.backbone._holds


def test_a_failed_cross_fit_leaves_the_classifier_to_be_trained(tmp_path: Path) -> None:
    frozen = Frozen(network(), keep_folds=True)
    trainer(tmp_path, max_epochs=1).fit(frozen, loader())
    net, folds = frozen.network, frozen.fold_classifiers
    with pytest.raises(CxlpError, match=r"cross-fitting .*'index'"):
        trainer(tmp_path, max_epochs=1).fit(FineTune(net, RATES, folds, recompute=True), loader())
    assert net.classifier is not None and net.classifier.weight.requires_grad
    assert not net.backbone.recompute


def test_after_a_failed_fit_images_are_decoded_again(folder: Path, tmp_path: Path) -> None:
    data = pictures(folder, image_size=32)
    data.setup()
    config = FrozenConfig(store=str(tmp_path / "store"))
    trainer(tmp_path, max_epochs=1).fit(Frozen(network(), config, reuse=FeatureReuse(config, data)), data)
    again = FeatureReuse(config, data)
    with pytest.raises(CxlpError, match="limit_train_batches"):
        trainer(tmp_path, max_epochs=1, limit_train_batches=1).fit(Frozen(network(), config, reuse=again), data)
    assert again.taken_up and all(split.features is None for split in data.splits.values())


def test_a_trainer_used_for_both_tasks_handles_the_second_exception(tmp_path: Path) -> None:
    """The Trainer keeps the first task's callbacks, which also receive the exception."""
    net = network()
    run = trainer(tmp_path, max_epochs=1)
    run.fit(Frozen(net), loader())
    with pytest.raises(CxlpError, match="images have values from"):
        run.validate(FineTune(net, RATES), loader(5 * IMAGES))


def test_a_frozen_backbone_with_a_learning_rate_gives_a_warning(tmp_path: Path) -> None:
    net = network()
    net.backbone.requires_grad_(False)
    with pytest.warns(UserWarning, match=r"model\.optimizer\.backbone_lr is .*, but no parameter"):
        trainer(tmp_path, max_epochs=1).fit(FineTune(net, RATES), loader())


# --- callbacks and precision


@pytest.mark.parametrize("callback", [WeightAveraging, EMAWeightAveraging])
def test_averages_do_not_replace_the_frozen_solution(tmp_path: Path, callback: type[WeightAveraging]) -> None:
    with pytest.raises(CxlpError, match=f"{callback.__name__} averages weights"):
        trainer(tmp_path, max_epochs=1, callbacks=[callback()]).fit(Frozen(network()), loader())


def test_half_precision_saves_the_frozen_solution(tmp_path: Path) -> None:
    """The gradient scaler steps only if there are gradients."""
    precision = MixedPrecision("16-mixed", "cpu", scaler=torch.amp.GradScaler("cpu"))
    kept = ModelCheckpoint(tmp_path / "kept")
    run = trainer(tmp_path, max_epochs=1, callbacks=[kept], enable_checkpointing=True, plugins=[precision])
    task = Frozen(network())
    run.fit(task, loader())
    assert run.global_step == 1
    loaded = Frozen.load_from_checkpoint(kept.best_model_path)
    assert_equal(state(task.network), state(loaded.network))
    assert loaded.network.get_parameter("classifier.bias").any()
    assert task.network.get_parameter("classifier.bias").grad is None


# --- evaluation


def test_validation_leaves_a_network_in_evaluation_mode(tmp_path: Path) -> None:
    task = FineTune(network(), freeze_batch_norm=False)
    task.eval()
    before = state(task)
    trainer(tmp_path).validate(task, loader(), verbose=False)
    assert not any(module.training for module in task.network.modules())
    task(IMAGES)
    assert_equal(before, state(task))


@pytest.mark.parametrize("parts", [(IMAGES, LABELS), (IMAGES,), None], ids=["pairs", "tuples of one", "images"])
def test_predictions_equal_the_predictor(tmp_path: Path, parts: tuple[Tensor, ...] | None) -> None:
    frozen = Frozen(network())
    run = trainer(tmp_path, max_epochs=1)
    run.fit(frozen, loader())
    data: Any = IMAGES if parts is None else TensorDataset(*parts)
    found = run.predict(frozen, DataLoader(data, batch_size=4))
    assert found is not None
    torch.testing.assert_close(torch.cat(found), Predictor(frozen.network).probabilities(IMAGES))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("task", "what"), [(FineTune, "fit"), *((Frozen, what) for what in ("fit", "validate", "test", "predict"))]
)
@pytest.mark.parametrize("scaled", ["0..255", "normalised"])
def test_floats_outside_0_and_1_are_refused(
    tmp_path: Path, task: type[ClassificationTask], what: str, scaled: str
) -> None:
    """Images with ImageNet normalisation, or bytes cast to floats, would give the network wrong values."""
    images = (IMAGES * 255).round()
    if scaled == "normalised":
        images = v2.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])(IMAGES)
    with pytest.raises(CxlpError, match=r"images have values from .* to .*0\.\.1"):
        getattr(trainer(tmp_path, max_epochs=1), what)(task(network()), loader(images))


@pytest.mark.parametrize("what", ["validate", "test"])
def test_several_loaders_are_refused(tmp_path: Path, what: str) -> None:
    evaluate = getattr(trainer(tmp_path), what)
    with pytest.raises(CxlpError, match=r"^2 loaders .*ConcatDataset"):
        evaluate(Frozen(network()), [loader(), loader()])
    assert len(evaluate(Frozen(network()), [loader()], verbose=False)) == 1


def test_a_checkpoint_has_its_own_epochs_validation_only(tmp_path: Path) -> None:
    kept = ModelCheckpoint(tmp_path, filename="{epoch}", save_top_k=-1, save_on_train_epoch_end=True)
    run = trainer(tmp_path, max_epochs=3, check_val_every_n_epoch=2, callbacks=[kept], enable_checkpointing=True)
    run.fit(FineTune(network(), RATES), loader(), loader())
    said = {
        path.stem: torch.load(path, weights_only=True)["cxlp"]["validated"] for path in sorted(tmp_path.glob("*.ckpt"))
    }
    assert said["epoch=0"] == said["epoch=2"] == {} and "val/accuracy" in said["epoch=1"]


@pytest.mark.parametrize("what", ["validate", "test"])
def test_metrics_of_a_part_of_the_images_or_classes_give_a_warning(
    tmp_path: Path, recwarn: pytest.WarningsRecorder, what: str
) -> None:
    def told(data: Any, task: ClassificationTask, **options: Any) -> list[str]:
        recwarn.clear()
        getattr(trainer(tmp_path, **options), what)(task, data, verbose=False)
        return [str(w.message).partition("metrics cover ")[2] for w in recwarn if "metrics cover" in str(w.message)]

    limit = {f"limit_{what.removesuffix('idate')}_batches": 1}
    task = Frozen(network())
    assert told(loader(), task) == []
    assert told(loader(), task, **limit) == ["4 of 18 images and 3 of 3 classes"]
    assert told(loader(drop_last=True), task) == ["16 of 18 images and 3 of 3 classes"]
    assert told(loader(IMAGES[:2]), task) == ["2 of 2 images and 2 of 3 classes"]
    labels = torch.tensor([[1, -1, 0], [-1, -1, 1], [0, 0, 0]])
    several = DataLoader(TensorDataset(IMAGES[:3], labels))
    assert told(several, Frozen(network(multi_label=True))) == ["3 of 3 images and 2 of 3 classes"]


SCRIPT = """
    import sys, torch
    from pathlib import Path
    from torch.utils.data import DataLoader, TensorDataset
    from cxlp.tasks import Frozen
    from tests.tasks.small import network, trainer

    torch.set_num_threads(1)
    images = torch.rand(9, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    labels = torch.tensor([0, 0, 0, 1, 1, 1, 2, 2, 2])
    wrong = labels.clone()
    wrong[0] = 1  # of the nine, the one that is dealt twice
    run = trainer(Path(sys.argv[1]), max_epochs=1, devices=2, strategy="ddp")
    task = Frozen(network())
    held_out = DataLoader(TensorDataset(images, wrong), batch_size=2)
    run.fit(task, DataLoader(TensorDataset(images, labels), batch_size=2), held_out)
    validated = float(run.callback_metrics["val/accuracy"])
    tested = run.test(task, held_out, verbose=False)[0]["test/accuracy"]
    if run.is_global_zero:
        print("found", validated, tested)
"""


@pytest.mark.slow
def test_two_processes_score_each_image_once(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(textwrap.dedent(SCRIPT))
    root = str(Path(__file__).parents[2])
    done = subprocess.run(
        [sys.executable, str(script), str(tmp_path)],
        check=True,
        timeout=300,
        text=True,
        capture_output=True,
        env={**os.environ, "PYTHONPATH": root},
    )
    found = next(line for line in done.stdout.splitlines() if line.startswith("found")).split()[1:]
    assert [float(value) for value in found] == pytest.approx([8 / 9, 8 / 9])


# --- loaders


def test_a_reference_batch_needs_a_batch_size(tmp_path: Path) -> None:
    batches = TensorDataset(IMAGES.view(9, 2, 3, 32, 32), LABELS.view(9, 2))
    for options in (OptimizerConfig(reference_batch=4), OptimizerConfig()):
        task, run = FineTune(network(), options), trainer(tmp_path, max_epochs=1)
        if options.reference_batch is None:
            run.fit(task, DataLoader(batches, batch_size=None))
            continue
        with pytest.raises(CxlpError, match=r"reference_batch is 4, .* batch_size"):
            run.fit(task, DataLoader(batches, batch_size=None))


def test_a_head_that_gradients_cannot_fit_is_fitted_first(tmp_path: Path) -> None:
    backbone = Backbone("timm/test_resnet", layers=["layer3"], weights=None, image_size=32)
    task = FineTune(Network(backbone, SparseFisherVector(4, 3), CLASSES), RATES)
    with pytest.raises(CxlpError, match=r"is not fitted: fit Frozen\(network\) first"):
        trainer(tmp_path).fit(task, loader())
