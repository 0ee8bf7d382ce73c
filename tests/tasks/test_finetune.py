"""Fine-tuning under a Trainer: what moves, what does not, what is refused, and the Trainer's own options."""

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal
from unittest.mock import Mock

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import ModelCheckpoint
from torch import Tensor

import cxlp.tasks.finetune
from cxlp.backbones.gradient_checkpointing import run_in_segments
from cxlp.tasks import FineTune, Frozen
from cxlp.tasks.optim import OptimizerConfig
from cxlp.utils.errors import CxlpError
from cxlp.utils.labels import classification_loss
from tests.tasks.small import RATES, assert_equal, network, pictures, state, trainer

STILL = OptimizerConfig(backbone_lr=0, projection_lr=0, classifier_lr=0)


def task(**options: Any) -> FineTune:
    """A task with the same random weights at each call."""
    return FineTune(network(), **{"optimizer": RATES, **options})


@cache
def solution(folder: Path, precision: Any) -> dict[str, Tensor]:
    """The solution of a frozen fit."""
    net = network()
    with TemporaryDirectory() as place:
        trainer(Path(place), max_epochs=1, precision=precision).fit(Frozen(net), pictures(folder, validation=0.25))
    return state(net)


def solved(folder: Path, precision: Any = "32-true", **options: Any) -> FineTune:
    """A task at the solution of a frozen fit."""
    tuned = task(**options)
    tuned.network.load_state_dict(solution(folder, precision))
    return tuned


class AtEachBatch(pl.Callback):
    """Calls a function after each training batch, before the task itself looks at it."""

    def __init__(self, call: Callable[[pl.Trainer, FineTune], None]) -> None:
        self.call = call

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any) -> None:
        assert isinstance(pl_module, FineTune)
        self.call(trainer, pl_module)


# --- epochs


def test_it_goes_on_from_the_frozen_solution(folder: Path, tmp_path: Path) -> None:
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


def test_before_the_first_step_it_scores_as_the_frozen_fit(folder: Path, tmp_path: Path) -> None:
    """To the bit; also after steps of length 0, which leave BatchNorm's statistics where they are."""
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
    run.fit(tuned, pictures(folder))  # three batches: with two accumulated, two steps
    # one step of warm-up; after the last step the rate has come to its end
    assert len(rates) == (4 if steps == 4 else 9 if accumulated == 1 else 6)
    assert rates[0] == 1.0
    assert rates[-1] == pytest.approx(0.0, abs=1e-9)
    assert rates == sorted(rates, reverse=True)


def test_a_run_without_an_end_is_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(CxlpError, match="max_epochs is not set: the schedule needs it"):
        trainer(tmp_path, max_epochs=-1, max_steps=5).fit(task(), pictures(folder))


# --- BatchNorm


@pytest.mark.parametrize("frozen", [True, False])
def test_statistics_of_batch_norm_move_unless_frozen(folder: Path, tmp_path: Path, frozen: bool) -> None:
    tuned = task(freeze_batch_norm=frozen)
    before = state(tuned.network.backbone)
    # validation in between: it must not leave another mode behind
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


# --- what is held, and going on


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


def test_a_checkpoint_from_within_an_epoch_is_refused_in_words(folder: Path, tmp_path: Path) -> None:
    whole = ModelCheckpoint(tmp_path / "a", filename="{step}", every_n_train_steps=2, save_top_k=-1)
    trainer(tmp_path, max_epochs=1, callbacks=[whole], enable_checkpointing=True).fit(task(), pictures(folder))
    with pytest.raises(CxlpError, match=r"written within an epoch .* resume from last\.ckpt"):
        trainer(tmp_path, max_epochs=2).fit(
            task(), pictures(folder), ckpt_path=str(tmp_path / "a" / "step=2.ckpt"), weights_only=True
        )


@pytest.mark.parametrize(("end", "workers"), [("cut off", 1), ("over", 1), ("over", 0)])
def test_a_resumed_run_draws_the_images_of_its_epoch(folder: Path, tmp_path: Path, end: str, workers: int) -> None:
    # workers fetch the first batches before the Trainer tells the sampler which epoch it is
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
    if end == "cut off":  # the other one's schedule was that of two epochs
        assert_equal(left["whole"], left["second"])


class Positions(pl.Callback):
    """Notes the positions of each batch's images; ends the process before an epoch."""

    def __init__(self, drawn: list[list[int]], until: int | None) -> None:
        self.drawn, self.until = drawn, until

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.current_epoch == self.until:
            raise SystemExit

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, *_: Any) -> None:
        self.drawn.append(batch["index"].tolist())


