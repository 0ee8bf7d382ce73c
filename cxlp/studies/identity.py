"""The identity of a run: everything that its results depend on.

Two runs with equal identities have the same config, images, labels, weights, code and library versions.
"""

import json
import os
from collections.abc import Mapping
from hashlib import blake2b, file_digest
from pathlib import Path
from typing import Any

from jsonargparse import Namespace

from cxlp.backbones.library import users_own
from cxlp.data.datamodule import ImageDataModule
from cxlp.runs.cli import parts_of
from cxlp.runs.places import STARTS, start_checkpoint
from cxlp.runs.provenance import PACKAGES
from cxlp.runs.recipe import ModelConfig
from cxlp.utils.errors import CxlpError
from cxlp.utils.files import write_whole
from cxlp.utils.fingerprint import code_digest, digest, library_versions

#: The subpackages whose code affects results.
CODE = ("utils", "backbones", "heads", "models", "data", "metrics", "frozen", "tasks", "runs")
#: Descriptions of differences in parts of an identity other than the config.
_OTHERS = {
    "images": "other images, boxes or labels",
    "weights": "other weights in the files that the config names",
    "code": "other code",
    "libraries": "other versions of libraries",
}
#: Prefixes of keys that affect results.
_KEYS = ("seed_everything", "model.", "data.", "trainer.", "run.refit")
#: Prefixes of keys among them that do not affect results: locations of files, loading, and progress output.
_FREE = (
    "model.frozen.store", "data.init_args.root", "data.init_args.num_workers", "data.init_args.download",
    "trainer.enable_progress_bar", "trainer.enable_model_summary", "trainer.logger",
)  # fmt: skip


def settings_of(config: Namespace) -> dict[str, Any]:
    """Return the values of all keys that affect results, by dotted key, as plain JSON values."""
    found = {key: value for key, value in config.items() if key.startswith(_KEYS) and not key.startswith(_FREE)}
    text = json.dumps(found, default=lambda value: value.as_dict() if hasattr(value, "as_dict") else str(value))
    plain: dict[str, Any] = json.loads(text)
    return plain


class Identities:
    """Computes the identities of runs.

    Each file is read once for all runs, and a data set's lists are read once for all runs with the same options of
    ``data``.
    """

    def __init__(self) -> None:
        self._files: dict[Path, str] = {}
        self._data: dict[str, str] = {}

    def of(self, config: Namespace) -> dict[str, Any]:
        """Compute the identity of a run.

        Args:
            config: The resolved config, see :func:`cxlp.runs.cli.parse`.

        Returns:
            Plain values by the keys ``config``, ``images``, ``weights``, ``code`` and ``libraries``.

        Raises:
            CxlpError: If a value is out of range, or the data set is missing.
        """
        parts = parts_of(config)
        model: ModelConfig = parts["model"]
        own = [type(parts["data"]), *map(type, model.heads), *users_own(model.backbone.name)]
        options = json.dumps(config["data"].as_dict(), sort_keys=True, default=str)
        if options not in self._data:
            self._data[options] = self._of_data(parts["data"])
        named = [model.backbone.weights, config["run"]["refit"]]
        if model.start not in STARTS:
            named.append(str(start_checkpoint(model.start)))
        files = [Path(path) for path in named if isinstance(path, str) and Path(path).is_file()]
        return {
            "config": settings_of(config),
            "images": self._data[options],
            "weights": [self._of_file(file) for file in files],
            "code": code_digest(CODE, own),
            "libraries": library_versions(name for name in PACKAGES if name != "wandb"),
        }

    def _of_data(self, data: ImageDataModule) -> str:
        """Hash the contents, boxes, labels and splits of all images.

        Held-out images that each process draws anew from the training images are counted as training images.
        """
        data.prepare_data()
        data.setup()
        drawn = data.split_seed is None and not isinstance(data.validation, str)
        names = {name: "train" if drawn and name == "val" else name for name in data.splits}
        samples = [(names[name], s) for name, split in data.splits.items() for s in split.samples]
        parts = [(name, os.path.relpath(s.path, data.root), s.box, s.label, s.path) for name, s in samples]
        found = sorted(str((*part, self._of_file(path))) for *part, path in parts)
        return digest(data.classes, *found)

    def _of_file(self, path: Path) -> str:
        if path not in self._files:
            try:
                with path.open("rb") as file:
                    self._files[path] = file_digest(file, blake2b).hexdigest()
            except OSError as error:
                raise CxlpError(f"cannot read {path}: {error.strerror}") from error
        return self._files[path]


def name_of(identity: Mapping[str, Any]) -> str:
    """Hash an identity to eight hexadecimal digits."""
    return digest(json.dumps(identity, sort_keys=True), size=4)


def difference(one: Mapping[str, Any], other: Mapping[str, Any]) -> str | None:
    """Describe the first difference between two identities apart from the config; ``None`` if there is none."""
    return next((said for key, said in _OTHERS.items() if one.get(key) != other.get(key)), None)


def write_identity(file: Path, identity: Mapping[str, Any]) -> None:
    """Write an identity to a file, before the run begins."""
    file.parent.mkdir(parents=True, exist_ok=True)
    write_whole(file, json.dumps(identity, indent=1) + "\n")


def read_identity(file: Path) -> dict[str, Any] | None:
    """Read an identity from a file; return ``None`` if the file is missing or broken."""
    try:
        found = json.loads(file.read_text())
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None
