"""Data sets of torchvision for classification, by their names, with their official splits."""

import inspect
import json
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from PIL import Image

from cxlp.data.datamodule import ImageDataModule
from cxlp.data.dataset import Content, Sample, Split
from cxlp.data.splitting import check_fraction, split_off
from cxlp.data.torchvision_sets import DATA_SETS, OPTIONS, find_data_set
from cxlp.utils.errors import CxlpError
from cxlp.utils.fingerprint import digest
from cxlp.utils.locking import locked
from cxlp.utils.program import program
from cxlp.utils.progress import track

#: Where data sets have the names of their classes.
_NAMES = ("classes", "categories", "all_categories", "attr_names", "class_to_idx")


class Torchvision(ImageDataModule):
    """A data set of torchvision, by its name and with its official splits.

    Validation images are training images, too, unless ``validation: official`` holds them out. Where the pictures are
    no files but arrays (CIFAR, MNIST and the like), they are written once as PNG files.

    Args:
        name: The class in ``torchvision.datasets``, such as ``FGVCAircraft``, ``StanfordCars`` or ``Flowers102``.
        root: The folder that is torchvision's ``root``: each data set makes one of its own in it.
        options: Further arguments of that class that choose labels or pictures, such as ``annotation_level: family``.
        download: Have torchvision fetch the data set where it is missing.
        test_fraction: Of a data set without splits: the part of each class that becomes the test set, the same in every
            run.
        **common: See :class:`~cxlp.data.datamodule.ImageDataModule`.
    """

    name = "torchvision"

    def __init__(
        self,
        name: str = "",
        root: str | Path = "data/torchvision",
        options: dict[str, Any] | None = None,
        download: bool = True,
        test_fraction: float = 0.2,
        **common: Any,
    ) -> None:
        super().__init__(root, **common)
        check_fraction(test_fraction)
        self.name, self.options = find_data_set(name), dict(options or {})
        self.download, self.test_fraction = download, test_fraction
        self.multi_label = self.name == "CelebA"
        self._check_options()
        self._copy = self.root / f"{self.name}-png{'-' + digest(self.options, size=3) if self.options else ''}"

    def _check_options(self) -> None:
        taken = OPTIONS.get(self.name, {})
        for option, value in self.options.items():
            where = f"data.options: {self.name}'s {option}"
            if any(option in given for given in DATA_SETS[self.name].values()):
                raise CxlpError(f"{where} says which split it is, and all are used")
            if option not in taken:
                what = "cannot be given" if _takes(_class_of(self.name), option) else "is unknown to torchvision"
                raise CxlpError(f"{where} {what}. There is {', '.join(taken) or 'no option of its labels or pictures'}")
            if taken[option] and value not in taken[option]:
                raise CxlpError(f"{where} is {value!r}: the labels of classes are {', '.join(taken[option])}")

    def prepare_data(self) -> None:
        """Have torchvision download where the data set is missing, and write pictures that are no files."""
        if (self._copy / "labels.json").is_file():
            return
        parts, reason = self._look()
        if parts is None:
            self._obtain(f"{self.name} is not in {self.root.absolute()}: {reason}")
            parts = self._open(self.root)
        if not all(map(_are_files, parts.values())):
            with locked(self.root / f".{self._copy.name}.lock", self.name):
                if not self._copy.exists():
                    self._write(parts)

    def read(self) -> Content:
        """Ask torchvision for the files and labels of each split; classes without images are left out.

        Raises:
            CxlpError: If the data set is not there.
        """
        if (self._copy / "labels.json").is_file():
            classes, samples = self._read_copy()
        else:
            parts, reason = self._look()
            if parts is None:
                raise CxlpError(f"{self.name} is not in {self.root.absolute()}: {reason}")
            samples = {}
            for split, part in parts.items():
                if not _are_files(part):
                    how = f"{program()} download torchvision/{self.name}"
                    raise CxlpError(f"{self.name}: its pictures are no files: prepare_data(), or {how}, writes them")
                with _opening_no_picture():
                    found = [part[i] for i in range(len(part))]
                samples[split] = sorted(Sample(_path_of(picture) or Path(), _label(label)) for picture, label in found)
            classes = self._classes(parts["train"], samples)
        used = sorted({s.label for part in samples.values() for s in part if isinstance(s.label, int)})
        if used and len(used) < len(classes):
            index = {label: k for k, label in enumerate(used)}
            samples = {split: [Sample(s.path, index[s.label]) for s in part] for split, part in samples.items()}  # type: ignore[index]
            classes = tuple(classes[label] for label in used)
        if "test" not in samples and self.makes_split:
            failure = f"{self.name}: cannot split it into train and test"
            train, test = split_off(samples["train"], classes, self.test_fraction, 0, failure)
            samples = {"train": train, "test": test}
        return classes, samples

    def _open(self, root: Path, **more: Any) -> dict[Split, Any]:
        """Build torchvision's data sets, which give paths where they let a picture be loaded otherwise."""
        cls = _class_of(self.name)
        if _takes(cls, "loader"):
            more["loader"] = Path
        given = DATA_SETS[self.name] or {"train": {}}
        return {split: cls(str(root), **arguments, **self.options, **more) for split, arguments in given.items()}

    def _look(self) -> tuple[dict[Split, Any] | None, str]:
        """The data set, if it is there; or why not.

        Raises:
            CxlpError: If an option has a wrong value.
        """
        try:
            return self._open(self.root), ""
        except (RuntimeError, FileNotFoundError) as error:  # what torchvision raises where files are missing
            return None, str(error).partition(" You can")[0].rstrip(".")
        except (TypeError, ValueError) as error:
            raise CxlpError(f"{self.name}: torchvision cannot read it (data.options?): {error}") from error

    def _obtain(self, lacking: str) -> None:
        """Have torchvision download into a hidden folder; what it brings appears in the root when it is whole."""
        page = f"https://docs.pytorch.org/vision/stable/generated/torchvision.datasets.{self.name}.html"
        by_hand = f"By hand: put it there as torchvision has it, see {page}"
        if not self.download or not _takes(_class_of(self.name), "download"):
            why = "torchvision cannot download it" if self.download else "download is off"
            raise CxlpError(f"{lacking}. {why[0].upper()}{why[1:]}. {by_hand}")
        with locked(self.root / f".{self.name}.lock", self.name):
            if self._look()[0] is not None:  # another process was faster
                return
            print(f"{lacking}. Torchvision fetches it", file=sys.stderr)  # noqa: T201
            aside = self.root / f".{self.name}.partial"
            shutil.rmtree(aside, ignore_errors=True)  # of a run that was killed
            aside.mkdir(parents=True)
            try:
                self._open(aside, download=True)
                for path in sorted(aside.iterdir()):
                    if (self.root / path.name).exists():
                        raise FileExistsError(f"{self.root / path.name} is there, but not what it needs: move it away")
                    path.rename(self.root / path.name)
            except Exception as error:  # whatever servers, archives and torchvision's checks come to
                raise CxlpError(f"torchvision cannot fetch {self.name}: {str(error).rstrip('.')}. {by_hand}") from error
            finally:
                shutil.rmtree(aside, ignore_errors=True)

    # --- pictures that are no files -----------------------------------------------------------------

    def _write(self, parts: Mapping[Split, Any]) -> None:
        """Write all pictures as PNG files; their folder appears when it is whole."""
        aside = self._copy.with_name(f".{self._copy.name}.partial")
        shutil.rmtree(aside, ignore_errors=True)
        labels: dict[Split, list[Any]] = {split: [] for split in parts}
        try:
            for split, part in parts.items():
                (aside / split).mkdir(parents=True)
                for i in track(range(len(part)), f"Writing {self.name}, {split}", len(part)):
                    picture, label = part[i]
                    labels[split].append(_label(label))
                    picture.save(aside / split / f"{i:07d}.png", compress_level=1)
            samples = {split: [Sample(aside, label) for label in found] for split, found in labels.items()}
            text = json.dumps({"classes": self._classes(parts["train"], samples), "labels": labels})
            (aside / "labels.json").write_text(text, encoding="utf-8")
            aside.rename(self._copy)
        except OSError as error:
            raise CxlpError(f"{self.name}: cannot write its pictures into {self._copy}: {error}") from error
        finally:
            shutil.rmtree(aside, ignore_errors=True)

    def _read_copy(self) -> tuple[tuple[str, ...], dict[Split, list[Sample]]]:
        found = json.loads((self._copy / "labels.json").read_text(encoding="utf-8"))
        return tuple(found["classes"]), {
            split: [Sample(self._copy / split / f"{i:07d}.png", _label(label)) for i, label in enumerate(labels)]
            for split, labels in found["labels"].items()
        }

    def _classes(self, part: Any, samples: Mapping[Split, Sequence[Sample]]) -> tuple[str, ...]:  # noqa: ANN401
        """Names by class index; of a data set without names, the indices."""
        labels = [sample.label for found in samples.values() for sample in found]
        count = max(len(label) if isinstance(label, tuple) else label + 1 for label in labels)
        kind = self.options.get("target_types") or self.options.get("target_type")
        attributes = ("bin_classes",) if kind == "binary-category" else _NAMES
        groups = getattr(part, "categories_index", {})  # of iNaturalist: names with their numbers
        lists = [groups[kind]] if kind in groups else [getattr(part, attribute, ()) for attribute in attributes]
        for found in lists:
            names = [name if isinstance(name, str) else ", ".join(name) for name in found]
            if len(names) >= count:
                return tuple(names[:count])
        return tuple(map(str, range(count)))


