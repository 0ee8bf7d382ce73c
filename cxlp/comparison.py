"""Several systems on one benchmark: run one after another, taken up where they were stopped, put into one table."""

import csv
import io
import json
import math
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any

from jsonargparse import Namespace
from pytorch_lightning.loggers import WandbLogger

import cxlp
from cxlp.callbacks import write_whole
from cxlp.cli import parse
from cxlp.errors import CxlpError
from cxlp.locking import hold, let_go
from cxlp.logging import RunConfig, build_loggers
from cxlp.network import NetworkConfig
from cxlp.reports import draw_costs, draw_differences, draw_sweep
from cxlp.representations.systems import BASELINE, RECALLED

#: Phases of a run that are no part of fitting.
_NO_FIT = ("test", "validation", "total", "since resumed")

#: Heads of the table; the recalled column comes only with the paper's backbone.
RECALLED_HEAD = "paper (recalled, check the PDF)"


@dataclass(frozen=True)
class System:
    """One row of the table.

    Attributes:
        name: For people.
        network: What it is, in the place of the configs' network; ``None``: theirs.
        options: Further arguments of ``train.py``.
    """

    name: str
    network: NetworkConfig | None = None
    options: tuple[str, ...] = ()


@dataclass(frozen=True)
class Row:
    """What came out of a system.

    Attributes:
        name: The system's.
        quality: Accuracy or mean average precision of the test images, in percent.
        cost: See :func:`cxlp.cost.measure_cost`.
        row_bytes: Of an image's stored features.
        peak_bytes: Most memory of the whole run.
        fit_seconds: From images to the solution.
        per_class: Accuracy or average precision by class, in percent.
    """

    name: str
    quality: float
    cost: dict[str, float]
    row_bytes: int
    peak_bytes: int
    fit_seconds: float
    per_class: dict[str, float]

    @property
    def seconds(self) -> float:
        """Of a new image: views, forward passes, encoding, classification (decoding not counted)."""
        return self.cost["network"] + self.cost["encoding"] + self.cost["classification"]


class Comparison:
    """A folder with one run for each system.

    A run's folder bears the system's name and a number that stands for its whole resolved config.
    So the same command takes up what is there, and another one does not mix with it.

    Args:
        arguments: Of ``train.py``, for all systems.
        folder: Where runs, table and pictures go.
        metric: ``accuracy`` or ``mAP``.
        store: Where features are kept for later runs; ``None``: nowhere.
    """

    def __init__(self, arguments: Sequence[str], folder: Path, metric: str, store: Path | None) -> None:
        self.arguments, self.folder, self.metric, self.store = tuple(arguments), folder, metric, store

    def run(self, systems: Sequence[System]) -> tuple[list[Row], list[str]]:
        """Run what has not been run yet.

        Returns:
            The rows of those that have a result, and the names of those that failed.
        """
        rows, failed = [], []
        for number, system in enumerate(systems, 1):
            heading = f"[{number}/{len(systems)}] {system.name}"
            try:
                arguments = self._arguments(system)
                place = self.folder / self._run_name(system, arguments)
                if (place / "metrics.json").is_file():
                    _say(f"{heading}: done already, in {place}")
                else:
                    _say(f"{heading}: {place}")
                    self._run(arguments, place)
                rows.append(read_row(system.name, place, self.metric))
            except CxlpError as error:  # the others can do without it
                _say(f"{heading}: {error}")
                failed.append(system.name)
        return rows, failed

    def _arguments(self, system: System) -> list[str]:
        """The arguments of ``train.py`` that say what a system is."""
        if system.network is None:
            return [*self.arguments, *system.options]
        # JSON is YAML.
        content = json.dumps({"model": {"init_args": {"network": asdict(system.network)}}}, indent=2) + "\n"
        number = blake2b(content.encode(), digest_size=4).hexdigest()
        file = self.folder / "systems" / f"{_plain(system.name)}-{number}.yaml"
        if not file.is_file():
            file.parent.mkdir(parents=True, exist_ok=True)
            write_whole(file, content)
        # What the command line says of the network is in it already; there, it would override the system.
        return [*without(self.arguments, "--model.network.", "--model.init_args.network."),
                "--config", str(file), *system.options]  # fmt: skip

    def _run_name(self, system: System, arguments: Sequence[str]) -> str:
        """A run's name: another one where anything in its resolved config is another."""
        config = parse(arguments).as_dict()
        if system.network is not None and network_of(config) != system.network:
            raise CxlpError(
                "the command line sets the network as a whole (--model, --model.network): put that into a config, of "
                "which systems can be made"
            )
        described = {key: config[key] for key in ("seed_everything", "model", "data", "trainer")}
        described["model"]["init_args"]["frozen"]["store"] = None  # where features are kept changes nothing
        text = json.dumps([cxlp.__version__, described], sort_keys=True, default=str)
        return f"{_plain(system.name)}-{blake2b(text.encode(), digest_size=4).hexdigest()}"

    def _log(self, place: Path) -> Path:
        return self.folder / "logs" / f"{place.name}.txt"

    def _run(self, arguments: Sequence[str], place: Path) -> None:
        resumed: list[str] = []
        if place.is_dir():  # what a run left that was stopped
            let_go(hold(place))
            last = place / "checkpoints" / "last.ckpt"
            if last.is_file():
                resumed = ["--ckpt_path", str(last)]
            else:
                shutil.rmtree(place)
        self._log(place).parent.mkdir(parents=True, exist_ok=True)
        own = ["--run.root", str(self.folder), "--run.name", place.name, "--run.cost", "true"]
        if self.store is not None:
            own += ["--model.frozen.store", str(self.store)]
        group = [] if any(a.startswith("--run.group") for a in arguments) else ["--run.group", self.folder.name]
        command = [sys.executable, "-m", "cxlp.cli", *arguments, *own, *group, *resumed]
        with self._log(place).open("w") as log:
            if subprocess.run(command, stdout=log, check=False).returncode:
                raise CxlpError(f"failed, see above and {self._log(place)}")


