"""The tasks in a user's own script: a plain Trainer, and any loader of pairs."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, DistributedSampler, IterableDataset, Sampler, Subset, TensorDataset
from torchvision.datasets import FakeData, ImageFolder
from torchvision.transforms import v2

from cxlp.data.folder import Folder
from cxlp.data.sampler import EpochSampler
from cxlp.heads import CrossLayerPooling
from cxlp.models.network import Network
from cxlp.tasks import FineTune, Frozen
from cxlp.tasks.base import ClassificationTask
from cxlp.utils.errors import CxlpError
from tests.tasks.small import (
    BACKBONE,
    CLASSES,
    IMAGES,
    LABELS,
    RATES,
    assert_equal,
    network,
    pairs,
    pictures,
    scores,
    state,
    trainer,
)

#: PIL pictures to the network's inputs.
PIXELS = v2.Compose([v2.Resize((32, 32)), v2.PILToTensor()])


# --- errors in scripts


@pytest.mark.parametrize("task", [Frozen, FineTune])
@pytest.mark.parametrize(
    ("images", "labels", "said"),
    [
        (IMAGES, LABELS + 2, r"the label of image \d+ is [34]: a network of 3 classes takes whole numbers"),
        (IMAGES, LABELS - 1, r"the label of image \d+ is -1"),
        (IMAGES, LABELS.float(), "the labels are torch.float32"),
        (IMAGES[:, :1], LABELS, r"shape \(4, 1, 32, 32\): .*\(B, 3, 32, 32\)"),
        (IMAGES[..., :24], LABELS, "the images have 32 x 24 pixels, but the network takes 32 x 32"),
        (IMAGES[:0], LABELS[:0], "the training loader yields no batches .* nothing was fitted"),
    ],
    ids=["class", "negative", "floats", "grey", "size", "empty"],
)
def test_images_and_labels_that_a_network_does_not_take(
    tmp_path: Path, task: type[FineTune | Frozen], images: Tensor, labels: Tensor, said: str
) -> None:
    data = TensorDataset(images, labels)
    with pytest.raises(CxlpError, match=said):
        trainer(tmp_path, max_epochs=1).fit(task(network()), DataLoader(data, batch_size=4))
    if len(images):
        with pytest.raises(CxlpError, match=said):
            trainer(tmp_path).validate(task(network()), DataLoader(data, batch_size=4), verbose=False)


# --- loaders


@pytest.mark.parametrize("kind", ["tensors", "torchvision", "DataModule"])
def test_the_trainer_of_a_users_script(odd: Folder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    """A plain script, with the Trainer's own logger, checkpoints, sanity check and summary."""
    monkeypatch.chdir(tmp_path)
    loaders: tuple[Any, ...]
    if kind == "DataModule":
        loaders = (odd,)
    elif kind == "tensors":
        train, val = pairs(odd), pairs(odd, "val")
        loaders = DataLoader(train, batch_size=4, shuffle=True), DataLoader(val, batch_size=3)
    else:
        train_folder, test_folder = (ImageFolder(odd.root / name, PIXELS) for name in ("train", "test"))
        assert tuple(train_folder.classes) == CLASSES
        loaders = DataLoader(train_folder, batch_size=4, shuffle=True), DataLoader(test_folder, batch_size=4)
    net = network()
    before = state(net)
    run = pl.Trainer(max_epochs=1, accelerator="cpu")
    run.fit(Frozen(net), *loaders[:1])
    run.save_checkpoint("frozen.ckpt")
    solution = state(net)
    assert solution["classifier.weight"].any()
    assert all(torch.equal(solution[k], v) for k, v in before.items() if k.startswith("backbone"))
    run = pl.Trainer(max_epochs=3, accelerator="cpu")
    run.fit(FineTune(net, RATES), *loaders)
    assert run.global_step == (12 if kind == "torchvision" else 9)
    assert any(not torch.equal(state(net)[k], v) for k, v in solution.items() if k.startswith("backbone"))
    assert {"val/accuracy", "val/loss", "train/loss_epoch"} <= run.callback_metrics.keys()
    assert Path(run.checkpoint_callback.best_model_path).is_file()  # type: ignore[union-attr]


class Told(Sampler[int]):
    """Arranges a plain data set in the order in which the DataModule draws its images."""

    def __init__(self, sampler: EpochSampler) -> None:
        self.sampler = sampler

    def __len__(self) -> int:
        return len(self.sampler)

    def set_epoch(self, epoch: int) -> None:
        self.sampler.set_epoch(epoch)

    def __iter__(self) -> Iterator[int]:
        return (draw.item for draw in self.sampler)


