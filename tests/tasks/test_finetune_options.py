"""Options of fine-tuning: values that are not finite, precision, accumulation, clipping, memory and speed."""

from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import ModelCheckpoint
from torch import Tensor

import cxlp.tasks.finetune
from cxlp.backbones.gradient_checkpointing import run_in_segments
from cxlp.tasks import FineTune
from cxlp.tasks.optim import OptimizerConfig
from cxlp.utils.errors import CxlpError
from cxlp.utils.labels import classification_loss
from tests.tasks.small import pictures, trainer
from tests.tasks.tuning import AtEachBatch, solved, task

# --- values that are not finite


def broken_at(monkeypatch: pytest.MonkeyPatch, number: int) -> list[int]:
    """Make one training loss NaN without any effect on the gradients, and return the calls so far."""
    calls: list[int] = []

    def loss(scores: Tensor, labels: Tensor, label_smoothing: float) -> Tensor:
        calls.append(len(calls))
        return classification_loss(scores, labels, label_smoothing) + (float("nan") if calls[-1] == number else 0.0)

    monkeypatch.setattr(cxlp.tasks.finetune, "classification_loss", loss)
    return calls


@pytest.mark.parametrize(
    ("every", "number", "epoch", "batches"),
    [(2, 0, 0, 2), (50, 0, 0, 3), (50, 4, 1, 6)],
    ids=["at log_every_n_steps", "at the end of the epoch", "in a later epoch"],
)
def test_a_nonfinite_loss_stops_training(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, every: int, number: int, epoch: int, batches: int
) -> None:
    calls = broken_at(monkeypatch, number)  # and the later losses are finite
    said = rf"the training loss is not finite in gradient epoch {epoch + 1}, .* checkpoint is none yet"
    with pytest.raises(CxlpError, match=said):
        trainer(tmp_path, max_epochs=3, log_every_n_steps=every).fit(task(), pictures(folder))
    assert len(calls) == batches


def test_nonfinite_weights_after_the_last_step_stop_training(folder: Path, tmp_path: Path) -> None:
    def break_it(trainer: pl.Trainer, task: FineTune) -> None:
        if trainer.is_last_batch:
            assert task.network.classifier is not None
            task.network.classifier.bias.data[0] = torch.inf

    with pytest.raises(CxlpError, match="a weight is not finite in gradient epoch 1, step 3"):
        trainer(tmp_path, max_epochs=1, callbacks=[AtEachBatch(break_it)]).fit(task(), pictures(folder))


def test_nonfinite_weights_within_an_epoch_are_not_saved(folder: Path, tmp_path: Path) -> None:
    def break_it(trainer: pl.Trainer, task: FineTune) -> None:
        if trainer.global_step == 3:
            assert task.network.classifier is not None
            task.network.classifier.bias.data[0] = torch.inf

    saved = ModelCheckpoint(tmp_path / "a", filename="{step}", save_top_k=-1)
    options = {"val_check_interval": 2, "callbacks": [AtEachBatch(break_it), saved], "enable_checkpointing": True}
    with pytest.raises(CxlpError, match="not finite in gradient epoch 1, step 4"):
        trainer(tmp_path, max_epochs=2, **options).fit(task(), pictures(folder, validation=0.25, batch_size=2))
    assert [path.name for path in (tmp_path / "a").glob("*.ckpt")] == ["step=2.ckpt"]


# --- options of the Trainer


@pytest.mark.parametrize("start", ["frozen", "scratch"])
def test_half_precision_gives_full_scores_and_finite_losses(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, start: str
) -> None:
    scored: list[tuple[torch.dtype, torch.dtype]] = []

    def loss(scores: Tensor, labels: Tensor, label_smoothing: float) -> Tensor:
        with torch.no_grad():
            maps = tuned.network.backbone(torch.zeros(1, 3, 32, 32))
        scored.append((maps[0].dtype, scores.dtype))
        return classification_loss(scores, labels, label_smoothing)

    monkeypatch.setattr(cxlp.tasks.finetune, "classification_loss", loss)
    tuned = task() if start == "scratch" else solved(folder, precision="bf16-mixed")
    run = trainer(tmp_path, max_epochs=1, precision="bf16-mixed")
    run.fit(tuned, pictures(folder, validation=0.25))
    assert set(scored) == {(torch.bfloat16, torch.float32)}
    losses = [run.callback_metrics[k] for k in ("train/loss_epoch", "val/loss")]
    assert torch.isfinite(torch.stack(losses)).all()
    assert all(p.dtype == torch.float32 and torch.isfinite(p).all() for p in tuned.network.parameters())


