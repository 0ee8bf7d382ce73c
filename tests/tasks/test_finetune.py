"""Fine-tuning under a Trainer: changed and unchanged weights, errors, and the Trainer's own options."""

import warnings
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import ModelCheckpoint
from torch import Tensor

import cxlp.tasks.finetune
from cxlp.tasks import FineTune, Frozen
from cxlp.tasks.optim import OptimizerConfig
from cxlp.utils.errors import CxlpError
from cxlp.utils.labels import classification_loss
from tests.tasks.small import RATES, assert_equal, network, pictures, state, trainer
from tests.tasks.tuning import AtEachBatch, solved, task

STILL = OptimizerConfig(backbone_lr=0, projection_lr=0, classifier_lr=0)


# --- epochs


def test_fine_tuning_starts_at_the_frozen_solution(folder: Path, tmp_path: Path) -> None:
    seen: list[tuple[int, int, bool, bool]] = []
    kept: list[dict[str, Tensor]] = []

    def look(trainer: pl.Trainer, task: FineTune) -> None:
        moving = any(p.grad is not None and bool(p.grad.any()) for p in task.network.backbone.parameters())
        seen.append((task.current_epoch, trainer.global_step, task.network.training, moving))
        kept.append(state(task.network))

    tuned = solved(folder)
    before = state(tuned.network)
    assert before["classifier.weight"].any()
    run = trainer(tmp_path, max_epochs=2, callbacks=[AtEachBatch(look)])
    run.fit(tuned, pictures(folder, validation=0.25))  # nine images: three batches of four
    assert [s[:2] for s in seen] == [(0, 1), (0, 2), (0, 3), (1, 4), (1, 5), (1, 6)]
    assert all(training for *_, training, _ in seen)
    for part in ("backbone", "heads", "classifier"):
        keys = [k for k in before if k.startswith(part) and k.endswith("weight")]
        assert any(not torch.equal(kept[0][k], before[k]) for k in keys), part
    assert {"fine-tuning", "validation"} <= tuned.times.keys()


def test_before_the_first_step_scores_equal_the_frozen_fit(folder: Path, tmp_path: Path) -> None:
    """The scores are bitwise equal, also after steps of length 0, which do not change BatchNorm's statistics."""
    data = pictures(folder, validation=0.25)
    frozen = Frozen(network())
    run = trainer(tmp_path, max_epochs=1)
    run.fit(frozen, data)
    (tested,) = run.test(frozen, data, verbose=False)
    tuned = FineTune(frozen.network, STILL)
    (validated,) = trainer(tmp_path).validate(tuned, data, verbose=False)
    assert validated == frozen.validated and validated["val/accuracy"] > 0
    run = trainer(tmp_path, max_epochs=2)
    run.fit(tuned, data)
    assert run.global_step == 6
    assert tuned.validated == frozen.validated
    assert run.test(tuned, data, verbose=False) == [tested]


@pytest.mark.parametrize("steps", [-1, 4])
@pytest.mark.parametrize("accumulated", [1, 2])
def test_the_schedule_spans_the_run(folder: Path, tmp_path: Path, accumulated: int, steps: int) -> None:
    rates: list[float] = []

    def look(trainer: pl.Trainer, task: FineTune) -> None:
        if trainer.global_step > len(rates):
            rates.append(trainer.optimizers[0].param_groups[0]["lr"] / RATES.backbone_lr)

    tuned = task(optimizer=replace(RATES, warmup_epochs=accumulated / 3))
    run = trainer(tmp_path, max_epochs=3, max_steps=steps, accumulate_grad_batches=accumulated)
    run.callbacks.append(AtEachBatch(look))  # type: ignore[attr-defined]
    run.fit(tuned, pictures(folder))  # three batches: with accumulation over two, two steps
    # one step of warm-up; after the last step the rate has reached its end
    assert len(rates) == (4 if steps == 4 else 9 if accumulated == 1 else 6)
    assert rates[0] == 1.0
    assert rates[-1] == pytest.approx(0.0, abs=1e-9)
    assert rates == sorted(rates, reverse=True)


