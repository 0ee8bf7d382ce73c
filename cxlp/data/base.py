"""What all data sets share: samples, drawing them in order or at random, and the DataModule."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import pytorch_lightning as pl
import torch
from sklearn.model_selection import train_test_split
from torch.utils.data import DataLoader, Dataset, DistributedSampler

from cxlp.data.decode import Box, read_image
from cxlp.data.transforms import Aspect, AugmentConfig, Transform
from cxlp.distributed import usable_cores
from cxlp.errors import CxlpError
from cxlp.network import Network

Split = Literal["train", "test"]


class Sample(NamedTuple):
    """One image of a data set: file, class index, and box ``x, y, w, h`` in pixels or ``None`` for all of it."""

    path: Path
    label: int
    box: Box | None = None


class Draw(NamedTuple):
    """One request to a dataset.

    Attributes:
        item: Which sample.
        seed: What its augmentation is drawn from; ``None``: no augmentation.
        repeat: Whether the sample was handed out already, to even the ranks' shares.
    """

    item: int
    seed: int | None = None
    repeat: bool = False


class Drawer(DistributedSampler[Draw]):
    """Hands out samples to ranks, either each once and in order, or shuffled for training.

    In order: rank r gets positions r, r + W, ...; where the number of samples is no multiple of the
    W ranks, the last ones get a repeat, marked as such, because ranks must take equally many steps.
    Shuffled: each batch is full; an epoch's last one is filled up from its beginning.

    What is drawn depends on (seed, epoch, position) only: not on workers, nor on whether the run was
    interrupted; and the union of W ranks' batches of b is the batch of one rank with b * W.

    A ``DistributedSampler``, so that Lightning keeps it and calls :meth:`set_epoch`.

    Args:
        size: Number of samples n.
        batch_size: Per rank; needed to fill batches.
        ordered_epochs: The first epochs that go in order and without augmentation; ``None``: all.
        seed: Of the whole run.
        ranks: W.
        rank: This one.
    """

    def __init__(
        self, size: int, batch_size: int, ordered_epochs: int | None, seed: int, ranks: int = 1, rank: int = 0
    ) -> None:
        self.size, self.batch_size, self.ordered_epochs = size, batch_size, ordered_epochs
        self.seed, self.num_replicas, self.rank, self.epoch = seed, ranks, rank, 0

    @property
    def ordered(self) -> bool:
        """Whether the current epoch goes in order."""
        return self.ordered_epochs is None or self.epoch < self.ordered_epochs

    def __len__(self) -> int:
        unit = self.num_replicas * (1 if self.ordered else self.batch_size)
        return -(-self.size // unit) * unit // self.num_replicas

    def __iter__(self) -> Iterator[Draw]:
        places = range(self.rank, len(self) * self.num_replicas, self.num_replicas)
        if self.ordered:
            for place in places:
                yield Draw(place % self.size, None, place >= self.size)
        else:
            rng = np.random.default_rng((self.seed, self.epoch))
            order = rng.permutation(self.size)
            seeds = rng.integers(2**32, size=len(self) * self.num_replicas)
            for place in places:
                yield Draw(int(order[place % self.size]), int(seeds[place]), place >= self.size)


class ImageDataset(Dataset[dict[str, Any]]):
    """Samples, decoded and transformed.

    Args:
        samples: What it holds.
        classes: Names by class index.
        transform: Makes the network's input of a picture.
    """

    def __init__(self, samples: Sequence[Sample], classes: Sequence[str], transform: Transform) -> None:
        self.samples, self.classes, self.transform = list(samples), tuple(classes), transform

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, draw: int | Draw) -> dict[str, Any]:
        """Return ``image`` (uint8, ``(3, H, W)``), ``label``, ``index`` and ``repeat``.

        Raises:
            CxlpError: If the file cannot be decoded; names it.
        """
        draw = draw if isinstance(draw, Draw) else Draw(draw)
        sample = self.samples[draw.item]
        pixels = read_image(sample.path, sample.box, self.transform.needed(draw.seed))
        image = self.transform(pixels, draw.seed)
        return {"image": image, "label": sample.label, "index": draw.item, "repeat": draw.repeat}


class ImageDataModule(pl.LightningDataModule, ABC):
    """A benchmark's splits as loaders. Subclasses say where the files are and what is in them.

    Args:
        root: Folder of the data set.
        batch_size: Images per rank and step.
        num_workers: Loading processes per rank; null: the cores that this process may use, divided
            among the ranks of the machine, at most 8.
        augment: Random changes in training with gradients (the frozen fit and tests see none).
        image_size: Side of the network's square input in pixels; null: the backbone's own.
        aspect: ``warp``: the whole image, its aspect ratio not kept (the paper); ``crop``: the short
            side to ``image_size``, the centre of the rest.
        val_fraction: Part of the training images that is held out for validation, the same part of
            each class; 0: none. The test images never choose anything.
        seed: Of the held-out part and of the augmentation.
    """

    name = ""

    def __init__(
        self,
        root: str | Path,
        batch_size: int = 32,
        num_workers: int | None = None,
        augment: AugmentConfig = AugmentConfig(),
        image_size: int | None = None,
        aspect: Aspect = "warp",
        val_fraction: float = 0.0,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if not 0 <= val_fraction < 1:
            raise CxlpError(f"val_fraction is {val_fraction}: it must lie in [0, 1)")
        self.root = Path(root)
        self.batch_size, self.num_workers, self.augment = batch_size, num_workers, augment
        self.image_size, self.aspect = image_size, aspect
        self.val_fraction, self.seed = val_fraction, seed
        self.classes: tuple[str, ...] = ()
        self.splits: dict[str, ImageDataset] = {}

    @abstractmethod
    def read(self) -> tuple[tuple[str, ...], dict[Split, list[Sample]]]:
        """Read the data set's lists: class names, and the samples of each split.

        Raises:
            CxlpError: If files are missing or do not fit together.
        """

    def setup(self, stage: str | None = None) -> None:
        """Read the lists once, and hold out the validation images."""
        if self.splits:
            return
        self.classes, samples = self.read()
        _check_samples(self.name, self.classes, samples)
        train, val = self._hold_out(samples["train"])
        transform = Transform(self._image_size(), self.aspect, self.augment)
        parts = {"train": train, "val": val, "test": samples["test"]}
        self.splits = {name: ImageDataset(part, self.classes, transform) for name, part in parts.items()}

    def _hold_out(self, samples: list[Sample]) -> tuple[list[Sample], list[Sample]]:
        if self.val_fraction == 0:
            return samples, []
        labels = [s.label for s in samples]
        try:
            train, val = train_test_split(
                range(len(samples)), test_size=self.val_fraction, stratify=labels, random_state=self.seed
            )
        except ValueError as error:
            raise CxlpError(f"{self.name}: cannot hold out {self.val_fraction:.0%} of each class: {error}") from error
        # A large part of a class of two images is both of them.
        if gone := set(labels) - {labels[i] for i in train}:
            raise CxlpError(
                f"{self.name}: val_fraction {self.val_fraction} leaves no training image of {self.classes[min(gone)]}"
            )
        return [samples[i] for i in sorted(train)], [samples[i] for i in sorted(val)]

    def _image_size(self) -> int:
        if self.image_size is not None:
            return self.image_size
        if self.trainer is None:
            raise CxlpError("image_size is not set, and there is no Trainer whose network would know it")
        network = self.trainer.lightning_module.network
        assert isinstance(network, Network)
        return network.backbone.image_size

    def train_dataloader(self) -> DataLoader[dict[str, Any]]:
        """Training images: in order while the task fits without gradients, then shuffled and augmented."""
        task = getattr(self.trainer, "lightning_module", None)
        return self._loader("train", getattr(task, "ordered_epochs", 0))

    def val_dataloader(self) -> DataLoader[dict[str, Any]] | list[Any]:
        """Held-out training images, in order; no loader where none are held out."""
        return self._loader("val", None) if len(self.splits["val"]) else []

    def test_dataloader(self) -> DataLoader[dict[str, Any]]:
        """Test images, in order."""
        return self._loader("test", None)

    def _loader(self, split: str, ordered_epochs: int | None) -> DataLoader[dict[str, Any]]:
        ranks, rank = (self.trainer.world_size, self.trainer.global_rank) if self.trainer else (1, 0)
        data = self.splits[split]
        workers = self.num_workers
        if workers is None:
            workers = min(8, max(1, usable_cores() // (self.trainer.num_devices if self.trainer else 1)))
        return DataLoader(
            data,
            batch_size=self.batch_size,
            sampler=Drawer(len(data), self.batch_size, ordered_epochs, self.seed, ranks, rank),
            num_workers=workers,
            pin_memory=torch.cuda.is_available(),
            persistent_workers=workers > 0 and split != "test",
        )


def _check_samples(name: str, classes: Sequence[str], samples: dict[Split, list[Sample]]) -> None:
    train = {s.label for s in samples["train"]}
    without = [c for k, c in enumerate(classes) if k not in train]
    if without:
        few = ", ".join(without[:5])
        raise CxlpError(f"{name}: no training image of {len(without)} of {len(classes)} classes: {few}")
    if not samples["test"]:
        raise CxlpError(f"{name}: there are no test images")
    both = {s.path for s in samples["train"]} & {s.path for s in samples["test"]}
    if both:
        raise CxlpError(f"{name}: {len(both)} images are in training and in test, such as {min(both)}")
    for sample in (s for part in samples.values() for s in part):
        if not sample.path.is_file():
            raise CxlpError(f"{name}: a list names an image that is missing: {sample.path}")
