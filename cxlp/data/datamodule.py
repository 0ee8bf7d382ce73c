"""What all data sets share: samples, drawing them in order or at random, and the DataModule."""

import os
from abc import ABC, abstractmethod
from collections.abc import Collection, Sequence
from hashlib import blake2b
from pathlib import Path
from typing import Any, Literal

import pytorch_lightning as pl
import torch
from sklearn.model_selection import train_test_split
from torch import Tensor
from torch.utils.data import DataLoader

from cxlp.data.dataset import ImageDataset, Sample, Split, list_defects, rarest
from cxlp.data.sampler import Drawer
from cxlp.data.transforms import Aspect, AugmentConfig, Transform
from cxlp.models.network import Network
from cxlp.utils.distributed import usable_cores
from cxlp.utils.errors import CxlpError
from cxlp.utils.labels import strata


class ImageDataModule(pl.LightningDataModule, ABC):
    """A benchmark's splits as loaders. Subclasses say where the files are and what is in them.

    Args:
        root: Folder of the data set.
        batch_size: Images per rank and step.
        num_workers: Loading processes per rank; null: the cores that this process may use, divided
            among the ranks of the machine, at most 8.
        augment: Random changes in training with gradients (the frozen fit and tests see none).
        image_size: Side of the square pictures where these loaders are used without a Trainer; under one
            they have the size that the network's views are cut of, see ``model.network.backbone.image_size``.
        aspect: ``warp``: the whole image, its aspect ratio not kept (the paper); ``crop``: the short
            side to ``image_size``, the centre of the rest.
        validation: What is held out of the training images: a part of each class, such as 0.1;
            ``official``: the benchmark's own list, where it has one; 0: nothing, all of them are
            fitted. The test images never choose anything.
        split_seed: Of the held-out part; null: ``seed_everything``, which order and augmentation follow anyway.

    Attributes:
        classes: Names, after :meth:`setup`.
        splits: ``train``, ``val`` and ``test``, after :meth:`setup`.
    """

    #: The data set's name, for people.
    name = ""
    #: Whether an image may show several classes, see :mod:`cxlp.utils.labels`.
    multi_label = False

    def __init__(
        self,
        root: str | Path,
        batch_size: int = 32,
        num_workers: int | None = None,
        augment: AugmentConfig = AugmentConfig(),
        image_size: int | None = None,
        aspect: Aspect = "warp",
        validation: float | Literal["official"] = 0.0,
        split_seed: int | None = 0,
    ) -> None:
        super().__init__()
        if validation != "official" and not 0 <= validation < 1:
            raise CxlpError(f"data.validation is {validation}: it must lie in [0, 1), or be official")
        for option, value in (("batch_size", batch_size), ("image_size", image_size or 1)):
            if value < 1:
                raise CxlpError(f"data.{option} is {value}: it must be 1 or more")
        self.root = Path(root)
        self.batch_size, self.num_workers, self.augment = batch_size, num_workers, augment
        self.image_size, self.aspect = image_size, aspect
        self.validation, self.split_seed = validation, split_seed
        self.classes: tuple[str, ...] = ()
        self.splits: dict[str, ImageDataset] = {}

    @abstractmethod
    def read(self) -> tuple[tuple[str, ...], dict[Split, list[Sample]]]:
        """Read the data set's lists.

        Returns:
            Class names, and the samples of each split; ``val`` only where there is an official one.

        Raises:
            CxlpError: If files are missing or do not fit together.
        """

    def setup(self, stage: str | None = None) -> None:
        """Read the lists once, hold out the validation images, and tell the network its classes.

        Here rather than in the task: Lightning sets callbacks up in between, and one that copies the
        network (weight averaging) needs it whole.
        """
        if self.splits:
            return
        self.classes, samples = self.read()
        train, val = self._hold_out(samples)
        _check_samples(self.name, self.classes, {**samples, "train": train, "val": val})
        parts = {"train": train, "val": val, "test": samples["test"]}
        transforms = {name: Transform(self._image_size(name), self.aspect, self.augment) for name in parts}
        self.splits = {name: ImageDataset(part, self.classes, transforms[name]) for name, part in parts.items()}
        if self._network is not None:
            self._network.set_classes(self.classes, self.multi_label)

    def _hold_out(self, samples: dict[Split, list[Sample]]) -> tuple[list[Sample], list[Sample]]:
        official = samples.get("val", [])
        if self.validation == "official":
            if not official:
                raise CxlpError(f"{self.name} has no official validation images: give a part, data.validation: 0.1")
            return samples["train"], official
        pool = samples["train"] + official
        if self.validation == 0:
            return pool, []
        groups = strata(torch.tensor([s.label for s in pool])).tolist()
        seed = run_seed() if self.split_seed is None else self.split_seed
        try:
            train, val = train_test_split(
                range(len(pool)), test_size=self.validation, stratify=groups, random_state=seed
            )
        except ValueError as error:
            raise CxlpError(
                f"{self.name}: cannot hold out {self.validation:g} of each class{rarest(groups, self.classes)}: {error}"
            ) from error
        return [pool[i] for i in sorted(train)], [pool[i] for i in sorted(val)]

    def fingerprints(self, split: Split) -> Tensor:
        """A number ``(n,)`` for each image, by its path below the root: to tell whether two runs' splits overlap."""
        names = (str(s.path.relative_to(self.root)) for s in self.splits[split].samples)
        return torch.tensor(
            [int.from_bytes(blake2b(os.fsencode(n), digest_size=7).digest()) for n in names], dtype=torch.int64
        )

    def digest(self, split: Split) -> str:
        """A number for a split, in order: paths below the root, sizes, dates, boxes, labels; and the transform."""
        data = self.splits[split]
        found = blake2b(f"{data.transform.size} {data.transform.aspect}".encode(), digest_size=16)
        for sample in data.samples:
            state = sample.path.stat()
            line = (sample.path.relative_to(self.root), state.st_size, state.st_mtime_ns, sample.box, sample.label)
            found.update(f"{line}\n".encode(errors="surrogateescape"))
        return found.hexdigest()

    @property
    def _network(self) -> Network | None:
        """The network that the loaders feed, if they work for one."""
        network = getattr(self.trainer.lightning_module, "network", None) if self.trainer else None
        return network if isinstance(network, Network) else None

    def _image_size(self, split: str) -> int:
        if self._network is None:
            if self.image_size is None:
                raise CxlpError("image_size is not set, and there is no Trainer whose network would know it")
            return self.image_size
        expected = self._network.image_size
        if self.image_size not in (None, expected):
            raise CxlpError(
                f"data.image_size is {self.image_size}, but the network is built for {expected} pixels: "
                "set model.network.backbone.image_size, which the data follow"
            )
        return expected if split == "train" else self._network.test_size

    def train_dataloader(self) -> DataLoader[dict[str, Any]]:
        """Training images: in order while the task fits without gradients, then shuffled and augmented."""
        task = getattr(self.trainer, "lightning_module", None)
        return self._loader("train", getattr(task, "frozen_epochs", ()))

    def val_dataloader(self) -> DataLoader[dict[str, Any]] | list[Any]:
        """Held-out training images, in order; no loader where none are held out."""
        return self._loader("val", None) if len(self.splits["val"]) else []

    def test_dataloader(self) -> DataLoader[dict[str, Any]]:
        """Test images, in order."""
        return self._loader("test", None)

    def _loader(self, split: str, ordered_epochs: Collection[int] | None) -> DataLoader[dict[str, Any]]:
        ranks, rank = (self.trainer.world_size, self.trainer.global_rank) if self.trainer else (1, 0)
        data = self.splits[split]
        workers = self.num_workers
        if workers is None:
            workers = min(8, max(1, usable_cores() // (self.trainer.num_devices if self.trainer else 1)))
        drawer = Drawer(len(data), self.batch_size, ordered_epochs, run_seed(), ranks, rank)
        if split == "train" and self.trainer is not None:
            # A resumed run's Trainer tells the epoch only after workers have begun to fetch the first batches.
            task = self.trainer.lightning_module
            drawer.set_epoch(max(self.trainer.current_epoch, getattr(task, "first_epoch", 0)))
        return DataLoader(
            data,
            batch_size=self.batch_size,
            sampler=drawer,
            num_workers=workers,
            pin_memory=torch.cuda.is_available(),
            persistent_workers=workers > 0 and split != "test",
        )


def run_seed() -> int:
    """The run's seed, as ``seed_everything`` leaves it for all processes; 0 where nobody called it."""
    return int(os.environ.get("PL_GLOBAL_SEED", 0))


def _check_samples(name: str, classes: Sequence[str], samples: dict[Split, list[Sample]]) -> None:
    for defect in list_defects(classes, samples):
        raise CxlpError(f"{name}: {defect}")
    for sample in (s for part in samples.values() for s in part):
        if not sample.path.is_file():
            raise CxlpError(f"{name}: a list names an image that is missing: {sample.path}")
