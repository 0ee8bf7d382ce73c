"""Several systems on one benchmark: run one after another, taken up where they were stopped."""

import json
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b, file_digest
from pathlib import Path

from cxlp.backbones.library import users_own
from cxlp.data.datamodule import ImageDataModule
from cxlp.runs.cli import parse, parts_of
from cxlp.runs.folder import finished, run_in, say
from cxlp.runs.provenance import PACKAGES
from cxlp.runs.recipe import ModelConfig
from cxlp.studies.systems import Network
from cxlp.studies.tables import Row, read_row
from cxlp.utils.errors import CxlpError
from cxlp.utils.fingerprint import code_digest, digest, library_versions

#: The rooms whose code results depend on.
CODE = ("utils", "backbones", "heads", "models", "data", "metrics", "frozen", "tasks", "runs")


@dataclass(frozen=True)
class System:
    """One row of the table.

    Attributes:
        name: For people.
        network: Layers and heads in the place of the configs' own, see :mod:`cxlp.studies.systems`; ``None``: theirs.
        options: Further arguments of ``train.py``.
    """

    name: str
    network: Network | None = None
    options: tuple[str, ...] = ()


class Comparison:
    """A folder with one run for each system and seed.

    A run's folder bears the system's name and a number that stands for its whole resolved config, and for the contents
    of the images and of the files with weights that it names.
    So the same command takes up what is there, and another one does not mix with it.

    Args:
        arguments: Of ``train.py``, for all systems.
        folder: Where runs, table and pictures go.
        metric: ``accuracy`` or ``mAP``.
        store: Where features are kept for later runs; ``None``: nowhere.
        seeds: Each system is run with each of them; ``None``: the configs' own.
    """

    def __init__(
        self,
        arguments: Sequence[str],
        folder: Path,
        metric: str,
        store: Path | None,
        seeds: Sequence[int | None] = (None,),
    ) -> None:
        self.arguments, self.folder, self.metric, self.store = tuple(arguments), folder, metric, store
        self.seeds = tuple(seeds)
        self._files: dict[Path, str] = {}  # digests of contents: images are read once, not once per system
        self._data: dict[str, str] = {}  # digests of data sets, by their options

    def run(self, systems: Sequence[System]) -> tuple[list[Row], list[str]]:
        """Run what has not been run yet.

        Returns:
            The rows of the systems that have a result with each seed, and the names of those that failed.

        Raises:
            CxlpError: If there can be no such folder.
        """
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise CxlpError(f"cannot make the folder {self.folder}: {error.strerror}. Give another --out") from error
        rows: list[Row] = []
        failed: list[str] = []
        for number, system in enumerate(systems, 1):
            places = []
            for seed in self.seeds:
                name = system.name if seed is None else f"{system.name}, seed {seed}"
                try:
                    places.append(self._run(system, seed, f"[{number}/{len(systems)}] {name}"))
                except CxlpError as error:  # the others can do without it
                    say(f"[{number}/{len(systems)}] {name}: {error}")
                    failed.append(name)
            if len(places) < len(self.seeds):
                continue
            try:
                rows.append(read_row(system.name, places, self.metric))
            except CxlpError as error:
                say(f"[{number}/{len(systems)}] {system.name}: {error}")
                failed.append(system.name)
        return rows, failed

    def _run(self, system: System, seed: int | None, heading: str) -> Path:
        """Run a system with a seed, unless that is done; returns the folder of its results."""
        arguments = self._arguments(system)
        if seed is not None:
            arguments += ["--seed_everything", str(seed)]
        place = self.folder / self._run_name(system, arguments)
        results = finished(place)
        if results is not None:
            say(f"{heading}: done already, in {results}")
            return results
        say(f"{heading}: {place}")
        own = ["--run.cost", "true"]
        if self.store is not None:
            own += ["--model.frozen.store", str(self.store)]
        if not any(a.startswith("--run.group") for a in arguments):
            own += ["--run.group", self.folder.name]
        if not any(a.startswith("--run.log_model") for a in arguments):
            own += ["--run.log_model", "false"]  # twenty checkpoints are for nobody's account
        return run_in(place, [*arguments, *own], self.folder / "logs" / f"{place.name}.txt")

    def _arguments(self, system: System) -> list[str]:
        """The arguments of ``train.py`` that say what a system is."""
        if system.network is None:
            return [*self.arguments, *system.options]
        # On the command line, after all that it says of the network: what comes last counts.
        heads = system.network["heads"]
        layers, head = json.dumps(system.network["layers"]), json.dumps(heads if len(heads) > 1 else heads[0])
        return [*self.arguments, "--model.backbone.layers", layers, "--model.head", head, *system.options]

    def _run_name(self, system: System, arguments: Sequence[str]) -> str:
        """A run's name: another one where anything in its resolved config is another."""
        resolved = parse(arguments)
        parts, config = parts_of(resolved), resolved.as_dict()
        model: ModelConfig = parts["model"]
        described = {key: config[key] for key in ("seed_everything", "model", "data", "trainer")}
        described["model"]["frozen"]["store"] = None  # where features are kept changes nothing
        for shown in ("enable_progress_bar", "enable_model_summary", "logger"):
            del described["trainer"][shown]
        if config["run"]["refit"]:
            described["refit"] = config["run"]["refit"]
        # Results of other code, or of other libraries, are not these; nor those of other images, or other weights.
        own = [type(parts["data"]), *map(type, model.heads), *users_own(model.backbone.name)]
        described["code"] = [code_digest(CODE, own), library_versions(PACKAGES)]
        options = json.dumps(config["data"], sort_keys=True, default=str)
        if options not in self._data:
            self._data[options] = self._digest_of_data(parts["data"])
        weights = [Path(given) for given in (model.backbone.weights, model.start) if given and Path(given).is_file()]
        described["contents"] = [self._data[options], *map(self._digest_of_file, weights)]
        text = json.dumps(described, sort_keys=True, default=str)
        return f"{_plain(system.name)}-{digest(text, size=4)}"

    def _digest_of_data(self, data: ImageDataModule) -> str:
        """Digest all images by their contents, boxes and labels.

        What is held out of the training images counts by the options that choose it: it may be drawn anew each time.
        """
        data.prepare_data()
        data.setup()
        samples = [(name == "test", s) for name, split in data.splits.items() for s in split.samples]
        parts = [(test, os.path.relpath(s.path, data.root), s.box, s.label, s.path) for test, s in samples]
        found = sorted(str((*part, self._digest_of_file(path))) for *part, path in parts)
        return digest(data.classes, *found)

    def _digest_of_file(self, path: Path) -> str:
        if path not in self._files:
            with path.open("rb") as file:
                self._files[path] = file_digest(file, blake2b).hexdigest()
        return self._files[path]


def without(arguments: Sequence[str], *prefixes: str) -> list[str]:
    """Leave out options that begin so, with their values."""
    left: list[str] = []
    rest = list(arguments)
    while rest:
        argument = rest.pop(0)
        if not argument.startswith(prefixes):
            left.append(argument)
        elif "=" not in argument and rest:
            rest.pop(0)
    return left


def _plain(name: str) -> str:
    """A system's name as part of a file's, which has at most 255 characters."""
    return re.sub(r"[^A-Za-z0-9]+", "-", name)[:100].strip("-")


def check_names(wanted: Sequence[str], known: Sequence[str]) -> None:
    """Refuse unknown systems.

    Raises:
        CxlpError: Names the known ones.
    """
    unknown = [name for name in wanted if name not in known]
    if unknown:
        raise CxlpError(f"unknown system {unknown[0]!r}. Valid: {', '.join(map(repr, known))}")
