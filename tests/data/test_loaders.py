"""Loaders with a Trainer: epochs, resumption, sizes and batches."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import ModelCheckpoint
from torch import Tensor

from cxlp.data.sampler import EpochSampler
from cxlp.utils.errors import CxlpError
from tests.data.listed import Listed, ready
from tests.generate import texture, write_image


class Watch(pl.LightningModule):
    """Trains a single parameter, and records which images it gets and their sizes.

    Args:
        attributes: Options that it sets for the data: ``augment``, ``image_size``, ``test_size``.
    """

    def __init__(self, **attributes: Any) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.seen: list[list[int]] = []
        self.sizes: dict[str, set[int]] = {"train": set(), "val": set(), "test": set()}
        for name, value in attributes.items():
            setattr(self, name, value)

    def on_train_epoch_start(self) -> None:
        self.seen.append([])

    def training_step(self, batch: dict[str, Tensor], _: int) -> Tensor:
        self.seen[-1] += batch["index"].tolist()
        self.sizes["train"].add(batch["image"].shape[-1])
        return self.weight.sum()

    def validation_step(self, batch: dict[str, Tensor], _: int) -> None:
        self.sizes["val"].add(batch["image"].shape[-1])

    def test_step(self, batch: dict[str, Tensor], _: int) -> None:
        self.sizes["test"].add(batch["image"].shape[-1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def trainer(folder: Path, **options: Any) -> pl.Trainer:
    """Create a Trainer without output."""
    quiet = ("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary")
    return pl.Trainer(accelerator="cpu", default_root_dir=folder, **{**dict.fromkeys(quiet, False), **options})


def expected_items(epochs: Sequence[int], size: int = 16) -> list[list[int]]:
    """Return the augmented samples of these epochs, with the seed 3."""
    found = []
    for epoch in epochs:
        sampler = EpochSampler(size, 4, shuffle=True, seed=3)
        sampler.set_epoch(epoch)
        found.append([draw.item for draw in sampler])
    return found


def test_lightning_sets_the_samplers_epoch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PL_GLOBAL_SEED", "3")
    model = Watch()
    trainer(tmp_path, max_epochs=3).fit(model, datamodule=Listed(tmp_path, batch_size=4, num_workers=0))
    assert model.seen == expected_items(range(3))
    assert model.seen[1] != model.seen[2]


@pytest.mark.parametrize("saved", ["after the fit", "after validation", "at the end of the epoch"])
@pytest.mark.parametrize("workers", [0, 1])
def test_a_resumed_trainer_continues_with_its_epoch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, workers: int, saved: str
) -> None:
    # workers load the first batches before the Trainer sets the sampler's epoch
    monkeypatch.setenv("PL_GLOBAL_SEED", "3")
    made: dict[str, Any] = {"batch_size": 4, "num_workers": workers, "validation": 0.25}
    kept = ModelCheckpoint(
        tmp_path, filename="kept", save_on_train_epoch_end=saved == "at the end of the epoch", save_top_k=1
    )
    first = trainer(tmp_path, max_epochs=2, callbacks=[kept], enable_checkpointing=True)
    first.fit(Watch(), datamodule=Listed(tmp_path, **made))
    checkpoint = tmp_path / "kept.ckpt"
    if saved == "after the fit":
        checkpoint = tmp_path / "after.ckpt"
        first.save_checkpoint(checkpoint)
    model, data = Watch(), Listed(tmp_path, **made)
    trainer(tmp_path, max_epochs=4).fit(model, data, ckpt_path=checkpoint, weights_only=True)
    assert model.seen == expected_items([2, 3], size=12)
    # a fit that resumes nothing starts at epoch 0, also after a test of a checkpoint
    trainer(tmp_path).test(model, data, ckpt_path=checkpoint, weights_only=True, verbose=False)
    other = Watch()
    trainer(tmp_path, max_epochs=1).fit(other, data)
    assert other.seen == expected_items([0], size=12)


def test_a_module_may_disable_shuffling_and_augmentation(tmp_path: Path) -> None:
    asking, data = Watch(augment=False), Listed(tmp_path, batch_size=4, num_workers=0)
    trainer(tmp_path, max_epochs=2).fit(asking, data)
    assert asking.seen == [list(range(16))] * 2
    plain = [data.splits["train"][i]["image"] for i in range(16)]
    shown = torch.cat([batch["image"] for batch in data.train_dataloader()])
    assert torch.equal(shown, torch.stack(plain))
    # each module is called, not only the first one
    other = Watch()
    trainer(tmp_path, max_epochs=1).fit(other, data)
    assert sorted(other.seen[0]) == list(range(16)) != other.seen[0]


def test_the_image_size_follows_the_current_module(tmp_path: Path) -> None:
    data = Listed(tmp_path, image_size=None, batch_size=4, num_workers=0, validation=0.25)
    for asked, shown in (
        ({"image_size": 20}, (20, 20)),
        ({"image_size": 12, "test_size": 14}, (12, 14)),
        ({"image_size": 24}, (24, 24)),
    ):
        model = Watch(**asked)
        run = trainer(tmp_path, max_epochs=1)
        run.fit(model, data)
        run.test(model, data, verbose=False)
        train, scored = shown
        assert model.sizes == {"train": {train}, "val": {scored}, "test": {scored}}
    assert data.image_size is None


def test_a_conflicting_image_size_is_refused(tmp_path: Path) -> None:
    data = Listed(tmp_path, image_size=16, batch_size=4, num_workers=0)
    model = Watch(image_size=16, test_size=20)  # crops of larger images are made at the module's size
    run = trainer(tmp_path, max_epochs=1)
    run.fit(model, data)
    run.test(model, data, verbose=False)
    assert (model.sizes["train"], model.sizes["test"]) == ({16}, {20})
    with pytest.raises(CxlpError, match=r"data\.image_size is 16, but the network takes images of 24 pixels"):
        trainer(tmp_path, max_epochs=1).fit(Watch(image_size=24), data)


def test_a_missing_image_size_is_refused(tmp_path: Path) -> None:
    module = ready(tmp_path, image_size=None)
    for loader in (module.train_dataloader, module.test_dataloader):
        with pytest.raises(CxlpError, match="image_size is not set"):
            loader()
    with pytest.raises(CxlpError, match="image_size is not set"):
        trainer(tmp_path, max_epochs=1).fit(Watch(), module)
    module.resize(20)
    assert {data.transform.size for data in module.splits.values()} == {20}


def test_batches_contain_the_documented_keys(tmp_path: Path) -> None:
    module = ready(tmp_path, batch_size=4)
    batch = next(iter(module.test_dataloader()))
    assert batch["image"].dtype == torch.uint8
    assert batch["image"].shape == (4, 3, 16, 16)
    assert batch["label"].tolist() == [0, 0, 1, 1]
    assert batch["index"].tolist() == [0, 1, 2, 3]
    assert batch["repeat"].tolist() == [False] * 4


def epochs(root: Path, workers: int) -> list[dict[int, Tensor]]:
    """Return two epochs of augmented training images by index."""
    module = ready(root, batch_size=4, num_workers=workers)
    loader = module.train_dataloader()
    seen = []
    for epoch in range(2):
        assert isinstance(loader.sampler, EpochSampler)
        loader.sampler.set_epoch(epoch)
        drawn: dict[int, Tensor] = {}
        for batch in loader:
            drawn.update(zip(batch["index"].tolist(), batch["image"], strict=True))
        seen.append(drawn)
    return seen


def test_draws_are_new_for_each_image_and_epoch_and_do_not_depend_on_workers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Listed(tmp_path).read()
    # All files have the same content, so that images differ by augmentation only.
    for path in tmp_path.glob("*.png"):
        write_image(path, texture(0, 1, np.random.default_rng(0), 24, 24))
    monkeypatch.delenv("PL_GLOBAL_SEED", raising=False)
    torch.manual_seed(1)
    alone = epochs(tmp_path, workers=0)
    torch.manual_seed(2)  # nor on other random draws
    spread = epochs(tmp_path, workers=2)
    monkeypatch.setenv("PL_GLOBAL_SEED", "1")  # the environment variable that seed_everything sets
    other = epochs(tmp_path, workers=0)
    assert set(alone[0]) == set(range(16))
    pictures = {image.numpy().tobytes() for epoch in alone for image in epoch.values()}
    assert len(pictures) == 32, "every image has its own draw in every epoch"
    for epoch in range(2):
        assert all(torch.equal(alone[epoch][i], spread[epoch][i]) for i in range(16))
        assert not any(torch.equal(alone[epoch][i], other[epoch][i]) for i in range(16))
