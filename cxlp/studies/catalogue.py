"""The catalogue of the runs in a folder, read from their output files without importing torch, which is slow."""

import json
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

from cxlp.utils.errors import CxlpError, did_you_mean
from cxlp.utils.locking import is_held

#: Maximum depth of runs below the root. The runs of a comparison with several seeds have depth 3.
DEPTH = 4
#: Folders that hold no runs: a run's own subfolders and shared folders.
_SKIPPED = ("checkpoints", "csv", "examples", "features", "logs", "wandb")
#: Groups of keys that every run's config has.
_GROUPS = ("model", "data", "trainer", "run")


@dataclass(frozen=True)
class Entry:
    """A run, or a later test of a run's checkpoint.

    Attributes:
        folder: The run's folder.
        name: The folder's path relative to the root of all runs.
        config: The content of ``config.yaml``; empty for a later test.
        found: The content of ``metrics.json``, or of the refit's, without malformed values; empty if the run has not
            been tested.
        origin: The groups in ``provenance.json``.
    """

    folder: Path
    name: str
    config: dict[str, Any] = field(repr=False)
    found: dict[str, Any] = field(repr=False)
    origin: dict[str, Any] = field(repr=False)

    def at(self, key: str) -> Any:  # noqa: ANN401 (any value of a config)
        """Return the value of a dotted key of the config, or ``None`` if it is missing."""
        value: Any = self.config
        for part in key.split("."):
            value = value.get(part) if isinstance(value, dict) else None
        return value

    @property
    def data(self) -> str:
        """The data set's name."""
        name = self.origin.get("data", {}).get("name")
        return str(name or str(self.at("data.class_path") or "").rpartition(".")[2])

    @property
    def backbone(self) -> str:
        """The network's name."""
        return str(self.at("model.backbone.name") or self.found.get("network", {}).get("backbone", ""))

    @property
    def head(self) -> str:
        """The heads' names."""
        given = self.at("model.head") or []
        heads = [head for head in (given if isinstance(given, list) else [given]) if isinstance(head, dict)]
        names = " + ".join(str(head.get("class_path")).rpartition(".")[2] for head in heads)
        return names or str(self.found.get("network", {}).get("head", ""))

    @property
    def mode(self) -> str:
        """The kind of training; for a later test, the tested run."""
        if "test_of" in self.found:
            path = Path(str(self.found["test_of"]))
            run = path.parent.parent if path.parent.name == "checkpoints" else path
            trained = self.found.get("trained_on")
            warning = f", {trained} of its images trained on" if trained else ""
            return f"test of {run.parent.name if run.name == 'refit' else run.name}{warning}"
        epochs = self.at("trainer.max_epochs")
        start = self.at("model.start")
        parts = ["frozen" if not epochs else f"{epochs} gradient epochs"]
        parts += ["closing fit"] if epochs and self.at("model.closing_fit") else []
        parts += [f"from {start}"] if epochs and start not in (None, "frozen") else []
        parts += ["refit"] if self.at("run.refit") else []
        return ", ".join(parts)

    @cached_property
    def state(self) -> str:
        """``done``, ``running``, or ``stopped`` if the run ended early."""
        return "done" if "outputs" in self.found else "running" if is_held(self.folder) else "stopped"

    @property
    def metric(self) -> str:
        """The main metric, ``test/accuracy`` or ``test/mAP``; empty if the run was not tested."""
        metrics = self.found.get("metrics", {})
        return next((name for name in ("test/accuracy", "test/mAP") if metrics.get(name) is not None), "")

    @property
    def value(self) -> float | None:
        """The value of the main metric, in [0, 1]."""
        return float(self.found["metrics"][self.metric]) if self.metric else None

    @property
    def interval(self) -> dict[str, Any] | None:
        """The 95 % confidence interval of the main metric: ``low``, ``high``, and its method ``by``."""
        found: dict[str, Any] | None = self.found.get("intervals", {}).get(self.metric)
        return found

    @cached_property
    def date(self) -> datetime:
        """The time at which the run started."""
        files = (self.folder / name for name in ("config.yaml", "metrics.json"))
        return datetime.fromtimestamp(next(file.stat().st_mtime for file in files if file.is_file()))

    @cached_property
    def size(self) -> int:
        """Bytes on disk; hard links to the same file count once."""
        sizes: dict[tuple[int, int], int] = {}
        for place, _, names in os.walk(self.folder):
            for name in names:
                try:
                    status = Path(place, name).lstat()
                except OSError:  # a running process has just deleted the file
                    continue
                sizes[status.st_dev, status.st_ino] = status.st_size
        return sum(sizes.values())


#: Sort keys of runs, and whether the order is descending.
SORTS: dict[str, tuple[Callable[[Entry], Any], bool]] = {
    "name": (lambda entry: entry.name, False),
    "data": (lambda entry: (entry.data, entry.name), False),
    "backbone": (lambda entry: (entry.backbone, entry.name), False),
    "head": (lambda entry: (entry.head, entry.name), False),
    "mode": (lambda entry: (entry.mode, entry.name), False),
    "accuracy": (lambda entry: -1.0 if entry.value is None else entry.value, True),
    "date": (lambda entry: entry.date, True),
    "size": (lambda entry: entry.size, True),
}


