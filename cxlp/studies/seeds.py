"""``train.py --seeds N``: the same run with several seeds, one after another, and what they have in common."""

import json
import os
from collections.abc import Mapping, Sequence
from filecmp import cmp
from pathlib import Path
from statistics import mean
from typing import Any

import pytorch_lightning as pl
from jsonargparse import Namespace
from rich.console import Console
from rich.table import Table

from cxlp.frozen.cache import digest_of_weights
from cxlp.reports.formatting import as_markdown, spread
from cxlp.runs.cli import parse, parts_of
from cxlp.runs.folder import finished, read_run, run_in
from cxlp.runs.launch import started_by_srun
from cxlp.runs.places import STARTS, last_checkpoint, start_checkpoint
from cxlp.runs.protocol import Images, check_classes, check_images, check_recipe, recipe_of
from cxlp.runs.provenance import git_state, versions
from cxlp.studies.identity import read_identity, settings_of
from cxlp.studies.layers import settled_by_first
from cxlp.studies.rows import is_incomplete, read_results
from cxlp.utils.errors import CxlpError
from cxlp.utils.files import write_whole
from cxlp.utils.program import train_program
from cxlp.utils.progress import say
from cxlp.utils.spelling import as_text

#: Keys that a run's results depend on, by their beginnings, which its checkpoints do not tell.
_KEYS = ("run.refit", "trainer.callbacks", "trainer.max_time")
#: Further ones: gradient steps take so many images.
_STEP = ("data.init_args.batch_size", "trainer.devices", "trainer.num_nodes")


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
        The exit status: 1 if a run failed; 3 if an output beside a run's result is missing.

    Raises:
        CxlpError: If the folder holds something else.
    """
    seeds = seeds_of(config, config["seeds"])
    if config["ckpt_path"] is not None:
        raise CxlpError("ckpt_path: the runs of --seeds are taken up by the same command with the same --run.name")
    if (folder / "config.yaml").is_file():
        raise CxlpError(f"{folder} holds a single run: choose another --run.name for a series")
    own = ["--seeds", "null", *([] if config["run"]["group"] else ["--run.group", folder.name])]
    results: dict[int, dict[str, float]] = {}
    places: dict[int, Path] = {}
    incomplete = False
    for number, seed in enumerate(seeds, 1):
        place = folder / f"{folder.name}-seed{seed}"
        heading = f"[{number}/{len(seeds)}] seed {seed}"
        given = [*arguments, *own, *settled_by_first(config, folder), "--seed_everything", str(seed)]
        try:
            check_same_run(place, parse(given))
            done = finished(place)
            say(f"{heading}: {place}" if done is None else f"{heading}: done already, in {done}")
            places[seed] = done or run_in(place, given, folder / "logs" / f"{place.name}.txt")
            written = read_results(places[seed])
            results[seed], incomplete = written["metrics"], incomplete or is_incomplete(written)
        except CxlpError as error:  # the others can do without it
            say(f"{heading}: {error}")
        finally:
            os.environ.pop("WANDB_RUN_ID", None)  # it is one run's: the first one's
    failed = [seed for seed in seeds if seed not in results]
    if results:
        _write(folder, results, places, failed)
    for seed in failed:
        say(f"no result: seed {seed}")
    return 1 if failed else 3 if incomplete else 0


def check_same_run(place: Path, config: Namespace) -> None:
    """Refuse to take a run for done, or to go on with it, that has another recipe, other images or other weights.

    All of it is compared with what the run's own checkpoint tells. Other code or libraries are told, and not refused.

    Args:
        place: The run's folder.
        config: What the run would have now.

    Raises:
        CxlpError: Names the first thing that differs.
    """
    best = place / "checkpoints" / "best.ckpt"
    checkpoint = last_checkpoint(place) or (best if best.is_file() else None)
    if checkpoint is None:
        if finished(place) is None:
            return  # nothing to take over
        raise CxlpError(f"{place} has no checkpoint that tells what its results are of: choose another --run.name")
    saved = read_run(checkpoint)
    run = saved["cxlp_run"]
    try:
        check_recipe(run["recipe"], recipe_of(config))
        keys = (*_KEYS, *_STEP) if config["trainer"]["max_epochs"] else _KEYS
        known, given = (
            {key: value for key, value in settings_of(found).items() if key.startswith(keys)}
            for found in (parse(["--config", str(place / "config.yaml")]), config)
        )
        check_recipe(known, given)
        parts = parts_of(config)
        pl.seed_everything(config["seed_everything"], workers=True)  # in the order of a run, which draws from it
        data, model = parts["data"], parts["model"]
        data.prepare_data()
        data.setup()
        network = model.build(data.classes, data.multi_label)
        check_classes(saved["cxlp"]["network"]["classes"], data.classes)
        check_images(Images(**run["images"]), Images.of(data))
        start = place / "checkpoints" / "start.ckpt"
        same = model.start in STARTS or (start.is_file() and cmp(start, start_checkpoint(model.start), shallow=False))
        if not same or run["weights"] != digest_of_weights(network.backbone):
            raise CxlpError(
                f"model.{'backbone.weights' if same else 'start'} holds other weights than those of that run"
            )
    except CxlpError as error:
        raise CxlpError(f"{place} is another run, choose another --run.name: {error}") from error
    found = read_identity(place / "provenance.json") or {}
    facts = {"commit": found.get("git"), **found.get("versions", {})}
    others = [name for name, now in {"commit": git_state(), **versions()}.items() if facts.get(name) != now]
    if others:
        say(f"warning: {place} was begun with another version of {', '.join(others)}")


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
