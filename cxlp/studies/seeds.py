"""``train.py --seeds N``: the same run with several seeds, one after another, and what they have in common."""

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

from jsonargparse import Namespace
from rich.console import Console
from rich.table import Table

from cxlp.reports.formatting import as_markdown, as_text, spread
from cxlp.runs.cli import parse
from cxlp.runs.folder import finished, last_checkpoint, run_in, say
from cxlp.runs.launch import started_by_srun
from cxlp.studies.identity import Identities, difference, read_identity, settings_of, write_identity
from cxlp.studies.tables import read_results
from cxlp.utils.errors import CxlpError
from cxlp.utils.files import write_whole
from cxlp.utils.program import train_program


def seeds_of(config: Namespace, count: int) -> list[int]:
    """The seeds of a series: from the configured one upward.

    Raises:
        CxlpError: If there is none to count from, or nothing to count; or under a launcher of several processes.
    """
    first = config["seed_everything"]
    if count < 1:
        raise CxlpError(f"seeds is {count}: it must be 1 or more")
    if count > 10_000 or first + count > 2**32:
        raise CxlpError(
            f"seeds is {count}, counted from seed_everything {first}: at most 10,000 are taken, none above 2^32 - 1"
        )
    if "RANK" in os.environ or started_by_srun():
        raise CxlpError(
            "seeds: a series starts its runs itself, and cannot be one process of many that torchrun or srun has "
            "started. Start one job per seed, with --seed_everything 0, 1, ...; or, on one machine, "
            f"{train_program()} --seeds with --trainer.devices, which launches the processes of each run"
        )
    return list(range(first, first + count))


def run_seeds(arguments: Sequence[str], config: Namespace, folder: Path) -> int:
    """Do what has not been done yet, and write ``results.json`` and ``results.md``.

    Args:
        arguments: Of ``train.py``.
        config: Parsed of them.
        folder: Of the series; each run has a folder in it.

    Returns:
        The exit status: 1 if a run failed.

    Raises:
        CxlpError: If the folder holds something else.
    """
    seeds = seeds_of(config, config["seeds"])
    if config["ckpt_path"] is not None:
        raise CxlpError("ckpt_path: the runs of --seeds are taken up by the same command with the same --run.name")
    if (folder / "config.yaml").is_file():
        raise CxlpError(f"{folder} holds a single run: choose another --run.name for a series")
    own = ["--seeds", "null", *([] if config["run"]["group"] else ["--run.group", folder.name])]
    identities = Identities()
    results: dict[int, dict[str, float]] = {}
    places: dict[int, Path] = {}
    for number, seed in enumerate(seeds, 1):
        place = folder / f"{folder.name}-seed{seed}"
        heading = f"[{number}/{len(seeds)}] seed {seed}"
        given = [*arguments, *own, "--seed_everything", str(seed)]
        try:
            identity = _identify(identities, given)
            check_same_run(place, given, identity)
            done = finished(place)
            if identity and not done:
                write_identity(_record(place), identity)
            say(f"{heading}: {place}" if done is None else f"{heading}: done already, in {done}")
            places[seed] = done or run_in(place, given, folder / "logs" / f"{place.name}.txt")
            results[seed] = read_results(places[seed])["metrics"]
        except CxlpError as error:  # the others can do without it
            say(f"{heading}: {error}")
        finally:
            os.environ.pop("WANDB_RUN_ID", None)  # it is one run's: the first one's
    failed = [seed for seed in seeds if seed not in results]
    if results:
        _write(folder, results, places, failed)
    for seed in failed:
        say(f"no result: seed {seed}")
    return 1 if failed else 0


def _record(place: Path) -> Path:
    """The file with the identity that a run had when it began."""
    return place.parent / "logs" / f"{place.name}.json"


def _identify(identities: Identities, arguments: Sequence[str]) -> dict[str, Any] | None:
    try:
        return identities.of(parse(arguments))
    except CxlpError:  # the run says so itself
        return None


def check_same_run(place: Path, arguments: Sequence[str], identity: Mapping[str, Any] | None = None) -> None:
    """Refuse to take a run for done, or to go on with it, that another command began, or this one on other images.

    Args:
        place: The run's folder.
        arguments: Of ``train.py``, for that run.
        identity: What they stand for now; ``None``: not known, so that only the keys are compared.

    Raises:
        CxlpError: Names the first key that differs, or what else does.
    """
    if finished(place) is None and last_checkpoint(place) is None:
        return  # nothing to take over
    theirs, ours = (settings_of(parse(given)) for given in (["--config", str(place / "config.yaml")], arguments))
    for key in theirs | ours:
        if theirs.get(key) != ours.get(key):
            raise CxlpError(
                f"{place} is a run with {key} {theirs.get(key)!r}, not {ours.get(key)!r}: choose another --run.name"
            )
    known = read_identity(_record(place))
    differs = difference(known, identity) if known and identity else None
    if differs:
        raise CxlpError(f"{place} has results of {differs}: choose another --run.name, or delete it to do it again")


def summarise(results: Mapping[int, Mapping[str, float | None]]) -> dict[str, dict[str, Any]]:
    """Mean and deviation of each metric.

    Args:
        results: Metrics by seed; ``None`` is one that is not defined.

    Returns:
        By metric: ``values`` in the order of the seeds, ``mean`` and ``deviation`` (of the sample, n - 1) of those
        that are defined; ``None`` where there are too few.
    """
    found = {}
    for metric in dict.fromkeys(key for metrics in results.values() for key in metrics):
        values = [metrics.get(metric) for metrics in results.values()]
        defined = [value for value in values if value is not None]
        found[metric] = {
            "values": values,
            "mean": mean(defined) if defined else None,
            "deviation": spread(defined),
        }
    return found


def _write(folder: Path, results: dict[int, dict[str, float]], places: dict[int, Path], failed: list[int]) -> None:
    metrics = summarise(results)
    summary = {
        "seeds": list(results),
        "failed": failed,
        "runs": [str(places[seed]) for seed in results],
        "metrics": metrics,
    }
    write_whole(folder / "results.json", json.dumps(summary, indent=2, allow_nan=False) + "\n")
    heads = ["metric", "mean", "±", *(f"seed {seed}" for seed in results)]
    rows = [
        [name, *("" if v is None else as_text(name, v) for v in (found["mean"], found["deviation"], *found["values"]))]
        for name, found in metrics.items()
    ]
    note = "\n±: standard deviation of the sample, n - 1.\n"
    missing = f"\nNo result: seed {', '.join(map(str, failed))}.\n" if failed else ""
    write_whole(folder / "results.md", as_markdown(heads, rows) + note + missing)
    shown = Table(title=f"{folder.name}: {len(results)} seeds")
    for head in heads:
        shown.add_column(head, justify="left" if head == "metric" else "right")
    for row in rows:
        shown.add_row(*row)
    Console().print(shown)
    say(f"Everything is in {folder} (results.json, results.md)")
