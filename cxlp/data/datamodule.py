"""Base of all data sets: a LightningDataModule whose loaders also work in your own training loop."""

import os
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from cxlp.data.contents import Content as FileContent
from cxlp.data.contents import name_broken, read_contents
from cxlp.data.dataset import Content, ImageDataset, Sample, Split, check_samples, is_there
from cxlp.data.options import check_options
from cxlp.data.remarks import remarks_on
from cxlp.data.sampler import EpochSampler
from cxlp.data.splitting import split_off
from cxlp.data.transforms import Aspect, AugmentConfig, Transform
from cxlp.utils.distributed import usable_cores
from cxlp.utils.errors import CxlpError
from cxlp.utils.fingerprint import digest
from cxlp.utils.seeding import run_seed


class ImageDataModule(pl.LightningDataModule, ABC):
    """Base class of data sets, which loads their splits. Subclasses locate the files and read the lists.

    Args:
        root: Folder of the data set.
        batch_size: Batch size per rank.
        num_workers: Number of loading processes per rank. Null: the usable cores divided by the ranks of the machine,
            at most 8.
        augment: Random augmentation of training images in fine-tuning. The frozen fit, validation and test use none.
        image_size: Side of the square images in pixels. Null: the attributes ``image_size`` and ``test_size`` of the
            LightningModule, which the LightningModules of cxlp have.
        aspect: ``warp``: resize the whole image to a square without keeping its aspect ratio, as in the paper;
            ``crop``: resize the short side to ``image_size`` and crop the centre.
        transform: Transforms of all images, including those of test and prediction, before they are made square:
            transforms of albumentations or ``torchvision.transforms.v2``, or modules of your own, each as
            ``class_path`` and ``init_args``. Random draws have a fixed seed.
        validation: Images to hold out from training. A fraction of each class, such as 0.1; ``official``: the data
            set's own validation images; 0: none; ``auto``: the validation images of your own data, but none for a
            benchmark, whose published results use all training images. Your own data's validation images are held out
            with any value but 0. Test images are never used for a choice.
        split_seed: Seed for drawing the held-out fraction; null: ``seed_everything``.
        on_broken: How to treat missing and broken files, for which a run checks all files before its first epoch.
            ``stop``: name them and stop; ``skip``: decode every file, leave broken ones out, and report them.

    Training images are shuffled and augmented, unless the LightningModule has an attribute ``augment`` that is false,
    as :class:`~cxlp.tasks.Frozen` does. Then they are loaded in order, each once and without augmentation, as
    validation and test images always are.

    A batch is a dictionary: ``image`` (uint8, ``(B, 3, S, S)``), ``label``, ``index`` (position in the split),
    ``repeat`` (whether the image repeats an earlier one, so that all ranks have equally many).

    Attributes:
        classes: Class names, after :meth:`setup`.
        splits: ``train``, ``val`` and ``test``, after :meth:`setup`.
        left_out: Number of files that no split uses, by reason, after :meth:`setup`. For your own folder, all files
            below the root are considered; for a benchmark, the images that no list names.
        broken: Defects of the files that ``on_broken: skip`` leaves out, after :meth:`setup`.
        progress: Whether to show progress bars while many files are read; true by default.
        notes: Further remarks on how the data set was read, after :meth:`setup`.
    """

    #: Display name of the data set.
    name = ""
    #: Whether an image may have several labels, see :mod:`cxlp.utils.labels`.
    multi_label = False
    #: Whether the data set's own validation images are held out with any value of ``validation`` but 0.
    holds_out_own = False
    #: Whether to split the images into training and test if the data set has no splits. Otherwise all of them are
    #: ``train``, and a data set of test images alone is allowed, too.
    makes_split = True

    def __init__(
        self,
        root: str | Path,
        batch_size: int = 32,
        num_workers: int | None = None,
        augment: AugmentConfig = AugmentConfig(),
        image_size: int | None = None,
        aspect: Aspect = "warp",
        transform: tuple[dict[str, Any], ...] = (),
        validation: float | Literal["auto", "official"] = "auto",
        split_seed: int | None = 0,
        on_broken: Literal["stop", "skip"] = "stop",
    ) -> None:
        super().__init__()
        check_options(batch_size, num_workers, image_size, validation, on_broken)
        self.root = Path(root)
        self.batch_size, self.num_workers, self.augment = batch_size, num_workers, augment
        self.image_size, self.aspect, self.transform = image_size, aspect, transform
        self.validation, self.split_seed, self.on_broken = validation, split_seed, on_broken
        self.classes: tuple[str, ...] = ()
        self.splits: dict[Split, ImageDataset] = {}
        self._first_epoch, self.held_out_own, self.progress = 0, False, True
        self.left_out: Counter[str] = Counter()
        self.notes: list[str] = []
        self.broken: dict[Path, str] = {}
        self.contents: dict[Path, FileContent] = {}

    def __repr__(self) -> str:
        counts = ", ".join(f"{len(split):,} {name}" for name, split in self.splits.items())
        told = f"{len(self.classes):,} classes, {counts} images" if self.splits else "not read yet, see setup()"
        return f"{type(self).__name__}({str(self.root)!r}): {told}"

    __str__ = __repr__  # Lightning's own creates all loaders

    @abstractmethod
    def read(self) -> Content:
        """Read the data set's lists.

        Returns:
            Class names, and the samples of each split; ``val`` only if there is an official one.

        Raises:
            CxlpError: If files are missing or inconsistent.
        """

    def setup(self, stage: str | None = None) -> None:
        """Read the lists once, and hold out the validation images."""
        if self.splits:
            return
        self.classes, samples = self.read_usable()
        train, val = self._hold_out(samples)
        try:
            check_samples(self.name, self.classes, {**samples, "train": train, "val": val})
        except CxlpError as error:  # the reason may be the files that were left out
            raise CxlpError(f"{error}{self._list_of_broken()}") from error
        parts: dict[Split, list[Sample]] = {"train": train, "val": val, "test": samples["test"]}
        self.splits = {name: self.dataset(part, self.classes) for name, part in parts.items()}

    def dataset(self, samples: Sequence[Sample], classes: Sequence[str]) -> ImageDataset:
        """Create the data set of some samples."""
        size = self.image_size or 1  # may be unknown until there is a LightningModule, see _loader
        return ImageDataset(samples, classes, Transform(size, self.aspect, self.augment, self.transform))

    def _hold_out(self, samples: dict[Split, list[Sample]]) -> tuple[list[Sample], list[Sample]]:
        official = samples.get("val", [])
        if self.validation == "official" and not official:
            raise CxlpError(
                f"data.validation is official, but {self.name} has no official validation images: choose a fraction, "
                "such as data.validation: 0.1"
            )
        self.held_out_own = bool(official) and self.holds_out_own and self.validation != 0
        if self.validation == "official" or self.held_out_own:
            return samples["train"], official
        pool = samples["train"] + official
        if self.validation in (0, "auto"):
            return pool, []
        part, seed = float(self.validation), run_seed() if self.split_seed is None else self.split_seed
        return split_off(pool, self.classes, part, seed, f"{self.name}: cannot hold out {part:g} of each class")

    def read_usable(self) -> Content:
        """Read the lists; with ``on_broken: skip``, leave out missing and broken files.

        Raises:
            CxlpError: If all images of a split are left out.
        """
        classes, samples = self.read()
        if self.on_broken == "stop":
            return classes, samples
        defects = self._defects([sample for part in samples.values() for sample in part])
        self.broken = {sample.path: defect for sample, defect in defects.items()}
        left = {split: [s for s in part if s not in defects] for split, part in samples.items()}
        if not left.get("val") and (self.validation == 0 or not (self.holds_out_own or self.validation == "official")):
            samples.pop("val", None)  # official validation images are not requested
        if emptied := [split for split, part in samples.items() if part and not left[split]]:
            raise CxlpError(f"{self.name}: no image of {emptied[0]} can be used{self._list_of_broken()}")
        self.left_out.update("broken" if is_there(path) else "missing" for path in self.broken)
        return classes, left

    def remarks(self) -> list[str]:
        """Return remarks on the data set, one per line: notes, and the files that are left out.

        Once the files were read (see :meth:`fingerprints`), also the number of test images that are training images.
        """
        return remarks_on(self)

    def fingerprints(self, split: Split, labelled: bool = False) -> Tensor:
        """Return a hash of the file's content for each image of a split, ``(n,)``, int64.

        Copies of an image have the same hash, whatever their paths and splits are. The first call reads the files of
        all splits.

        Args:
            split: The split, after :meth:`setup`.
            labelled: Whether to include box and labels in the hash, so that equal hashes mean equal training examples.

        Raises:
            CxlpError: If files are broken; the error names them.
        """
        self._read_all()
        classes = self.classes if labelled else None
        numbers = [self.contents[s.path].fingerprint(s, classes) for s in self.splits[split].samples]
        return torch.tensor(numbers, dtype=torch.int64)

    def count_trained_test_images(self) -> int:
        """Count the test images with the same content as a training image, whatever the file names."""
        return int(torch.isin(self.fingerprints("test"), self.fingerprints("train")).sum())

    def _read_all(self) -> None:
        samples = [sample for data in self.splits.values() for sample in data.samples]
        if broken := {sample.path: defect for sample, defect in self._defects(samples).items()}:
            some = f"{len(broken):,} of {len({s.path for s in samples}):,} files cannot be used"
            raise CxlpError(f"{self.name}: {some} (data.on_broken: skip leaves them out):{name_broken(broken)}")

    def _defects(self, samples: Sequence[Sample]) -> dict[Sample, str]:
        """Read the files that were not read yet, and return the defects by sample."""
        new = {sample.path for sample in samples} - self.contents.keys()
        self.contents |= read_contents(new, self.progress, decoded=self.on_broken == "skip")
        return {sample: defect for sample in samples if (defect := self.contents[sample.path].defect_of(sample))}

    def _list_of_broken(self) -> str:
        return f". Files that are left out:{name_broken(self.broken)}" if self.broken else ""

    def digest(self, split: Split) -> str:
        """Return a digest of a split in order (paths below the root, contents, boxes, labels) and its transform."""
        data = self.splits[split]
        self._read_all()
        parts: list[object] = [data.transform.size, data.transform.aspect, *data.transform.described]
        for sample in data.samples:
            where = os.path.relpath(sample.path, self.root)  # a table may have absolute paths of other folders
            parts.append((where, self.contents[sample.path].digest.hex(), sample.box, sample.label))
        return digest(*parts)

    def state_dict(self) -> dict[str, Any]:
        """Return the epoch with which a resumed run begins: workers load images before the Trainer restores it."""
        # The number of epochs that have begun. It is the index of the next epoch, both in an epoch's last hooks and
        # after the fit.
        return {"epoch": self.trainer.fit_loop.epoch_progress.current.ready if self.trainer else 0}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the epoch; Lightning calls this method before it creates the loaders."""
        # A test or validation of a checkpoint does not resume a run: the next fit begins at its own epoch.
        if self.trainer is not None and self.trainer.state.fn == "fit":
            self._first_epoch = state_dict["epoch"]

    def train_dataloader(self) -> DataLoader[dict[str, Any]]:
        """Return the loader of training images, shuffled and augmented unless the module's ``augment`` is false."""
        loader = self._loader("train", shuffle=bool(self._ask("augment", True)))
        # Workers load the first batches before the Trainer sets the epoch.
        if self.trainer is not None:
            assert isinstance(loader.sampler, EpochSampler)
            loader.sampler.set_epoch(max(self._first_epoch, self.trainer.current_epoch))
        self._first_epoch = 0
        return loader

    def val_dataloader(self) -> DataLoader[dict[str, Any]] | list[Any]:
        """Return the loader of validation images, in order; an empty list if there are none."""
        return self._loader("val") if len(self.splits["val"]) else []

    def test_dataloader(self) -> DataLoader[dict[str, Any]]:
        """Return the loader of test images, in order."""
        return self._loader("test")

    def resize(self, image_size: int, test_size: int | None = None) -> None:
        """Set the side in pixels of training images, and of validation and test images if it differs.

        Raises:
            CxlpError: If the DataModule has a different ``image_size``.
        """
        if self.image_size not in (None, image_size):
            given = f"data.image_size is {self.image_size}, but the network takes images of {image_size} pixels"
            raise CxlpError(f"{given}: set model.backbone.image_size instead, and leave data.image_size out")
        for name, data in self.splits.items():
            size = image_size if name == "train" else test_size or image_size
            data.transform = Transform(size, self.aspect, self.augment, self.transform)

    def _ask(self, name: str, default: Any) -> Any:  # noqa: ANN401 (any attribute)
        """Return an attribute of the Trainer's LightningModule, or the default."""
        return getattr(self.trainer.lightning_module, name, default) if self.trainer else default

    def _loader(self, split: Split, shuffle: bool = False) -> DataLoader[dict[str, Any]]:
        ranks, rank = (self.trainer.world_size, self.trainer.global_rank) if self.trainer else (1, 0)
        size = self._ask("image_size", self.image_size)
        if size is None:
            raise CxlpError(f"{self.name}: image_size is not set: set it, or use a LightningModule that has it")
        self.resize(size, self._ask("test_size", None))
        data = self.splits[split]
        if shuffle:
            _ = data.transform.random  # created here, so that the workers need not import albumentations
        workers = self.num_workers
        if workers is None:
            workers = min(8, max(1, usable_cores() // (self.trainer.num_devices if self.trainer else 1)))
        sampler = EpochSampler(len(data), self.batch_size, shuffle, run_seed(), ranks, rank)
        return DataLoader(
            data,
            batch_size=self.batch_size,
            sampler=sampler,
            num_workers=workers,
            pin_memory=torch.cuda.is_available(),
            persistent_workers=workers > 0 and split != "test",
        )
