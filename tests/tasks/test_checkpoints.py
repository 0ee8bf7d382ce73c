"""Checkpoints of a plain Trainer, which can be loaded without arguments."""

from pathlib import Path

import pytest
import pytorch_lightning as pl
import torch
from torch.utils.data import DataLoader
from torchvision.transforms import v2

from cxlp.data.folder import Folder
from cxlp.tasks import FineTune, Frozen
from cxlp.utils.errors import CxlpError
from tests.tasks.small import RATES, assert_equal, network, pairs, scores, state, trainer

#: PIL pictures to the network's inputs.
PIXELS = v2.Compose([v2.Resize((32, 32)), v2.PILToTensor()])


def test_a_plain_trainer_saves_the_frozen_solution(
    odd: Folder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The Trainer's own checkpoint callback saves after a step, which changes no weights."""
    monkeypatch.chdir(tmp_path)
    loader, images = DataLoader(pairs(odd), batch_size=4), pairs(odd, "val").tensors[0]
    net = network()
    run = pl.Trainer(max_epochs=1, accelerator="cpu", devices=1)
    run.fit(Frozen(net), loader)
    assert run.global_step == 1
    path = Path(run.checkpoint_callback.best_model_path)  # type: ignore[union-attr]
    assert path.is_file() and path.is_relative_to(tmp_path)
    loaded = Frozen.load_from_checkpoint(path)
    with torch.no_grad():
        expected = net.eval()(images)
    assert torch.equal(scores(loaded, images), expected) and expected.any()
    assert_equal(state(loaded.network), state(net))


def test_both_tasks_load_from_their_checkpoints_without_arguments(odd: Folder, tmp_path: Path) -> None:
    images = pairs(odd, "val").tensors[0]
    frozen = Frozen(network(), settled=(3.0, 1.5), keep_folds=False)
    tuned = FineTune(frozen.network, RATES, label_smoothing=0.1, ema=0.5, freeze_batch_norm=False)
    for task in (frozen, tuned):
        run = trainer(tmp_path, max_epochs=1)
        run.fit(task, odd)
        path = tmp_path / f"{type(task).__name__}.ckpt"
        run.save_checkpoint(path)
        expected = scores(task, images)
        for options in ({}, {"weights_only": True}, {"map_location": "cpu"}):
            loaded = type(task).load_from_checkpoint(path, **options)
            assert torch.equal(scores(loaded, images), expected)
            assert loaded.arguments() == task.arguments()
            assert loaded.validated == task.validated and loaded.report == task.report
    other = FineTune.load_from_checkpoint(tmp_path / "FineTune.ckpt", label_smoothing=0.0)
    assert other.label_smoothing == 0.0 and torch.equal(scores(other, images), scores(tuned, images))
    # and can be fitted further and tested by a plain Trainer
    run = trainer(tmp_path, max_epochs=1)
    run.fit(other, odd)
    assert not torch.equal(scores(other, images), scores(tuned, images))
    with pytest.raises(CxlpError, match=r"checkpoint .*Frozen.*FineTune"):
        FineTune.load_from_checkpoint(tmp_path / "Frozen.ckpt", strict=False)
