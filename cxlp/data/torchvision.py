"""Classification data sets of torchvision, by name, with their official splits."""

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

#: Attributes of torchvision's data sets that hold class names.
_NAMES = ("classes", "categories", "all_categories", "attr_names", "class_to_idx")


class Torchvision(ImageDataModule):
    """A data set of torchvision, by name, with its official splits.

    Official validation images are used for training unless ``validation: official`` holds them out. If the images are
    arrays rather than files (CIFAR, MNIST and others), they are written once as PNG files.

    Args:
        name: Name of the class in ``torchvision.datasets``, such as ``FGVCAircraft``, ``StanfordCars`` or
            ``Flowers102``.
        root: torchvision's ``root``, a folder in which each data set has its own folder.
        options: Further arguments of the class that select labels or images, such as ``annotation_level: family``.
        download: Let torchvision download the data set if it is missing.
        test_fraction: Fraction of each class for the test set if the data set has no splits. The same images are drawn
            in every run.
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
                raise CxlpError(f"{where} selects a split, but all splits are used: leave it out")
            if option not in taken:
                what = "cannot be set" if _takes(_class_of(self.name), option) else "is unknown to torchvision"
                raise CxlpError(f"{where} {what}. Valid options: {', '.join(taken) or 'none'}")
            if taken[option] and value not in taken[option]:
                raise CxlpError(f"{where} is {value!r}: valid are {', '.join(taken[option])}, which are class labels")

    def prepare_data(self) -> None:
        """Let torchvision download the data set if it is missing, and write images that are not files."""
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
        """Read the files and labels of each split from torchvision; classes without images are left out.

        Raises:
            CxlpError: If the data set is missing.
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
                    raise CxlpError(
                        f"{self.name}: its images are not files yet: write them by calling prepare_data(), or by {how}"
                    )
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
        """Build torchvision's data sets by split; those with an argument ``loader`` return paths instead of images."""
        cls = _class_of(self.name)
        if _takes(cls, "loader"):
            more["loader"] = Path
        given = DATA_SETS[self.name] or {"train": {}}
        return {split: cls(str(root), **arguments, **self.options, **more) for split, arguments in given.items()}

    def _look(self) -> tuple[dict[Split, Any] | None, str]:
        """Return the data set, or ``None`` and the reason if it is missing.

        Raises:
            CxlpError: If an option has a wrong value.
        """
        try:
            return self._open(self.root), ""
        except (RuntimeError, FileNotFoundError) as error:  # raised by torchvision if files are missing
            return None, str(error).partition(" You can")[0].rstrip(".")
        except (TypeError, ValueError) as error:
            raise CxlpError(f"{self.name}: torchvision cannot read it (data.options?): {error}") from error

    def _obtain(self, lacking: str) -> None:
        """Let torchvision download into a hidden folder, and move its content to the root once it is complete."""
        page = f"https://docs.pytorch.org/vision/stable/generated/torchvision.datasets.{self.name}.html"
        by_hand = f"By hand: put it there in torchvision's layout, see {page}"
        if not self.download or not _takes(_class_of(self.name), "download"):
            why = "torchvision cannot download it" if self.download else "download is off"
            raise CxlpError(f"{lacking}. {why[0].upper()}{why[1:]}. {by_hand}")
        with locked(self.root / f".{self.name}.lock", self.name):
            if self._look()[0] is not None:  # another process has downloaded it meanwhile
                return
            print(f"{lacking}. torchvision downloads it", file=sys.stderr)  # noqa: T201
            temporary = self.root / f".{self.name}.partial"
            shutil.rmtree(temporary, ignore_errors=True)  # left by a killed run
            temporary.mkdir(parents=True)
            try:
                self._open(temporary, download=True)
                for path in sorted(temporary.iterdir()):
                    if (self.root / path.name).exists():
                        raise FileExistsError(f"{self.root / path.name} exists, but is not the data set: move it away")
                    path.rename(self.root / path.name)
            except Exception as error:  # servers, archives and torchvision's checks raise various exceptions
                raise CxlpError(
                    f"torchvision cannot download {self.name}: {str(error).rstrip('.')}. {by_hand}"
                ) from error
            finally:
                shutil.rmtree(temporary, ignore_errors=True)

    # --- images that are not files ------------------------------------------------------------------

    def _write(self, parts: Mapping[Split, Any]) -> None:
        """Write all images as PNG files; their folder appears once it is complete."""
        temporary = self._copy.with_name(f".{self._copy.name}.partial")
        shutil.rmtree(temporary, ignore_errors=True)
        labels: dict[Split, list[Any]] = {split: [] for split in parts}
        try:
            for split, part in parts.items():
                (temporary / split).mkdir(parents=True)
                for i in track(range(len(part)), f"Writing {self.name}, {split}", len(part)):
                    picture, label = part[i]
                    labels[split].append(_label(label))
                    picture.save(temporary / split / f"{i:07d}.png", compress_level=1)
            samples = {split: [Sample(temporary, label) for label in found] for split, found in labels.items()}
            text = json.dumps({"classes": self._classes(parts["train"], samples), "labels": labels})
            (temporary / "labels.json").write_text(text, encoding="utf-8")
            temporary.rename(self._copy)
        except OSError as error:
            raise CxlpError(f"{self.name}: cannot write its images into {self._copy}: {error}") from error
        finally:
            shutil.rmtree(temporary, ignore_errors=True)

    def _read_copy(self) -> tuple[tuple[str, ...], dict[Split, list[Sample]]]:
        found = json.loads((self._copy / "labels.json").read_text(encoding="utf-8"))
        return tuple(found["classes"]), {
            split: [Sample(self._copy / split / f"{i:07d}.png", _label(label)) for i, label in enumerate(labels)]
            for split, labels in found["labels"].items()
        }

    def _classes(self, part: Any, samples: Mapping[Split, Sequence[Sample]]) -> tuple[str, ...]:  # noqa: ANN401
        """Return the class names by index; for a data set without names, the indices."""
        labels = [sample.label for found in samples.values() for sample in found]
        count = max(len(label) if isinstance(label, tuple) else label + 1 for label in labels)
        kind = self.options.get("target_types") or self.options.get("target_type")
        attributes = ("bin_classes",) if kind == "binary-category" else _NAMES
        groups = getattr(part, "categories_index", {})  # iNaturalist: indices by name
        lists = [groups[kind]] if kind in groups else [getattr(part, attribute, ()) for attribute in attributes]
        for found in lists:
            names = [name if isinstance(name, str) else ", ".join(name) for name in found]
            if len(names) >= count:
                return tuple(names[:count])
        return tuple(map(str, range(count)))