def find_runs(root: Path) -> list[Entry]:
    """Find all runs below a folder. Each run is found once, even if links lead to it.

    Raises:
        CxlpError: If the folder does not exist, or a folder in it cannot be listed.
    """
    if not root.is_dir():
        raise CxlpError(f"{root} is not a folder: set --root to the folder of the runs")
    try:
        return list(_entries(root, root, DEPTH, set()))
    except OSError as error:
        raise CxlpError(f"{error.filename} cannot be listed: {error.strerror}") from error


def _entries(place: Path, root: Path, depth: int, seen: set[Path]) -> Iterator[Entry]:
    real = place.resolve()
    if real in seen:
        return
    seen.add(real)
    if (entry := read_entry(place, root)) is not None:
        yield entry
    elif depth:
        for folder in sorted(place.iterdir()):
            # A link to a folder in the root is skipped, because that folder is found under its own name.
            is_inner_link = folder.is_symlink() and folder.resolve().is_relative_to(root.resolve())
            skipped = is_inner_link or folder.name.startswith(".") or folder.name in _SKIPPED
            if folder.is_dir() and not skipped:
                yield from _entries(folder, root, depth - 1, seen)


def read_entry(folder: Path, root: Path) -> Entry | None:
    """Read a run or a later test; return ``None`` if the folder is neither.

    A run has a ``config.yaml`` with the groups of keys of ``train.py``. A later test has a ``metrics.json`` that names
    the tested checkpoint. Broken files are treated as missing.
    """
    config = _read(folder / "config.yaml")
    results = [found for place in (folder, folder / "refit") if (found := _read(place / "metrics.json"))]
    found = _well_formed(results[-1]) if results else {}
    if not all(isinstance(config.get(group), dict) for group in _GROUPS):
        if "test_of" not in found or (folder / "config.yaml").exists():
            return None
        config = {}
    name = folder.relative_to(root).as_posix() if folder.is_relative_to(root) else str(folder)
    origin = {key: part for key, part in _read(folder / "provenance.json").items() if isinstance(part, dict)}
    return Entry(folder, name, config, found, origin)


def _well_formed(found: dict[str, Any]) -> dict[str, Any]:
    """Remove values from the content of a ``metrics.json`` whose types a run never writes."""
    kinds: dict[str, Callable[[Any], bool]] = {
        "metrics": lambda value: value is None or _is_number(value),
        "intervals": lambda value: (
            isinstance(value, dict) and _is_number(value.get("low")) and _is_number(value.get("high")) and "by" in value
        ),
        "images": _is_number,
        "seconds": _is_number,
        "network": lambda value: isinstance(value, str),
    }
    for group, fits in kinds.items():
        part = found.get(group)
        found[group] = {key: value for key, value in part.items() if fits(value)} if isinstance(part, dict) else {}
    return found


def _is_number(value: Any) -> bool:  # noqa: ANN401 (any value of a file)
    return isinstance(value, int | float)


def choose(entries: Sequence[Entry], names: Sequence[str], root: Path) -> list[Entry]:
    """Return the runs with the given names or paths, without duplicates.

    Raises:
        CxlpError: If a run does not exist.
    """
    known = {entry.name: entry for entry in entries}
    chosen: dict[Path, Entry] = {}
    for name in names:
        path = Path(name)
        entry = known.get(name.rstrip("/")) or (read_entry(path, root) if path.is_dir() else None)
        if entry is None:
            raise CxlpError(f"there is no run {name!r} in {root}. {did_you_mean(name, known)}")
        chosen.setdefault(entry.folder.resolve(), entry)
    return list(chosen.values())


def matches(entry: Entry, text: str) -> bool:
    """Return whether any column of a run contains a text, ignoring case."""
    columns = (entry.name, entry.data, entry.backbone, entry.head, entry.mode, entry.state)
    return any(text.casefold() in column.casefold() for column in columns)


def differing(entries: Sequence[Entry]) -> dict[str, list[str]]:
    """Return the keys whose values differ among the runs' configs, with each run's value as text.

    The keys of the group ``run``, such as names and folders, are left out.
    """
    flat = [dict(_leaves(entry.config)) for entry in entries]
    keys = dict.fromkeys(key for leaves in flat for key in leaves if not key.startswith(("run.", "config")))
    rows = {key: [leaves.get(key, "") for leaves in flat] for key in keys}
    return {key: values for key, values in rows.items() if len(set(values)) > 1}


def _leaves(value: Any, prefix: str = "") -> Iterator[tuple[str, str]]:  # noqa: ANN401 (plain values)
    if isinstance(value, dict) and value:
        for key, part in value.items():
            yield from _leaves(part, prefix if key == "init_args" else f"{prefix}.{key}".lstrip("."))
    elif isinstance(value, list) and any(isinstance(part, dict) for part in value):
        for number, part in enumerate(value, 1):
            yield from _leaves(part, f"{prefix}.{number}")
    else:
        yield prefix, "" if value is None else ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def _read(file: Path) -> dict[str, Any]:
    """Read a JSON or YAML file; return an empty mapping if it is missing or broken."""
    try:
        text = file.read_text(encoding="utf-8")
        loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
        found = json.loads(text) if file.suffix == ".json" else yaml.load(text, loader)
    except (OSError, ValueError, yaml.YAMLError):
        return {}
    return found if isinstance(found, dict) else {}