def network_of(config: dict[str, Any]) -> NetworkConfig:
    """Read the network of a resolved config."""
    return NetworkConfig.from_values(_values(config["model"]["init_args"]["network"]))


def _values(config: Any) -> Any:  # noqa: ANN401 (a config's part)
    """Plain values: the parser describes members of lists as classes with arguments, in namespaces."""
    if isinstance(config, Namespace):
        config = config.as_dict()
    if isinstance(config, dict):
        if config.keys() == {"class_path", "init_args"}:
            return _values(config["init_args"])
        return {key: _values(value) for key, value in config.items()}
    return tuple(map(_values, config)) if isinstance(config, list | tuple) else config


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


def read_row(name: str, place: Path, metric: str) -> Row:
    """Read what a run left."""
    found = json.loads((place / "metrics.json").read_text())
    if f"test/{metric}" not in found["metrics"]:
        raise CxlpError(f"{place / 'metrics.json'} has no test/{metric}")
    # Of a fit on features that an earlier run made, what they cost there belongs to it.
    earlier = found.get("features made by an earlier run", {})
    seconds = {**found["seconds"], **earlier.get("seconds", {})}
    with (place / "per_class.csv").open(newline="") as file:
        records = list(csv.DictReader(file))
    column = "AP" if metric == "mAP" else "accuracy"
    return Row(
        name,
        100 * found["metrics"][f"test/{metric}"],
        found["cost"],
        found["cost"]["bytes"],
        max(found["memory"].get("peak_bytes", 0), earlier.get("peak_bytes", 0)),
        sum(spent for phase, spent in seconds.items() if phase not in _NO_FIT),
        {record["class"]: 100 * float(record[column]) for record in records if record[column]},
    )