def _class_of(name: str) -> type:
    from torchvision import datasets  # imported here, because the import takes time

    found: type = getattr(datasets, name)
    return found


def _takes(cls: type, option: str) -> bool:
    """Return whether the constructor of a class accepts an argument, possibly for a base class."""
    for each in cls.__mro__:
        if "__init__" in vars(each):
            parameters = inspect.signature(vars(each)["__init__"]).parameters
            if option in parameters:
                return True
            if all(parameter.kind is not parameter.VAR_KEYWORD for parameter in parameters.values()):
                return False
    return False


class _Unopened:
    """Placeholder for an image of which only the path is needed."""

    def __init__(self, path: str | Path) -> None:
        self.filename = str(path)

    def convert(self, mode: str) -> "_Unopened":
        """Return the placeholder itself."""
        return self


@contextmanager
def _opening_no_picture() -> Iterator[None]:
    """Prevent Pillow from opening files: some data sets open each image for its label, and one may be broken."""
    opening = Image.open
    Image.open = _Unopened  # type: ignore[assignment]
    try:
        yield
    finally:
        Image.open = opening


def _are_files(part: Any) -> bool:  # noqa: ANN401 (a data set of torchvision)
    """Return whether the images of a data set are files rather than arrays."""
    with _opening_no_picture():
        return not len(part) or _path_of(part[0][0]) is not None


def _path_of(picture: Any) -> Path | None:  # noqa: ANN401 (a picture, or a path by our loader)
    if isinstance(picture, Path):
        return picture
    return Path(picture.filename) if getattr(picture, "filename", "") else None


def _label(label: Any) -> int | tuple[int, ...]:  # noqa: ANN401 (whatever a data set gives)
    """Return a class index; for a 0 or 1 per class, return 1 (present) or -1 (absent) per class."""
    if label is None:
        raise CxlpError("some images of the data set have no label, so it cannot be used for classification")
    if hasattr(label, "tolist"):
        label = label.tolist()
    if isinstance(label, list):
        return tuple(1 if value > 0 else -1 for value in label)
    return int(label)