def test_the_same_images_give_the_same_weights_from_either_loader(odd: Folder, tmp_path: Path) -> None:
    """Bitwise: in one process, other keys of a dictionary do not affect the result."""
    train, val = pairs(odd), pairs(odd, "val")
    ordered, shuffled = (
        DataLoader(train, batch_size=4, sampler=Told(EpochSampler(len(train), 4, shuffle, seed=0)))
        for shuffle in (False, True)
    )
    held_out = DataLoader(val, batch_size=4)
    ours = network()
    frozen = Frozen(ours)
    trainer(tmp_path, max_epochs=1).fit(frozen, odd)
    for first in (DataLoader(train, batch_size=4), ordered):
        plain = network()
        same = Frozen(plain)
        trainer(tmp_path, max_epochs=1).fit(same, first, held_out)
        assert_equal(state(ours), state(plain))
        assert frozen.report == same.report and frozen.validated == same.validated
    tuned, also = FineTune(ours, RATES), FineTune(plain, RATES)
    trainer(tmp_path, max_epochs=3).fit(tuned, odd)
    trainer(tmp_path, max_epochs=3).fit(also, shuffled, held_out)
    assert_equal(state(ours), state(plain))
    assert tuned.validated == also.validated and len(tuned.validated) >= 2


def test_any_order_gives_the_same_frozen_solution(odd: Folder, tmp_path: Path) -> None:
    """With given C and scale of the logits, because folds of a cross-validation are drawn by index."""
    found = []
    for shuffle in (False, True):
        net = network()
        loader = DataLoader(pairs(odd), batch_size=4, shuffle=shuffle)
        trainer(tmp_path, max_epochs=1).fit(Frozen(net, settled=(10.0, 2.0)), loader)
        found.append(net)
    with torch.no_grad():
        images = pairs(odd, "val").tensors[0]
        torch.testing.assert_close(found[1](images), found[0](images), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("floating", [False, True])
def test_torchvision_data_sets_work_unchanged(tmp_path: Path, floating: bool) -> None:
    transform = v2.Compose([PIXELS, v2.ToDtype(torch.float32, scale=True)]) if floating else PIXELS
    data = FakeData(size=13, image_size=(3, 32, 32), num_classes=3, transform=transform)
    images = torch.stack([data[i][0] for i in range(len(data))])
    assert images.dtype == (torch.float32 if floating else torch.uint8)
    labels = torch.tensor([int(data[i][1]) for i in range(len(data))])
    assert labels.bincount().min() >= 2
    found = []
    pixels = (255 * images).round().to(torch.uint8) if floating else images
    for source in (data, TensorDataset(pixels, labels)):
        task = Frozen(network())
        trainer(tmp_path, max_epochs=1).fit(task, DataLoader(source, batch_size=5))
        trainer(tmp_path, max_epochs=1).fit(FineTune(task.network, RATES), DataLoader(source, batch_size=5))
        found.append(state(task.network))
    if floating:  # values from 0 to 1: equal up to rounding
        torch.testing.assert_close(found[0], found[1], rtol=1e-3, atol=1e-4)
    else:
        assert_equal(found[0], found[1])


class Mapped(Dataset[Any]):
    """Converts an image and its label to items."""

    def __init__(self, data: TensorDataset, kind: str) -> None:
        self.data, self.kind = data, kind

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, i: int) -> Any:
        image, label = self.data[i]
        if self.kind == "dictionary":
            return {"pixels": image, "label": label}
        if self.kind == "triple":
            return image, label, i
        return image


@pytest.mark.parametrize("task", [Frozen, FineTune])
@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("dictionary", r"the loader yields a dictionary with 'pixels', 'label': expected pairs \(images, labels\)"),
        ("triple", "the loader yields a list of Tensor, Tensor, Tensor: expected pairs"),
        ("image", "the loader yields a Tensor: expected pairs"),
    ],
)
def test_a_loader_of_other_batches_is_refused(
    odd: Folder, tmp_path: Path, task: type[ClassificationTask], kind: str, said: str
) -> None:
    with pytest.raises(CxlpError, match=said):
        trainer(tmp_path, max_epochs=1).fit(task(network()), DataLoader(Mapped(pairs(odd), kind), batch_size=4))
    assert list(tmp_path.iterdir()) == []


class Stream(IterableDataset[Any]):
    """Pairs without a length."""

    def __init__(self, data: TensorDataset) -> None:
        self.data = data

    def __iter__(self) -> Iterator[Any]:
        return (self.data[i] for i in range(len(self.data)))


class CountedStream(Stream):
    """Pairs with a wrong length."""

    def __len__(self) -> int:
        return len(self.data)


