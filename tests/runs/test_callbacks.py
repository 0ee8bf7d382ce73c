"""Checkpoints and logged values of a run: complete files, the right epochs, and the run that owns them."""

import math
import os
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import ModelCheckpoint
from pytorch_lightning.loggers import CSVLogger
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from cxlp.runs.bars import StageBar
from cxlp.runs.callbacks import (
    AtomicCheckpointIO,
    EpochSeed,
    MovedCheckpoints,
    Progress,
    Record,
    checkpoints,
)
from cxlp.tasks import FineTune, Frozen
from cxlp.tasks.base import ClassificationTask
from cxlp.utils.files import write_whole
from tests.generate import write_folder
from tests.tasks.small import network, pictures, trainer

# --- files


@pytest.mark.parametrize(("content", "written"), [("Möwe\n", "Möwe\n".encode()), (b"\x89PNG\r\n", b"\x89PNG\r\n")])
def test_files_have_the_written_bytes(tmp_path: Path, content: str | bytes, written: bytes) -> None:
    file = tmp_path / "a.txt"
    file.write_text("something longer that was there before")
    write_whole(file, content)
    assert file.read_bytes() == written
    assert os.listdir(tmp_path) == ["a.txt"]  # noqa: PTH208 (hidden ones, too)


@pytest.mark.parametrize("before", [None, "old"])
def test_a_process_killed_while_writing_leaves_no_partial_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, before: str | None
) -> None:
    file = tmp_path / "metrics.json"
    if before is not None:
        file.write_text(before)

    def die(path: Path, data: bytes) -> int:
        with path.open("wb") as half:
            half.write(data[: len(data) // 2])
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "write_bytes", die)
    with pytest.raises(KeyboardInterrupt):
        write_whole(file, '{"accuracy": 0.5}')
    assert (file.read_text() if file.exists() else None) == before
    monkeypatch.undo()
    write_whole(file, "whole")  # files that were left behind do not matter
    assert [p.name for p in tmp_path.iterdir()] == ["metrics.json"]


# --- checkpoints


class Scripted(pl.LightningModule):
    """Validates to given values."""

    def __init__(self, values: list[float]) -> None:
        super().__init__()
        self.values, self.weight = values, nn.Parameter(torch.zeros(1))
        self.epoch: Tensor
        self.register_buffer("epoch", torch.tensor(-1))

    def on_train_epoch_start(self) -> None:
        self.epoch.fill_(self.current_epoch)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return self.weight.square().sum()

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val/accuracy", self.values[self.current_epoch])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def run(
    folder: Path, values: list[float], monitor: str | None = "val/accuracy", resume: Path | None = None
) -> list[ModelCheckpoint]:
    """Train one epoch of two batches for each value."""
    callbacks = checkpoints(folder, monitor)
    loader = DataLoader(TensorDataset(torch.zeros(2, 1)))
    trainer = pl.Trainer(
        max_epochs=len(values),
        accelerator="cpu",
        devices=1,
        logger=False,
        callbacks=[*callbacks, MovedCheckpoints()],
        default_root_dir=folder,
        num_sanity_val_steps=0,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    weights_only = True if resume else None
    trainer.fit(Scripted(values), loader, loader if monitor else None, ckpt_path=resume, weights_only=weights_only)
    assert trainer.checkpoint_callback is callbacks[0]  # the one whose choice is tested
    return callbacks


def saved_epoch(file: Path) -> int:
    return int(torch.load(file, weights_only=True)["state_dict"]["epoch"])


@pytest.mark.parametrize(
    ("values", "best"),
    [
        ([0.5], 0),
        ([0.1, 0.7, 0.7, 0.3], 1),  # ties keep the earliest
        ([0.7, 0.7, 0.7], 0),
        ([0.1, 0.2, 0.3], 2),
        ([0.0, 0.0], 0),
        ([0.2, float("nan"), 0.1], 0),  # NaN is never the best
    ],
)
def test_ties_keep_the_earlier_best_epoch_and_last_is_the_latest(
    tmp_path: Path, values: list[float], best: int
) -> None:
    callbacks = run(tmp_path, values)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["finetuned.ckpt", "last.ckpt"]
    assert saved_epoch(tmp_path / "finetuned.ckpt") == best
    assert saved_epoch(tmp_path / "last.ckpt") == len(values) - 1
    assert callbacks[0].best_model_path == str(tmp_path / "finetuned.ckpt")
    assert float(callbacks[0].best_model_score or 0) == pytest.approx(values[best])


@pytest.mark.parametrize("epochs", [1, 3])
def test_without_validation_only_the_last_checkpoint_is_saved(tmp_path: Path, epochs: int) -> None:
    (last,) = run(tmp_path, [0.0] * epochs, monitor=None)
    assert [p.name for p in tmp_path.iterdir()] == ["last.ckpt"]
    assert saved_epoch(tmp_path / "last.ckpt") == epochs - 1
    assert last.best_model_path == str(tmp_path / "last.ckpt")


def test_a_process_killed_while_saving_leaves_the_earlier_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, writer = tmp_path / "made" / "last.ckpt", AtomicCheckpointIO()
    writer.save_checkpoint({"epoch": 1}, path)

    def die(content: Any, file: Any) -> None:
        file.write(b"half")
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", die)
        with pytest.raises(KeyboardInterrupt):
            writer.save_checkpoint({"epoch": 2}, path)
    assert writer.load_checkpoint(path)["epoch"] == 1
    writer.save_checkpoint({"epoch": 3}, path)  # overwrites the file that was left behind
    assert writer.load_checkpoint(path)["epoch"] == 3
    assert [p.name for p in path.parent.iterdir()] == ["last.ckpt"]


def test_checkpoints_also_go_to_remote_addresses(tmp_path: Path) -> None:
    writer, address = AtomicCheckpointIO(), f"file://{tmp_path}/a.ckpt"
    writer.save_checkpoint({"epoch": 1}, address)
    assert writer.load_checkpoint(address)["epoch"] == 1


def drawn(monkeypatch: pytest.MonkeyPatch, seed: int | None, epoch: int, before: int) -> float:
    """Return the first random numbers of an epoch after other draws."""
    monkeypatch.delenv("PL_GLOBAL_SEED", raising=False)
    if seed is not None:
        monkeypatch.setenv("PL_GLOBAL_SEED", str(seed))
    torch.manual_seed(before)
    trainer = pl.Trainer(accelerator="cpu", devices=1, logger=False, enable_checkpointing=False)
    trainer.fit_loop.epoch_progress.current.completed = epoch
    EpochSeed().on_train_epoch_start(trainer, Scripted([]))
    return float(torch.rand(()))


def test_an_epochs_random_draws_depend_on_seed_and_epoch_only(monkeypatch: pytest.MonkeyPatch) -> None:
    first = drawn(monkeypatch, 0, 1, before=5)
    assert drawn(monkeypatch, 0, 1, before=6) == first
    assert len({first, drawn(monkeypatch, 0, 2, 5), drawn(monkeypatch, 1, 1, 5), drawn(monkeypatch, 1, 0, 5)}) == 4
    assert drawn(monkeypatch, None, 1, before=5) != drawn(monkeypatch, None, 1, before=6)


# --- a folder that was moved


@pytest.mark.parametrize("how", ["moved", "copied", "one file"])
@pytest.mark.parametrize(("later", "best"), [(0.3, 0), (0.9, 2)])
def test_a_moved_run_keeps_its_best_epoch(tmp_path: Path, how: str, later: float, best: int) -> None:
    old, new = tmp_path / "old", tmp_path / "new"
    run(old, [0.7, 0.1])
    if how == "one file":
        new.mkdir()
        resume = new / "copy.ckpt"
        resume.write_bytes((old / "last.ckpt").read_bytes())
    else:
        old.rename(new)
        resume = new / "last.ckpt"
        if how == "copied":  # and the original now belongs to another run
            run(old, [0.0])
    found, _ = run(new, [0.7, 0.1, later], resume=resume)
    assert found.best_model_path == str(new / "finetuned.ckpt")  # files that were not copied are copied from there
    assert saved_epoch(new / "finetuned.ckpt") == best
    assert float(found.best_model_score or 0) == pytest.approx(max(0.7, later))


def test_a_missing_best_checkpoint_is_ignored(tmp_path: Path) -> None:
    run(tmp_path / "old", [0.7, 0.1])
    (tmp_path / "old").rename(tmp_path / "new")
    (tmp_path / "new" / "finetuned.ckpt").unlink()
    found, _ = run(tmp_path / "new", [0.7, 0.1, 0.3], resume=tmp_path / "new" / "last.ckpt")
    assert saved_epoch(Path(found.best_model_path)) == 2


# --- the content of a checkpoint


def test_a_checkpoint_describes_its_run(tmp_path: Path) -> None:
    facts = {"wandb_id": "abc123", "seen": torch.tensor([3, 5])}
    record = Record(lambda: facts, {"size": 32})
    trainer = pl.Trainer(logger=False, accelerator="cpu", devices=1, callbacks=[record])
    trainer.strategy.connect(Scripted([]))
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    saved = torch.load(tmp_path / "a.ckpt", weights_only=True)  # plain values only
    assert saved["cxlp"]["image"] == {"size": 32} and saved["cxlp_run"]["wandb_id"] == "abc123"
    assert saved["cxlp_run"]["seen"].tolist() == [3, 5]


# --- logged values of training


class Rows(CSVLogger):
    """Records the logged values."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.rows: list[dict[str, float]] = []

    def log_metrics(self, metrics: dict[str, Any], step: int | None = None) -> None:
        self.rows.append(metrics)


class Norms(pl.Callback):
    """Compute gradient norms by group at each step."""

    def __init__(self) -> None:
        self.found: list[dict[str, float]] = []

    def on_before_optimizer_step(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        self.found.append(
            {
                f"grad_norm/{group['name']}": float(torch.cat([p.grad.flatten() for p in group["params"]]).norm())
                for group in optimizer.param_groups
            }
        )


def test_images_speed_and_gradients_are_logged_beside_the_loss(tmp_path: Path) -> None:
    data = pictures(write_folder(tmp_path / "data", train=4, size=32), validation=0.25)  # 9 + 3 images, batches of 4
    data.setup()
    built = network(classes=data.classes)
    rows, norms, progress = Rows(tmp_path), Norms(), Progress()
    options: dict[str, Any] = {"logger": rows, "log_every_n_steps": 2}
    trainer(tmp_path, max_epochs=1, callbacks=[progress], **options).fit(Frozen(built), data)
    progress.first_epoch = 1
    tuning = trainer(tmp_path, max_epochs=2, gradient_clip_val=1e-9, callbacks=[progress, norms], **options)
    tuning.fit(FineTune(built), data)
    # The frozen pass uses 9, gradient epochs fill their last batch.
    assert progress.images == 9 + 12 + 12 and progress.phases == {"extraction": 9, "fine-tuning": 24}
    validated = [row for row in rows.rows if "val/loss" in row]
    assert [row["images_seen"] for row in validated] == [9, 21, 33]
    assert [row["epoch"] for row in validated] == [0, 1, 2]
    # three batches per epoch, logged at every second step in total, and at the end of a pass
    steps = [row for row in rows.rows if "train/images_per_second" in row]
    assert [row["images_seen"] for row in steps] == [8, 9, 17, 25, 33]
    assert all(row["train/images_per_second"] > 0 for row in steps)
    assert not any(key.startswith("grad_norm") for key in steps[0])  # the frozen pass has no gradients
    measured = [row for row in rows.rows if "grad_norm/backbone" in row]
    assert len(measured) == 3
    for row, step in zip(measured, (1, 3, 5), strict=True):
        assert row["train/loss_step"] > 0
        # before clipping, which leaves almost nothing
        assert {k: v for k, v in row.items() if k.startswith("grad_norm")} == pytest.approx(norms.found[step], rel=1e-5)
    assert max(norms.found[1].values()) > 1e-3


@pytest.mark.parametrize("accumulated", [1, 2])
def test_short_epochs_are_logged(tmp_path: Path, accumulated: int) -> None:
    data = pictures(write_folder(tmp_path / "data", train=4, size=32))  # 12 images, batches of 4
    data.setup()
    rows = Rows(tmp_path)
    options: dict[str, Any] = {"logger": rows, "log_every_n_steps": 50, "accumulate_grad_batches": accumulated}
    trainer(tmp_path, max_epochs=3, callbacks=[Progress()], **options).fit(
        FineTune(network(classes=data.classes)), data
    )
    for metric in ("train/loss_step", "grad_norm/backbone"):
        seen = [row["images_seen"] for row in rows.rows if metric in row]
        assert {math.ceil(images / 12) for images in seen} == {1, 2, 3}


def test_values_are_read_at_the_logging_interval_only(tmp_path: Path) -> None:
    data = pictures(write_folder(tmp_path / "data", train=5, size=32), batch_size=3)  # 15 images, five steps
    data.setup()
    task = FineTune(network(classes=data.classes))
    log, logged, shown = task.log, [], mock.MagicMock()

    def watched(name: str, value: Any, **options: Any) -> None:
        if isinstance(value, int | float):  # which Lightning copies to the device
            logged.append((name, task.global_step))
        log(name, value, **options)

    options: dict[str, Any] = {"logger": Rows(tmp_path), "enable_progress_bar": True, "log_every_n_steps": 2}
    with mock.patch.object(task, "log", watched), mock.patch("cxlp.runs.bars.bar", return_value=shown):
        trainer(tmp_path, max_epochs=1, callbacks=[Progress(), StageBar("finetune")], **options).fit(task, data)
    told = [(name, step) for step in (2, 4) for name in ("images_seen", "epoch", "train/images_per_second")]
    assert logged == [*told, ("images_seen", 5), ("epoch", 5)]  # in addition to the means of the epoch
    # the bar is updated with each batch; reading a loss waits for the GPU
    calls = [call[0] for call in shown.method_calls]
    assert calls == ["update", "note", "update", "update", "note", "update", "update", "close"]


def test_a_test_is_logged_at_its_epoch(tmp_path: Path) -> None:
    data = pictures(write_folder(tmp_path / "data", train=4, size=32))
    data.setup()
    rows, progress = Rows(tmp_path), Progress()
    task = FineTune(network(classes=data.classes))
    trainer(tmp_path, max_epochs=2, callbacks=[progress]).fit(task, data)
    progress.first_epoch = 5
    trainer(tmp_path, callbacks=[progress], logger=rows).test(ClassificationTask(task.network), data, verbose=False)
    assert progress.images == 12 + 12
    (tested,) = (row for row in rows.rows if "test/loss" in row)
    assert (tested["epoch"], tested["images_seen"]) == (5, 24)
