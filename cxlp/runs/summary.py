"""The summary that a run prints before its first stage."""

from collections.abc import Collection, Mapping
from pathlib import Path

import pytorch_lightning as pl
import torch

from cxlp.data.datamodule import ImageDataModule
from cxlp.metrics.intervals import wilson
from cxlp.models.network import Network
from cxlp.runs.places import STARTS
from cxlp.utils.progress import say

#: Smallest possible gain in accuracy for which fine-tuning is worthwhile.
LEAST_GAIN = 0.02


def print_facts(facts: Mapping[str, str]) -> None:
    """Print the facts that are not empty, one aligned line each."""
    width = max(map(len, facts))
    for name, fact in facts.items():
        if fact:
            say(f"{name:<{width}}   {fact}")


def run_facts(
    data: ImageDataModule, network: Network, trainer: pl.Trainer, precision: str, stages: str, folder: Path
) -> dict[str, str]:
    """Return the facts of a run's summary, by name.

    Args:
        data: The DataModule, set up.
        network: The network.
        trainer: The Trainer of the first stage.
        precision: The precision of the run, and the reason for it.
        stages: The stages of the run, see :func:`plan`.
        folder: The run's folder.
    """
    heads = [f"{h.name} ({', '.join(name for _, name in network.map_names(h))})" for h in network.each_head()]
    return {
        "data": f"{data.name}, {len(data.classes):,} classes{' (several per image)' if data.multi_label else ''}",
        "images": images_by_split(data),
        "network": f"{network.backbone.name}, {network.image_size} px; {', '.join(heads)}, "
        f"{network.out_features:,} features",
        "stages": stages,
        "device": device(trainer),
        "precision": precision,
        "folder": str(folder),
    }


def plan(stages: Collection[str], done: Collection[str], epochs: int, start: str, chosen_by: str | None) -> str:
    """Describe the stages of a run.

    Args:
        stages: Names of the stages.
        done: Names of the finished stages.
        epochs: Number of gradient epochs.
        start: Value of ``model.start``.
        chosen_by: The validation metric that chooses the tested checkpoint; ``None``: the last one is tested.
    """
    frozen = "frozen fit" if start in STARTS else f"frozen fit of {start}"
    words = {"frozen": frozen, "finetune": f"{epochs} gradient epoch{'s' * (epochs != 1)}", "closing": "closing fit"}
    said = ", ".join(words[name] + " (done)" * (name in done) for name in stages)
    if len(stages) == 1 and "finetune" not in stages:
        return said
    return f"{said}; tested: {f'the best by {chosen_by}' if chosen_by else 'the last, since no images are held out'}"


def possible_gain(report: Mapping[str, float], images: int) -> list[str]:
    """Describe the possible gain of fine-tuning: the errors in the frozen fit's cross-validation.

    Args:
        report: The report of the frozen fit, see :meth:`cxlp.frozen.fit.FrozenFit.finish`.
        images: Number of training images.

    Returns:
        A line with the training accuracy and the cross-validated accuracy (or mAP), and a warning if fine-tuning is not
        worthwhile: if the possible gain is less than 2 points, or less than half the width of the 95 % interval of the
        cross-validated accuracy, so that even the full gain would not be significant on that number of images. An empty
        list without cross-validation.
    """
    metric = next((name for name in ("accuracy", "mAP") if f"train_{name}" in report), None)
    if metric is None:
        return []
    cross_validated = report[f"cv_{metric}"]
    left, least, around = 1 - cross_validated, LEAST_GAIN, ""
    if metric == "accuracy":
        low, high, _ = wilson(round(cross_validated * images), images)
        least, around = max(least, (high - low) / 2), f" (95 % interval {100 * low:.1f} to {100 * high:.1f})"
    said = [
        f"frozen fit: training {metric} {100 * report[f'train_{metric}']:.1f} %, cross-validated "
        f"{100 * cross_validated:.1f} %{around}: fine-tuning can gain at most {100 * left:.1f} points"
    ]
    if left < least:
        why = f"{100 * least:.0f} points"
        if least > LEAST_GAIN:
            why = f"half the width of this interval, {100 * least:.1f} points"
        said.append(
            f"warning: fine-tuning is not worthwhile, since it can gain less than {why}. For the frozen fit alone, "
            "leave out the config that sets the gradient epochs"
        )
    return said


def images_by_split(data: ImageDataModule) -> str:
    """Describe the number of images in each split."""
    train, val, test = (len(data.splits[split]) for split in ("train", "val", "test"))
    return f"{train:,} to train, {f'{val:,} held out' if val else 'none held out'}, {test:,} to test"


def device(trainer: pl.Trainer) -> str:
    """Name the device of a Trainer."""
    root = trainer.strategy.root_device
    count = f"{trainer.world_size} x " if trainer.world_size > 1 else ""
    if root.type == "cpu":
        return f"{count}CPU, {torch.get_num_threads()} thread{'s' * (torch.get_num_threads() != 1)}"
    # Do not initialise a GPU here: if processes are forked, only they may initialise it.
    if root.type == "cuda" and torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        return f"{count}{torch.cuda.get_device_name(root)}"
    return f"{count}{root.type.upper()}"
