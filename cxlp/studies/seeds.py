"""``train.py --seeds N``: a series of runs with different seeds, one after another, with mean and deviation."""

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
from cxlp.studies.layers import earlier_layers
from cxlp.studies.rows import is_incomplete, read_results
from cxlp.utils.errors import CxlpError
from cxlp.utils.files import write_whole
from cxlp.utils.program import train_program
from cxlp.utils.progress import say
from cxlp.utils.spelling import as_text

#: Prefixes of keys that affect the results but are not in a checkpoint.
_KEYS = ("run.refit", "trainer.callbacks", "trainer.max_time")
#: Additional keys with gradient descent: they determine the global batch size.
_STEP = ("data.init_args.batch_size", "trainer.devices", "trainer.num_nodes")


def seeds_of(config: Namespace, count: int) -> list[int]:
    """Return the seeds of a series, which are consecutive and start at ``seed_everything``.

    Raises:
        CxlpError: If ``count`` is less than 1 or more than 10,000, or a seed exceeds 2^32 - 1; or if torchrun or srun
            launched this process.
    """
    first = config["seed_everything"]
    if count < 1:
        raise CxlpError(f"seeds is {count}: it must be 1 or more")
    if count > 10_000 or first + count > 2**32:
        raise CxlpError(
            f"seeds is {count} and seed_everything is {first}: at most 10,000 seeds are allowed, up to 2^32 - 1"
        )
    if "RANK" in os.environ or started_by_srun():
        raise CxlpError(
            "seeds: a series launches its runs itself, so torchrun or srun must not launch it. Start one job per seed, "
            f"with --seed_everything 0, 1, ...; or, on one machine, {train_program()} --seeds with --trainer.devices, "
            "which launches the processes of each run"
        )
    return list(range(first, first + count))


def run_seeds(arguments: Sequence[str], config: Namespace, folder: Path) -> int:
    """Do the runs of a series that are not finished yet, and write ``results.json`` and ``results.md``.

    Args:
        arguments: The arguments of ``train.py``.
        config: The config parsed from ``arguments``.
        folder: The series' folder, in which each run has its own folder.

    Returns:
        The exit status: 0; 1 if a run failed; 3 if a secondary output of a run is missing.

    Raises:
        CxlpError: If the folder belongs to a single run, or ``ckpt_path`` is set.
    """
    seeds = seeds_of(config, config["seeds"])
    if config["ckpt_path"] is not None:
        raise CxlpError(
            "ckpt_path has no effect with --seeds: to continue, repeat the command with the same --run.name"
        )
    if (folder / "config.yaml").is_file():
        raise CxlpError(f"{folder} is a single run: choose another --run.name for the series")
    own = ["--seeds", "null", *([] if config["run"]["group"] else ["--run.group", folder.name])]
    results: dict[int, dict[str, float]] = {}
    places: dict[int, Path] = {}
    incomplete = False
    for number, seed in enumerate(seeds, 1):
        place = folder / f"{folder.name}-seed{seed}"
        heading = f"[{number}/{len(seeds)}] seed {seed}"
        given = [*arguments, *own, *earlier_layers(config, folder, place), "--seed_everything", str(seed)]
        try:
            check_same_run(place, parse(given))
            done = finished(place)
            say(f"{heading}: {place}" if done is None else f"{heading}: done already, in {done}")
            places[seed] = done or run_in(place, given, folder / "logs" / f"{place.name}.txt")
            written = read_results(places[seed])
            results[seed], incomplete = written["metrics"], incomplete or is_incomplete(written)
        except CxlpError as error:  # the other runs do not depend on this one
            say(f"{heading}: {error}")
        finally:
            os.environ.pop("WANDB_RUN_ID", None)  # a user's run id applies to the first run only
    failed = [seed for seed in seeds if seed not in results]
    if results:
        _write(folder, results, places, failed)
    for seed in failed:
        say(f"no result: seed {seed}")
    return 1 if failed else 3 if incomplete else 0


def check_same_run(place: Path, config: Namespace) -> None:
    """Check that an existing run has the same recipe, images and weights before it is reused or continued.

    The comparison is with the run's own checkpoint. A change of the code or of library versions is only a warning.

    Args:
        place: The run's folder.
        config: The config that the run would have now.

    Raises:
        CxlpError: If something differs; the message names the first difference.
    """
    best = place / "checkpoints" / "best.ckpt"
    checkpoint = last_checkpoint(place) or (best if best.is_file() else None)
    if checkpoint is None:
        if finished(place) is None:
            return  # there is nothing to reuse
        raise CxlpError(f"{place} has no checkpoint with its recipe: choose another --run.name")
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
        pl.seed_everything(config["seed_everything"], workers=True)  # a run draws random numbers in this order
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
                f"the weights of model.{'backbone.weights' if same else 'start'} differ from those of that run"
            )
    except CxlpError as error:
        raise CxlpError(f"{place} is a different run, choose another --run.name: {error}") from error
    found = read_identity(place / "provenance.json") or {}
    facts = {"commit": found.get("git"), **found.get("versions", {})}
    others = [name for name, now in {"commit": git_state(), **versions()}.items() if facts.get(name) != now]
    if others:
        say(f"warning: {place} was started with another version of {', '.join(others)}")


def summarise(results: Mapping[int, Mapping[str, float | None]]) -> dict[str, dict[str, Any]]:
    """Compute the mean and the standard deviation of each metric.

    Args:
        results: Metrics by seed; the value ``None`` is undefined.

    Returns:
        By metric: ``values`` in the order of the seeds, and the ``mean`` and the sample standard ``deviation`` (n - 1)
        of the defined values, or ``None`` if there are too few.
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
    note = "\n±: sample standard deviation (n - 1).\n"
    missing = f"\nNo result: seed {', '.join(map(str, failed))}.\n" if failed else ""
    write_whole(folder / "results.md", as_markdown(heads, rows) + note + missing)
    shown = Table(title=f"{folder.name}: {len(results)} seeds")
    for head in heads:
        shown.add_column(head, justify="left" if head == "metric" else "right")
    for row in rows:
        shown.add_row(*row)
    Console().print(shown)
    say(f"Results: {folder / 'results.md'}, {folder / 'results.json'}")
