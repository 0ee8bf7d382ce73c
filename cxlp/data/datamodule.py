"""A data set's splits as loaders, for Lightning or for your own loop."""

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
    """A benchmark's splits as loaders. Subclasses say where the files are and what is in them.

    Args:
        root: Folder of the data set.
        batch_size: Images per rank and step.
        num_workers: Loading processes per rank; null: the cores that this process may use, divided
            among the ranks of the machine, at most 8.
        augment: Random changes in training with gradients (the frozen fit and tests see none).
        image_size: Side of the square pictures, pixels; null: what the LightningModule asks for, whose attributes
            ``image_size`` and ``test_size`` say it (those of cxlp do).
        aspect: ``warp``: the whole image, its aspect ratio not kept (the paper); ``crop``: the short
            side to ``image_size``, the centre of the rest.
        transform: Changes of all pictures, also of those that are tested or predicted, before they become square:
            transforms of albumentations or ``torchvision.transforms.v2``, or modules of your own, each as
            ``class_path`` and ``init_args``; what they draw is always the same.
        validation: What is held out of the training images: a part of each class, such as 0.1; ``official``: the data
            set's own validation images; 0 or ``auto``: nothing, all are fitted, as a benchmark's results are reported.
            Where data of your own have validation images, these are held out by all but 0. The test images never choose
            anything.
        split_seed: Seed by which the held-out part is drawn; null: ``seed_everything``.
        on_broken: What a run does about files that are missing or broken, for which it looks at all of them before its
            first pass. ``stop``: it names them and stops; ``skip``: it leaves them out, counts and lists them, and
            decodes every file to find them all.

    Training images are shuffled and augmented, unless the LightningModule has an attribute ``augment`` that is false
    (:class:`~cxlp.tasks.Frozen` has): then they come in order, each once and unchanged, as validation and test images
    always do.

    A batch is a dictionary: ``image`` (uint8, ``(B, 3, S, S)``), ``label``, ``index`` (place in the split), ``repeat``
    (whether the image was dealt already, to even the ranks' shares).

    Attributes:
        classes: Names, after :meth:`setup`.
        splits: ``train``, ``val`` and ``test``, after :meth:`setup`.
        left_out: How many files no split uses, by the reason, after :meth:`setup`: of a folder of one's own, all files
            below the root; of a benchmark, the pictures that no list names.
        broken: What is wrong with the files that ``on_broken: skip`` leaves out, after :meth:`setup`.
        progress: Whether to show progress bars where it takes long to read the files; true.
        notes: What else is worth knowing of how the root was read, after :meth:`setup`.
    """

    #: The data set's name, for people.
    name = ""
    #: Whether an image may show several classes, see :mod:`cxlp.utils.labels`.
    multi_label = False
    #: Whether validation images that the data set has are held out, whatever ``validation`` says but 0.
    holds_out_own = False
    #: Whether training and test images are drawn where the data set says neither; else all of them are ``train``, and
    #: there may be test images alone.
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

    __str__ = __repr__  # Lightning's own makes all loaders

    @abstractmethod
    def read(self) -> Content:
        """Read the data set's lists.

        Returns:
            Class names, and the samples of each split; ``val`` only where there is an official one.

        Raises:
            CxlpError: If files are missing or do not fit together.
        """

    def setup(self, stage: str | None = None) -> None:
        """Read the lists once, and hold out the validation images."""
        if self.splits:
            return
        self.classes, samples = self.read_usable()
        train, val = self._hold_out(samples)
        try:
            check_samples(self.name, self.classes, {**samples, "train": train, "val": val})
        except CxlpError as error:  # which may be for what was left out
            raise CxlpError(f"{error}{self._told_broken()}") from error
        parts: dict[Split, list[Sample]] = {"train": train, "val": val, "test": samples["test"]}
        self.splits = {name: self.dataset(part, self.classes) for name, part in parts.items()}

    def dataset(self, samples: Sequence[Sample], classes: Sequence[str]) -> ImageDataset:
        """Make the data set of some samples."""
        size = self.image_size or 1  # it may only be known once there is a module to feed, see _loader
        return ImageDataset(samples, classes, Transform(size, self.aspect, self.augment, self.transform))

    def _hold_out(self, samples: dict[Split, list[Sample]]) -> tuple[list[Sample], list[Sample]]:
        official = samples.get("val", [])
        if self.validation == "official" and not official:
            raise CxlpError(f"{self.name} has no official validation images: give a part, data.validation: 0.1")
        self.held_out_own = bool(official) and self.holds_out_own and self.validation != 0
        if self.validation == "official" or self.held_out_own:
            return samples["train"], official
        pool = samples["train"] + official
        if self.validation in (0, "auto"):
            return pool, []
        part, seed = float(self.validation), run_seed() if self.split_seed is None else self.split_seed
        return split_off(pool, self.classes, part, seed, f"{self.name}: cannot hold out {part:g} of each class")

    def read_usable(self) -> Content:
        """Read the lists, but with ``on_broken: skip`` leave out the files that are missing or broken.

        Raises:
            CxlpError: If nothing is left of a split.
        """
        classes, samples = self.read()
        if self.on_broken == "stop":
            return classes, samples
        defects = self._defects([sample for part in samples.values() for sample in part])
        self.broken = {sample.path: defect for sample, defect in defects.items()}
        left = {split: [s for s in part if s not in defects] for split, part in samples.items()}
        if not left.get("val") and (self.validation == 0 or not (self.holds_out_own or self.validation == "official")):
            samples.pop("val", None)  # it is not asked for
        if emptied := [split for split, part in samples.items() if part and not left[split]]:
            raise CxlpError(f"{self.name}: no image of {emptied[0]} can be used{self._told_broken()}")
        self.left_out.update("broken" if is_there(path) else "missing" for path in self.broken)
        return classes, left

    def remarks(self) -> list[str]:
        """Return what to tell of the data set, a line each: notes, and the files that are left out.

        Also how many test images are training images, once the files were read, see :meth:`fingerprints`.
        """
        return remarks_on(self)

    def fingerprints(self, split: Split, labelled: bool = False) -> Tensor:
        """A number ``(n,)``, int64, for each image of a split, by the content of its file.

        A picture is recognised wherever it lies, whatever it is called, and in whichever split it is. The files of all
        splits are read when this is first asked for.

        Args:
            split: Which one, after :meth:`setup`.
            labelled: Whether box and labels count, too: then equal numbers mean the same training example.

        Raises:
            CxlpError: If files are broken; names them.
        """
        self._read_all()
        classes = self.classes if labelled else None
        numbers = [self.contents[s.path].fingerprint(s, classes) for s in self.splits[split].samples]
        return torch.tensor(numbers, dtype=torch.int64)

    def count_trained_test_images(self) -> int:
        """Count the test images whose content some training image has as well, whatever the two files are called."""
        return int(torch.isin(self.fingerprints("test"), self.fingerprints("train")).sum())

    def _read_all(self) -> None:
        samples = [sample for data in self.splits.values() for sample in data.samples]
        if broken := {sample.path: defect for sample, defect in self._defects(samples).items()}:
            some = f"{len(broken):,} of {len({s.path for s in samples}):,} files cannot be used"
            raise CxlpError(f"{self.name}: {some} (data.on_broken: skip leaves them out):{name_broken(broken)}")

    def _defects(self, samples: Sequence[Sample]) -> dict[Sample, str]:
        """Read the files that were not read yet; what is wrong with which samples."""
        new = {sample.path for sample in samples} - self.contents.keys()
        self.contents |= read_contents(new, self.progress, decoded=self.on_broken == "skip")
        return {sample: defect for sample in samples if (defect := self.contents[sample.path].defect_of(sample))}

    def _told_broken(self) -> str:
        return f". Files that are left out:{name_broken(self.broken)}" if self.broken else ""

    def digest(self, split: Split) -> str:
        """Digest a split in its order: paths below the root, contents (no dates), boxes, labels; and the transform."""
        data = self.splits[split]
        self._read_all()
        parts: list[object] = [data.transform.size, data.transform.aspect, *data.transform.described]
        for sample in data.samples:
            where = os.path.relpath(sample.path, self.root)  # lists may hold absolute paths, also of other folders
            parts.append((where, self.contents[sample.path].digest.hex(), sample.box, sample.label))
        return digest(*parts)

    def state_dict(self) -> dict[str, Any]:
        """Return the epoch that a resumed run begins with: workers fetch before the Trainer has counted to it."""
        # Epochs that have begun: within an epoch's last hooks as well as after the fit, the next one's number.
        return {"epoch": self.trainer.fit_loop.epoch_progress.current.ready if self.trainer else 0}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over the epoch; Lightning calls this before it makes the loaders."""
        # A test or validation of a checkpoint is no resumption: the next fit begins at its own epoch.
        if self.trainer is not None and self.trainer.state.fn == "fit":
            self._first_epoch = state_dict["epoch"]

    def train_dataloader(self) -> DataLoader[dict[str, Any]]:
        """Training images: shuffled and augmented, unless the module wants them as they are."""
        loader = self._loader("train", shuffle=bool(self._ask("augment", True)))
        # Workers fetch an epoch's first batches before the Trainer tells which epoch it is.
        if self.trainer is not None:
            assert isinstance(loader.sampler, EpochSampler)
            loader.sampler.set_epoch(max(self._first_epoch, self.trainer.current_epoch))
        self._first_epoch = 0
        return loader

    def val_dataloader(self) -> DataLoader[dict[str, Any]] | list[Any]:
        """Held-out training images, in order; no loader where none are held out."""
        return self._loader("val") if len(self.splits["val"]) else []

    def test_dataloader(self) -> DataLoader[dict[str, Any]]:
        """Test images, in order."""
        return self._loader("test")

    def resize(self, image_size: int, test_size: int | None = None) -> None:
        """Set the side of the pictures, pixels: of training images, and of those that are scored if it differs.

        Raises:
            CxlpError: If the DataModule was given another ``image_size``.
        """
        if self.image_size not in (None, image_size):
            given = f"data.image_size is {self.image_size}, but the network takes images of {image_size} pixels"
            raise CxlpError(f"{given}: set model.backbone.image_size, which the data follow")
        for name, data in self.splits.items():
            size = image_size if name == "train" else test_size or image_size
            data.transform = Transform(size, self.aspect, self.augment, self.transform)

    def _ask(self, name: str, default: Any) -> Any:  # noqa: ANN401 (whatever the module says)
        """Return an attribute of the LightningModule that is fed, if there is one."""
        return getattr(self.trainer.lightning_module, name, default) if self.trainer else default

    def _loader(self, split: Split, shuffle: bool = False) -> DataLoader[dict[str, Any]]:
        ranks, rank = (self.trainer.world_size, self.trainer.global_rank) if self.trainer else (1, 0)
        size = self._ask("image_size", self.image_size)
        if size is None:
            raise CxlpError(f"{self.name}: image_size is not set, and there is no module that says it: give image_size")
        self.resize(size, self._ask("test_size", None))
        data = self.splits[split]
        if shuffle:
            _ = data.transform.random  # made here, lest each worker import what it takes
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
