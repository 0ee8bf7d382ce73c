"""The CSV logs of a run, read from its folder."""

import csv
import shlex
from contextlib import suppress
from pathlib import Path

import numpy as np

#: The stages of a run, in order. Each stage logs into its own folder.
STAGES = ("frozen", "finetune", "closing", "test")


def history(folder: Path) -> dict[str, list[dict[str, float]]]:
    """Read the CSV logs: for each stage, one row per step. A repeated step has its latest values.

    Args:
        folder: A run's folder.
    """
    found: dict[str, list[dict[str, float]]] = {}
    for stage in STAGES:
        steps: dict[int, dict[str, float]] = {}
        versions = sorted((folder / "csv" / stage).glob("version_*"), key=lambda path: int(path.name.partition("_")[2]))
        for log in (version / "metrics.csv" for version in versions):
            if not log.is_file():
                continue
            with log.open(newline="", encoding="utf-8", errors="replace") as file:
                for row in csv.DictReader(file):
                    with suppress(KeyError, TypeError, ValueError):  # a row that a kill or a full disk truncated
                        step = int(row.pop("step"))
                        known = {key: float(value) for key, value in row.items() if value != ""}
                        steps.setdefault(step, {}).update(known)
        found[stage] = [steps[step] for step in sorted(steps)]
    return found


def curves(folder: Path, train_images: int) -> dict[str, list[tuple[float, float]]]:
    """Read metrics as curves over epochs.

    Epoch 0 is before gradient descent, and steps lie between whole epochs.

    Args:
        folder: A run's folder.
        train_images: Number of images in an epoch, used for an epoch that is not complete.

    Returns:
        Points ``(epoch, value)`` by metric, without the test.
    """
    stages = history(folder)
    tuned, before = stages["finetune"], [row["images_seen"] for row in stages["frozen"] if "images_seen" in row]
    # Epochs are interpolated from the number of images seen so far, which every row of a step has.
    ends = [(row["images_seen"], row["epoch"]) for row in tuned if {"train/loss_epoch", "images_seen"} <= row.keys()]
    knots = [(max(before, default=0.0), ends[0][1] - 1 if ends else 0.0), *ends]
    knots.append((knots[-1][0] + max(1, train_images), knots[-1][1] + 1))
    images, epochs = zip(*knots, strict=True)
    found: dict[str, list[tuple[float, float]]] = {}
    seen = images[0]
    for stage in ("frozen", "finetune", "closing"):
        for row in stages[stage]:
            seen = row.get("images_seen", seen)
            place = float(np.interp(seen, images, epochs)) if stage == "finetune" else row.get("epoch", 0.0)
            for metric, value in row.items():
                found.setdefault(metric, []).append((place, value))
    return found


def by_epoch(folder: Path, metric: str) -> dict[int, float]:
    """Read the last value of a metric in each epoch; empty if the metric was not logged. Epoch 0: the frozen fit.

    Args:
        folder: A run's folder.
        metric: A name such as ``val/accuracy``.
    """
    rows = (row for stage in history(folder).values() for row in stage)
    return {int(row["epoch"]): row[metric] for row in rows if metric in row}


def wandb_command(folder: Path) -> str | None:
    """Return the command that shows the wandb run of a folder; ``None`` without a wandb run."""
    runs = sorted((folder / "wandb").glob("offline-run-*"), key=lambda p: p.stat().st_mtime)
    if runs:
        return f"wandb leet {shlex.quote(str(runs[-1]))}   (upload: wandb sync {shlex.join(map(str, runs))})"
    if (folder / "wandb").is_dir():
        return f"wandb leet {shlex.quote(str(folder / 'wandb' / 'latest-run'))}   (or in the browser)"
    return None