def test_a_run_without_max_epochs_is_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(CxlpError, match="max_epochs is not set"):
        trainer(tmp_path, max_epochs=-1, max_steps=5).fit(task(), pictures(folder))


# --- BatchNorm


@pytest.mark.parametrize("frozen", [True, False])
def test_batch_norm_statistics_change_unless_frozen(folder: Path, tmp_path: Path, frozen: bool) -> None:
    tuned = task(freeze_batch_norm=frozen)
    before = state(tuned.network.backbone)
    # validation in between must not change the mode
    run = trainer(tmp_path, max_epochs=1, val_check_interval=1)
    run.fit(tuned, pictures(folder, validation=0.25))
    assert run.global_step > 1
    after = tuned.network.backbone.state_dict()
    statistics = [k for k in before if "running_" in k or "num_batches" in k]
    assert len(statistics) > 3
    for key in statistics:
        assert torch.equal(after[key], before[key]) == frozen, key
    assert any(not torch.equal(after[k], before[k]) for k in before if k.endswith("bn1.weight"))  # which are weights
    norm = next(m for m in tuned.network.backbone.modules() if isinstance(m, torch.nn.BatchNorm2d))
    assert tuned.network.backbone.training and norm.training != frozen


# --- held images, and continuing


def test_the_backbone_is_held_while_the_classifier_learns(folder: Path, tmp_path: Path) -> None:
    moved: list[tuple[bool, bool, bool]] = []
    start: dict[str, Tensor] = {}

    def look(trainer: pl.Trainer, task: FineTune) -> None:
        now = state(task.network)
        parts = [
            [k for k in now if k.startswith(p) and k.endswith("weight")] for p in ("backbone", "heads", "classifier")
        ]
        backbone, projection, classifier = (any(not torch.equal(now[k], start[k]) for k in keys) for keys in parts)
        moved.append((backbone, projection, classifier))

    tuned = task(optimizer=replace(RATES, hold_epochs=1.0, weight_decay=0.1))
    start.update(state(tuned.network))
    trainer(tmp_path, max_epochs=3, callbacks=[AtEachBatch(look)]).fit(tuned, pictures(folder))
    backbone, projection, classifier = zip(*moved, strict=True)
    assert backbone == projection == (False,) * 3 + (True,) * 6
    assert classifier == (True,) * 9
    assert all(p.requires_grad for p in tuned.network.parameters())


def test_a_backbone_that_is_held_to_the_end_is_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(CxlpError, match=r"hold_epochs is 2.0, but there are 2 gradient epochs"):
        trainer(tmp_path, max_epochs=2).fit(task(optimizer=replace(RATES, hold_epochs=2.0)), pictures(folder))


def test_a_checkpoint_from_within_an_epoch_is_refused(folder: Path, tmp_path: Path) -> None:
    whole = ModelCheckpoint(tmp_path / "a", filename="{step}", every_n_train_steps=2, save_top_k=-1)
    trainer(tmp_path, max_epochs=1, callbacks=[whole], enable_checkpointing=True).fit(task(), pictures(folder))
    with pytest.raises(CxlpError, match=r"val_check_interval.* last\.ckpt"):
        trainer(tmp_path, max_epochs=2).fit(
            task(), pictures(folder), ckpt_path=str(tmp_path / "a" / "step=2.ckpt"), weights_only=True
        )


@pytest.mark.parametrize(("end", "workers"), [("cut off", 1), ("over", 1), ("over", 0)])
def test_a_resumed_run_draws_the_images_of_its_epoch(folder: Path, tmp_path: Path, end: str, workers: int) -> None:
    # workers load the first batches before the Trainer sets the sampler's epoch
    drawn: dict[str, list[list[int]]] = {"whole": [], "first": [], "second": []}
    left: dict[str, dict[str, Tensor]] = {}
    last = tmp_path / "first" / "last.ckpt"
    for name in drawn:
        first = name == "first"
        noted = Positions(drawn[name], until=2 if first and end == "cut off" else None)
        saving = ModelCheckpoint(
            tmp_path / name, filename="last", enable_version_counter=False, save_on_train_epoch_end=True
        )
        epochs = 2 if first and end == "over" else 4
        run = trainer(
            tmp_path, max_epochs=epochs, enable_checkpointing=True, callbacks=[noted, saving], num_sanity_val_steps=1
        )
        resumed: dict[str, Any] = {"ckpt_path": last, "weights_only": True} if name == "second" else {}
        tuned = task()
        with pytest.raises(SystemExit) if first and end == "cut off" else nullcontext():
            run.fit(tuned, pictures(folder, num_workers=workers, validation=0.25), **resumed)
        if first and end == "over":
            run.save_checkpoint(last)
        left[name] = state(tuned.network)
    assert drawn["first"] + drawn["second"] == drawn["whole"]
    assert len(drawn["whole"]) == 12
    if end == "cut off":  # the other schedule was for two epochs
        assert_equal(left["whole"], left["second"])


