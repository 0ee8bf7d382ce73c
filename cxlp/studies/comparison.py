"""A comparison: run several systems on one benchmark, one after another, and continue after an interruption."""

import json
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cxlp.runs.cli import parse
from cxlp.runs.folder import finished, run_in
from cxlp.studies.identity import Identities, difference, name_of, read_identity, write_identity
from cxlp.studies.layers import name_layers
from cxlp.studies.rows import Row, read_row
from cxlp.studies.systems import Network
from cxlp.utils.errors import CxlpError
from cxlp.utils.progress import say


@dataclass(frozen=True)
class System:
    """One row of the table.

    Attributes:
        name: The name that the table shows.
        network: Layers and heads that replace those of the configs, see :mod:`cxlp.studies.systems`; ``None`` keeps
            the configs' network.
        options: Additional arguments of ``train.py``.
    """

    name: str
    network: Network | None = None
    options: tuple[str, ...] = ()


class Comparison:
    """A folder with one run for each system and seed.

    The name of a run's folder is the system's name and a hash of everything that the results depend on, see
    :class:`~cxlp.studies.identity.Identities`. Repeating a command therefore reuses its finished runs, but never runs
    of another command, or of other images, labels or code.

    Args:
        arguments: Arguments of ``train.py`` for all systems.
        folder: The folder for runs, table and pictures.
        metric: ``accuracy`` or ``mAP``.
        store: The folder in which features are stored for later runs; ``None`` stores none.
        seeds: The seeds with which each system is run; ``None`` is the configs' own seed.
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
        self._identities = Identities()

    def run(self, systems: Sequence[System]) -> tuple[list[Row], list[str]]:
        """Do all runs that are not finished yet.

        Returns:
            The rows of the systems that have a result for each seed, and the names of the systems that failed.

        Raises:
            CxlpError: If the folder cannot be created.
        """
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise CxlpError(f"cannot create the folder {self.folder}: {error.strerror}. Give another --out") from error
        rows: list[Row] = []
        failed: list[str] = []
        for number, system in enumerate(systems, 1):
            places = []
            for seed in self.seeds:
                name = system.name if seed is None else f"{system.name}, seed {seed}"
                try:
                    places.append(self._run(system, seed, f"[{number}/{len(systems)}] {name}"))
                except CxlpError as error:  # the other runs do not depend on this one
                    say(f"[{number}/{len(systems)}] {name}: {error}")
                    failed.append(name)
                finally:
                    os.environ.pop("WANDB_RUN_ID", None)  # a user's run id applies to the first run only
            if len(places) < len(self.seeds):
                continue
            try:
                rows.append(read_row(system.name, places, self.metric))
            except CxlpError as error:
                say(f"[{number}/{len(systems)}] {system.name}: {error}")
                failed.append(system.name)
        return rows, failed

    def name_layers(self, arguments: Sequence[str]) -> list[str]:
        """Replace ``layers: auto`` by the names of two layers, see :func:`cxlp.studies.layers.name_layers`."""
        return name_layers(arguments, self.folder, self._identities)

    def _run(self, system: System, seed: int | None, heading: str) -> Path:
        """Run a system with a seed, unless that run is finished; return the folder of the results."""
        seeded = [] if seed is None else ["--seed_everything", str(seed)]
        arguments = self.name_layers([*self._arguments(system), *seeded])
        name, identity = self._identify(system, arguments)
        place = self.folder / name
        results = finished(place)
        if results is not None:
            say(f"{heading}: done already, in {results}")
            return results
        say(f"{heading}: {place}{self._earlier(name, identity)}")
        write_identity(self.folder / "logs" / f"{name}.json", identity)
        own = ["--run.cost", "true"]
        if self.store is not None:
            own += ["--model.frozen.store", str(self.store)]
        if not any(a.startswith("--run.group") for a in arguments):
            own += ["--run.group", self.folder.name]
        if not any(a.startswith("--run.log_model") for a in arguments):
            own += ["--run.log_model", "false"]  # twenty uploaded checkpoints would fill an account
        return run_in(place, [*arguments, *own], self.folder / "logs" / f"{place.name}.txt")

    def _arguments(self, system: System) -> list[str]:
        """Return the arguments of ``train.py`` that define a system."""
        if system.network is None:
            return [*self.arguments, *system.options]
        # Later arguments override earlier ones, so the system's network comes after the user's arguments.
        heads = system.network["heads"]
        layers, head = json.dumps(system.network["layers"]), json.dumps(heads if len(heads) > 1 else heads[0])
        return [*self.arguments, "--model.backbone.layers", layers, "--model.head", head, *system.options]

    def _identify(self, system: System, arguments: Sequence[str]) -> tuple[str, dict[str, Any]]:
        """Return the name of a run, which contains a hash of its identity, and the identity."""
        identity = self._identities.of(parse(arguments))
        return f"{_plain(system.name)}-{name_of(identity)}", identity

    def _earlier(self, name: str, identity: dict[str, Any]) -> str:
        """Describe how an earlier result of the same system differs, such as other images; empty without one."""
        for file in sorted((self.folder / "logs").glob(f"{name[:-8]}????????.json")):
            known = read_identity(file)
            place = finished(self.folder / file.stem)
            if known and place and file.stem != name and known.get("config") == identity["config"]:
                return f" (not done yet: the results in {place} are of {difference(known, identity)})"
        return ""


def without(arguments: Sequence[str], *prefixes: str) -> list[str]:
    """Return the arguments without options that start with one of the prefixes, and without their values."""
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
    """Turn a system's name into a part of a file name, short enough for the limit of 255 characters."""
    return re.sub(r"[^A-Za-z0-9]+", "-", name)[:100].strip("-")