def table(rows: Sequence[Row], metric: str, data: str | None) -> tuple[list[str], list[list[Any]]]:
    """Tabulate rows, plain values.

    Args:
        rows: In the order of the table.
        metric: ``accuracy`` or ``mAP``.
        data: The data set's name, for a column of recalled values; ``None``: no such column.
    """
    heads = [
        "system",
        f"{metric} %",
        "size",
        "passes",
        "network ms",
        "encoding ms",
        "SVM ms",
        "x bare",
        "kB",
        "peak MB",
        "fit s",
    ]
    values: list[list[Any]] = []
    for row in rows:
        milliseconds = [round(1000 * row.cost[part], 2) for part in ("network", "encoding", "classification")]
        values.append(
            [
                row.name, round(row.quality, 1), int(row.cost["dimension"]), int(row.cost["passes"]), *milliseconds,
                round(row.seconds / row.cost["bare pass"], 2),
                round(row.row_bytes / 1000, 1), round(row.peak_bytes / 1e6), round(row.fit_seconds, 1),
            ]
        )  # fmt: skip
    if data is not None:
        heads.append(RECALLED_HEAD)
        for record in values:
            record.append(RECALLED.get(record[0], {}).get(data, ""))
    return heads, values


def as_markdown(heads: Sequence[str], values: Sequence[Sequence[Any]]) -> str:
    """Write a table in Markdown."""
    lines = [heads, ["---", *["---:"] * (len(heads) - 1)], *values]
    return "".join("| " + " | ".join(map(str, line)) + " |\n" for line in lines)


def as_csv(heads: Sequence[str], values: Sequence[Sequence[Any]]) -> str:
    """Write a table as CSV."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([heads, *values])
    return text.getvalue()


def write_reports(
    comparison: Comparison, rows: Sequence[Row], data: str | None, option: str | None, run: RunConfig
) -> list[Path]:
    """Write table and pictures into the comparison's folder and into a wandb run.

    Args:
        comparison: Whose.
        rows: Its results, at least one.
        data: See :func:`table`.
        option: The option of a sweep; ``None``: the rows are systems.
        run: The wandb options of the runs.

    Returns:
        The files.
    """
    folder, metric = comparison.folder, comparison.metric
    heads, values = table(rows, metric, data)
    note = (
        "\nsize: of the vector; kB: of a stored one; passes, ms: per image, decoding not counted; x bare: these ms "
        "together, in bare forward passes of one image up to the highest layer of the row; peak MB: of the whole run; "
        "fit s: from images to SVMs.\n"
    )
    files: dict[str, str] = {"results.md": as_markdown(heads, values) + note, "results.csv": as_csv(heads, values)}
    pictures: dict[str, bytes] = {}
    quality = [row.quality for row in rows]
    if option is None:
        pictures["accuracy_against_time.png"] = draw_costs(
            [row.name for row in rows], quality, [row.seconds for row in rows], metric
        )
    else:
        pictures["sweep.png"] = draw_sweep(option, [row.name for row in rows], quality, metric)
    baseline = BASELINE if any(row.name == BASELINE for row in rows) else rows[0].name
    if len(rows) > 1:
        pictures["per_class.png"] = draw_differences({row.name: row.per_class for row in rows}, baseline)
    for name, text in files.items():
        write_whole(folder / name, text)
    for name, picture in pictures.items():
        write_whole(folder / name, picture)
    for logger in build_loggers(run, folder, None, 0):
        if isinstance(logger, WandbLogger):
            logger.log_table("compare/results", columns=heads, data=[list(map(_cell, record)) for record in values])
            for name in pictures:
                logger.log_image(f"compare/{Path(name).stem}", [str(folder / name)])
            logger.experiment.summary.update({f"{metric}/{row.name}": row.quality for row in rows})
            logger.experiment.finish()
    return [folder / name for name in (*files, *pictures)]


def _plain(name: str) -> str:
    """A system's name as part of a file's."""
    return re.sub(r"[^A-Za-z0-9]+", "-", name).strip("-")


def _say(line: str) -> None:
    print(line, flush=True)  # noqa: T201


def _cell(value: Any) -> Any:  # noqa: ANN401 (a table's cell)
    return math.nan if value == "" else value


def check_names(wanted: Sequence[str], known: Sequence[str]) -> None:
    """Refuse unknown systems.

    Raises:
        CxlpError: Names the known ones.
    """
    unknown = [name for name in wanted if name not in known]
    if unknown:
        raise CxlpError(f"unknown system {unknown[0]!r}. Valid: {', '.join(map(repr, known))}")
