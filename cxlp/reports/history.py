"""A run's logs, read back from its folder."""

import csv
import shlex
from contextlib import suppress
from pathlib import Path

#: The stages of a run, in their order; each logs into its own folder.
STAGES = ("frozen", "finetune", "closing", "test")


def history(folder: Path) -> list[dict[str, float]]:
    """Read the CSV logs of all stages, one row per step; a step that was done twice has the later values.

    Args:
        folder: A run's folder.
    """
    found: list[dict[str, float]] = []
    for stage in STAGES:
        steps: dict[int, dict[str, float]] = {}
        versions = sorted((folder / "csv" / stage).glob("version_*"), key=lambda path: int(path.name.partition("_")[2]))
        for log in (version / "metrics.csv" for version in versions):
            if not log.is_file():
                continue
            with log.open(newline="", encoding="utf-8", errors="replace") as file:
                for row in csv.DictReader(file):
                    with suppress(KeyError, TypeError, ValueError):  # what a kill or a full disk has cut
                        step = int(row.pop("step"))
                        known = {key: float(value) for key, value in row.items() if value != ""}
                        steps.setdefault(step, {}).update(known)
        found += (steps[step] for step in sorted(steps))
    return found


def by_epoch(folder: Path, metric: str) -> dict[int, float]:
    """Read a metric by epoch, where 0 is the frozen fit: the last value of each epoch; empty if it was not logged.

    Args:
        folder: A run's folder.
        metric: A name such as ``val/accuracy``.
    """
    return {int(row["epoch"]): row[metric] for row in history(folder) if metric in row}


def how_to_look(folder: Path) -> str | None:
    """Return the command that shows the wandb run of a folder; ``None`` if there is none."""
    runs = sorted((folder / "wandb").glob("offline-run-*"), key=lambda p: p.stat().st_mtime)
    if runs:
        return f"wandb leet {shlex.quote(str(runs[-1]))}   (upload: wandb sync {shlex.join(map(str, runs))})"
    if (folder / "wandb").is_dir():
        return f"wandb leet {shlex.quote(str(folder / 'wandb' / 'latest-run'))}   (or in the browser)"
    return None