@pytest.mark.parametrize(
    ("task", "stream", "said"),
    [
        (Frozen, Stream, "frozen fit .* DataLoader .* not Stream$"),
        (Frozen, CountedStream, "frozen fit .* DataLoader .* not CountedStream$"),
        (FineTune, Stream, "training loader has no length, .* schedule"),
    ],
)
def test_a_stream_is_refused_where_its_length_is_needed(
    odd: Folder, tmp_path: Path, task: type[ClassificationTask], stream: type[Stream], said: str
) -> None:
    with pytest.raises(CxlpError, match=said):
        trainer(tmp_path, max_epochs=1).fit(task(network()), DataLoader(stream(pairs(odd)), batch_size=4))


def test_images_that_a_loader_leaves_out_give_a_warning(odd: Folder, tmp_path: Path) -> None:
    loader = DataLoader(pairs(odd), batch_size=4, drop_last=True)  # of eleven
    with pytest.raises(CxlpError, match=r"11 training images once, .* 8: .*without drop_last"):
        trainer(tmp_path, max_epochs=1).fit(Frozen(network()), loader)
    # only the user's choice is saved
    chosen = Subset(pairs(odd), range(0, 11, 2))
    task = Frozen(network())
    trainer(tmp_path, max_epochs=1).fit(task, DataLoader(chosen, batch_size=4))
    assert task.network.get_parameter("classifier.weight").any()


def test_a_network_without_classes_is_refused() -> None:
    net = network()
    for task in (Frozen, FineTune):
        with pytest.raises(CxlpError, match=r"the network has no classes: .*Network\(\.\.\., classes="):
            task(Network(net.backbone, CrossLayerPooling(pca_dim=4)))


# --- evaluation


def test_a_plain_loader_is_tested_as_the_datamodules_is(odd: Folder, tmp_path: Path) -> None:
    task = Frozen(network())
    run = trainer(tmp_path, max_epochs=1)
    run.fit(task, odd)
    tested = [run.test(task, loader, verbose=False) for loader in (odd, DataLoader(pairs(odd, "test"), batch_size=4))]
    assert tested[0] == tested[1] and "test/accuracy" in tested[0][0]


# --- a DataModule for several networks


def test_a_datamodule_follows_each_networks_image_size(odd: Folder, tmp_path: Path) -> None:
    data = pictures(odd.root)
    found = []
    for size in (32, 64, 32):
        net = network(backbone=replace(BACKBONE, image_size=size))
        tasks = [Frozen(net), FineTune(net, RATES)] if size == 64 else [Frozen(net)]
        for task in tasks:
            trainer(tmp_path, max_epochs=1).fit(task, data)
            assert {split: d.transform.size for split, d in data.splits.items()} == dict.fromkeys(data.splits, size)
            shown = next(iter(data.test_dataloader()))["image"]
            assert shown.shape[-2:] == (size, size)
        found.append(state(net))
    assert_equal(found[0], found[2])
    assert found[1]["classifier.weight"].shape == found[0]["classifier.weight"].shape
    assert not torch.equal(found[1]["classifier.weight"], found[0]["classifier.weight"])


# --- several processes


class InOrder(pl.LightningDataModule):
    """Distributes pairs in turn, like torch's own sampler without shuffling."""

    def __init__(self, data: TensorDataset) -> None:
        super().__init__()
        self.data = data

    def train_dataloader(self) -> DataLoader[Any]:
        assert self.trainer is not None
        ranks, rank = self.trainer.world_size, self.trainer.global_rank
        sampler: DistributedSampler[Any] = DistributedSampler(self.data, ranks, rank, shuffle=False)
        return DataLoader(self.data, batch_size=4, sampler=sampler)


@pytest.mark.slow
@pytest.mark.parametrize("dealt", ["by Lightning", "in order"])
def test_two_processes_find_the_same_frozen_solution_as_one(odd: Folder, tmp_path: Path, dealt: str) -> None:
    """Each process has a DistributedSampler; together they have one of eleven images twice."""
    # Lightning's sampler shuffles in any case, and the folds of a cross-validation are drawn by index.
    settled = (10.0, 2.0) if dealt == "by Lightning" else None
    images = pairs(odd, "val").tensors[0]
    found = []
    several: tuple[dict[str, Any], ...] = ({"devices": 1}, {"devices": 2, "strategy": "ddp_spawn"})
    for options in several:
        task = Frozen(network(), settled=settled)
        given: Any = InOrder(pairs(odd)) if settled is None else DataLoader(pairs(odd), batch_size=4)
        trainer(tmp_path, max_epochs=1, **options).fit(task, given)
        assert task.network.get_parameter("classifier.weight").any()
        found.append(scores(task, images))
    torch.testing.assert_close(found[1], found[0], rtol=1e-4, atol=1e-4)
    assert list(tmp_path.iterdir()) == []