def test_weights_that_break_within_an_epoch_are_not_saved(folder: Path, tmp_path: Path) -> None:
    def break_it(trainer: pl.Trainer, task: FineTune) -> None:
        if trainer.global_step == 3:
            assert task.network.classifier is not None
            task.network.classifier.bias.data[0] = torch.inf

    saved = ModelCheckpoint(tmp_path / "a", filename="{step}", save_top_k=-1)
    options = {"val_check_interval": 2, "callbacks": [AtEachBatch(break_it), saved], "enable_checkpointing": True}
    with pytest.raises(CxlpError, match="not finite in gradient epoch 0, step 4"):
        trainer(tmp_path, max_epochs=2, **options).fit(task(), pictures(folder, validation=0.25, batch_size=2))
    assert [path.name for path in (tmp_path / "a").glob("*.ckpt")] == ["step=2.ckpt"]


# --- the loss


def test_a_single_image_cannot_be_mixed(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(CxlpError, match=r"model.mix is cutmix, but the batch size is 1"):
        trainer(tmp_path, max_epochs=2).fit(task(mix="cutmix"), pictures(folder, batch_size=1))


def test_a_sanity_check_before_the_first_step_passes(folder: Path, tmp_path: Path) -> None:
    run = trainer(tmp_path, max_epochs=1, num_sanity_val_steps=1)
    run.fit(task(), pictures(folder, validation=0.25))
    assert run.global_step == 3


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


@pytest.mark.parametrize("option", [{"label_smoothing": 1.0}, {"ema": 1.0}, {"ema": -0.1}, {"mix_alpha": 0.0}], ids=str)
def test_options_out_of_range_are_named(option: dict[str, Any]) -> None:
    with pytest.raises(CxlpError, match=rf"model\.{next(iter(option))} is"):
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
            p = task(batch["image"]).log_softmax(dim=1)  # frozen BatchNorm: the same scores again
        right = -p.gather(1, batch["label"][:, None]).squeeze(1)
        expected.append((1 - smoothing) * right.mean() - smoothing * p.mean())
        torch.testing.assert_close(loss.detach(), expected[-1])
        return loss

    monkeypatch.setattr(FineTune, "training_step", watch)
    trainer(tmp_path, max_epochs=1).fit(task(label_smoothing=smoothing), pictures(folder))
    assert len(expected) == 3


def broken_at(monkeypatch: pytest.MonkeyPatch, number: int) -> list[int]:
    """Make one training loss NaN, without any effect on the gradients; returns the calls so far."""
    calls: list[int] = []

    def loss(scores: Tensor, labels: Tensor, label_smoothing: float) -> Tensor:
        calls.append(len(calls))
        return classification_loss(scores, labels, label_smoothing) + (float("nan") if calls[-1] == number else 0.0)

    monkeypatch.setattr(cxlp.tasks.finetune, "classification_loss", loss)
    return calls


@pytest.mark.parametrize(
    ("every", "batches"),
    [(2, 2), (50, 3)],
    ids=["at log_every_n_steps", "at the end of the epoch"],
)
def test_a_loss_that_was_not_finite_stops(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, every: int, batches: int
) -> None:
    calls = broken_at(monkeypatch, 0)  # and the later ones are finite
    with pytest.raises(
        CxlpError, match=r"the training loss is not finite in gradient epoch 0, .* checkpoint is none yet"
    ):
        trainer(tmp_path, max_epochs=1, log_every_n_steps=every).fit(task(), pictures(folder))
    assert len(calls) == batches


def test_each_epoch_is_looked_at_anew(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    broken_at(monkeypatch, 4)
    with pytest.raises(CxlpError, match="loss is not finite in gradient epoch 1"):
        trainer(tmp_path, max_epochs=3).fit(task(), pictures(folder))


def test_weights_that_a_last_step_broke_stop(folder: Path, tmp_path: Path) -> None:
    def break_it(trainer: pl.Trainer, task: FineTune) -> None:
        if trainer.is_last_batch:
            assert task.network.classifier is not None
            task.network.classifier.bias.data[0] = torch.inf

    with pytest.raises(CxlpError, match="a weight is not finite in gradient epoch 0, step 3"):
        trainer(tmp_path, max_epochs=1, callbacks=[AtEachBatch(break_it)]).fit(task(), pictures(folder))


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
    run.fit(task(), pictures(folder))  # Lightning would refuse to clip what is fused
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
    assert not again.network.backbone.recompute  # which the next stage knows nothing of
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
        """Trace forward and backward pass, without making machine code of them."""
        compiled.append(module)
        in_place(module, backend="aot_eager")

    monkeypatch.setattr(torch.nn.Module, "compile", quickly)
    torch._dynamo.reset()
    plain, _ = one_epoch(folder, tmp_path)
    fast, _ = one_epoch(folder, tmp_path, compile=True)
    assert compiled == [fast.network.backbone, *fast.network.heads]
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] > 1
    assert all(module._compiled_call_impl is None for module in compiled)  # what comes next is plain torch
    assert list(fast.state_dict()) == list(plain.state_dict())
    torch.testing.assert_close(fast.network.state_dict(), plain.network.state_dict(), rtol=1e-4, atol=1e-5)


def test_recomputation_and_compilation_exclude_each_other() -> None:
    with pytest.raises(CxlpError, match=r"model\.recompute and model\.compile exclude each other"):
        task(recompute=True, compile=True)