class Positions(pl.Callback):
    """Records the indices of each batch's images; ends the process before an epoch."""

    def __init__(self, drawn: list[list[int]], until: int | None) -> None:
        self.drawn, self.until = drawn, until

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.current_epoch == self.until:
            raise SystemExit

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, *_: Any) -> None:
        self.drawn.append(batch["index"].tolist())


# --- the loss


def test_a_single_image_cannot_be_mixed(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(CxlpError, match=r"model.mix is cutmix, but the batch size is 1"):
        trainer(tmp_path, max_epochs=2).fit(task(mix="cutmix"), pictures(folder, batch_size=1))


@pytest.mark.parametrize("mix", ["mixup", "cutmix"])
def test_images_are_mixed(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mix: Literal["mixup", "cutmix"]
) -> None:
    seen: list[Tensor] = []

    def loss(scores: Tensor, labels: Tensor, label_smoothing: float) -> Tensor:
        seen.append(labels)
        return classification_loss(scores, labels, label_smoothing)

    monkeypatch.setattr(cxlp.tasks.finetune, "classification_loss", loss)
    trainer(tmp_path, max_epochs=1).fit(task(mix=mix, mix_alpha=1.0), pictures(folder))
    assert len(seen) == 3
    assert all(labels.shape == (4, 3) and bool(((labels > 0) & (labels < 1)).any()) for labels in seen)


@pytest.mark.parametrize(
    ("option", "said"),
    [
        ({"label_smoothing": 1.0}, r"model\.label_smoothing is 1"),
        ({"ema": 1.0}, r"model\.ema is 1"),
        ({"ema": -0.1}, r"model\.ema is -0\.1"),
        ({"mix_alpha": 0.0}, r"model\.mix_alpha is 0"),
        ({"recompute": True, "compile": True}, r"model\.recompute and model\.compile"),
    ],
    ids=str,
)
def test_impossible_options_are_named(option: dict[str, Any], said: str) -> None:
    with pytest.raises(CxlpError, match=said):
        task(**option)


@pytest.mark.parametrize("smoothing", [0.0, 0.3])
def test_label_smoothing_reaches_the_loss(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, smoothing: float
) -> None:
    expected: list[Tensor] = []
    step = FineTune.training_step

    def watch(task: FineTune, batch: Any, batch_idx: int) -> Tensor:
        loss = step(task, batch, batch_idx)
        with torch.no_grad():
            p = task(batch["image"]).log_softmax(dim=1)  # frozen BatchNorm: equal scores again
        right = -p.gather(1, batch["label"][:, None]).squeeze(1)
        expected.append((1 - smoothing) * right.mean() - smoothing * p.mean())
        torch.testing.assert_close(loss.detach(), expected[-1])
        return loss

    monkeypatch.setattr(FineTune, "training_step", watch)
    trainer(tmp_path, max_epochs=1).fit(task(label_smoothing=smoothing), pictures(folder))
    assert len(expected) == 3


@pytest.mark.parametrize("fitted", [False, True])
def test_an_unfitted_network_is_refused_with_advice(folder: Path, tmp_path: Path, fitted: bool) -> None:
    tuned = solved(folder) if fitted else task()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trainer(tmp_path, max_epochs=1).fit(tuned, pictures(folder))
    said = [str(warning.message) for warning in caught if "was not fitted before" in str(warning.message)]
    assert len(said) == (not fitted) and all("fit(cxlp.Frozen(network), loader)" in line for line in said)