def test_two_accumulated_batches_of_four_are_one_of_eight(folder: Path, tmp_path: Path) -> None:
    found = []
    for size, accumulate in ((8, 1), (4, 2)):
        tuned = task()
        run = trainer(tmp_path, max_epochs=1, accumulate_grad_batches=accumulate, limit_train_batches=accumulate)
        run.fit(tuned, pictures(folder, batch_size=size))
        assert run.global_step == 1
        found.append(tuned.network.state_dict())
    start = task().network.state_dict()
    assert not torch.equal(found[0]["backbone.trunk.conv1.0.weight"], start["backbone.trunk.conv1.0.weight"])
    torch.testing.assert_close(found[0], found[1], rtol=0, atol=1e-6)


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
@pytest.mark.parametrize("limit", [None, 1.0])
def test_steps_are_fused_unless_gradients_are_clipped(
    folder: Path, tmp_path: Path, precision: Any, limit: float | None
) -> None:
    run = trainer(tmp_path, max_epochs=1, limit_train_batches=1, gradient_clip_val=limit, precision=precision)
    run.fit(task(), pictures(folder))  # Lightning would refuse to clip with a fused optimizer
    assert run.global_step == 1 and run.optimizers[0].defaults["fused"] == (limit is None)


def test_gradients_are_clipped_as_asked(folder: Path, tmp_path: Path) -> None:
    plain = OptimizerConfig(backbone_lr=1, projection_lr=1, classifier_lr=1, weight_decay=0, warmup_epochs=0)
    moved = []
    for limit in (None, 1e-3):
        tuned = task(optimizer=plain)
        data = pictures(folder)
        run = trainer(tmp_path, max_epochs=1, limit_train_batches=1, gradient_clip_val=limit)
        before = {k: v.detach().clone() for k, v in tuned.network.named_parameters()}
        run.fit(tuned, data)
        steps = [p.detach() - before[k] for k, p in tuned.network.named_parameters()]
        moved.append(float(torch.stack([s.norm() for s in steps]).norm()))
    # the first step of Nesterov momentum m is (1 + m) times the gradient
    assert moved[0] > 0.1
    assert moved[1] == pytest.approx(1.9e-3, rel=1e-2)


# --- less memory, more speed


def one_epoch(folder: Path, tmp_path: Path, **options: Any) -> tuple[FineTune, pl.Trainer]:
    """From a frozen solution, with validation."""
    tuned = solved(folder, **options)
    run = trainer(tmp_path, max_epochs=1)
    run.fit(tuned, pictures(folder, validation=0.25))
    return tuned, run


@pytest.mark.parametrize("freeze", [True, False])
def test_recomputation_changes_nothing(
    folder: Path, tmp_path: Path, freeze: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    segmented = Mock(side_effect=run_in_segments)
    monkeypatch.setattr("cxlp.backbones.backbone.run_in_segments", segmented)
    runs = [one_epoch(folder, tmp_path, freeze_batch_norm=freeze, recompute=on) for on in (False, True)]
    (plain, _), (again, _) = runs
    assert {call.args[0] for call in segmented.call_args_list} == {again.network.backbone.trunk}
    assert not again.network.backbone.recompute  # which the next stage does not know
    torch.testing.assert_close(again.network.state_dict(), plain.network.state_dict(), rtol=1e-5, atol=1e-6)
    losses = [run.callback_metrics["train/loss_epoch"] for _, run in runs]
    torch.testing.assert_close(losses[0], losses[1], rtol=1e-5, atol=0)


@pytest.mark.slow
def test_compiled_parts_train_alike_under_the_same_names(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiled: list[torch.nn.Module] = []
    in_place = torch.nn.Module.compile

    def quickly(module: torch.nn.Module) -> None:
        """Trace forward and backward pass without compiling them to machine code."""
        compiled.append(module)
        in_place(module, backend="aot_eager")

    monkeypatch.setattr(torch.nn.Module, "compile", quickly)
    torch._dynamo.reset()
    plain, _ = one_epoch(folder, tmp_path)
    fast, _ = one_epoch(folder, tmp_path, compile=True)
    assert compiled == [fast.network.backbone, *fast.network.heads]
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] > 1
    assert all(
        module._compiled_call_impl is None for module in compiled
    )  # the following stage uses torch without compilation
    assert list(fast.state_dict()) == list(plain.state_dict())
    torch.testing.assert_close(fast.network.state_dict(), plain.network.state_dict(), rtol=1e-4, atol=1e-5)