def _class_of(name: str) -> type:
    from torchvision import datasets  # only where it is used: it takes time

    found: type = getattr(datasets, name)
    return found


def _takes(cls: type, option: str) -> bool:
    """Whether a class takes an argument, perhaps for the class that it inherits from."""
    for each in cls.__mro__:
        if "__init__" in vars(each):
            parameters = inspect.signature(vars(each)["__init__"]).parameters
            if option in parameters:
                return True
            if all(parameter.kind is not parameter.VAR_KEYWORD for parameter in parameters.values()):
                return False
    return False


class _Unopened:
    """Stands for a picture of which only the path is asked."""

    def __init__(self, path: str | Path) -> None:
        self.filename = str(path)

    def convert(self, mode: str) -> "_Unopened":
        """Stay as it is."""
        return self


@contextmanager
def _opening_no_picture() -> Iterator[None]:
    """Have Pillow open no file: some data sets open each picture to tell its label, and one may be broken."""
    opening = Image.open
    Image.open = _Unopened  # type: ignore[assignment]
    try:
        yield
    finally:
        Image.open = opening


def _are_files(part: Any) -> bool:  # noqa: ANN401 (a data set of torchvision)
    """Whether its pictures are files, or arrays."""
    with _opening_no_picture():
        return not len(part) or _path_of(part[0][0]) is not None


def _path_of(picture: Any) -> Path | None:  # noqa: ANN401 (a picture, or a path by our loader)
    if isinstance(picture, Path):
        return picture
    return Path(picture.filename) if getattr(picture, "filename", "") else None


def _label(label: Any) -> int | tuple[int, ...]:  # noqa: ANN401 (whatever a data set gives)
    """A class index; or of 0 and 1 for each class, 1 present and -1 absent."""
    if label is None:
        raise CxlpError("there are images without a label")
    if hasattr(label, "tolist"):
        label = label.tolist()
    if isinstance(label, list):
        return tuple(1 if value > 0 else -1 for value in label)
    return int(label)
