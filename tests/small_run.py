"""``train.py`` on eighteen tiny pictures of three kinds, with a small network: one second per run."""

import contextlib
import csv
import json
import shutil
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from cxlp.commands.train import main
from tests.generate import write_folder

#: Prefixes of the network's keys.
BACKBONE, POOLING = "model.backbone", "model.head"
#: Arguments of a frozen run, in a working directory prepared by :func:`write_pictures`.
ARGUMENTS = [
    *("--config", "folder.yaml"),
    *("--data.root", "pictures"),
    *("--data.num_workers", "0"),
    *("--data.batch_size", "4"),
    *(f"--{BACKBONE}.name", "timm/test_resnet"),
    *(f"--{BACKBONE}.layers", "[layer3.0.conv2, layer3]"),
    *(f"--{BACKBONE}.weights", "null"),
    *(f"--{BACKBONE}.image_size", "32"),
    *(f"--{POOLING}.pca_dim", "4"),
    *("--model.frozen.c", "10"),
    *("--run.wandb", "off"),
    *("--trainer.accelerator", "cpu"),
    *("--trainer.devices", "1"),
    *("--trainer.enable_progress_bar", "false"),
]
#: Additional arguments: two gradient epochs after the frozen fit.
FINETUNE = [
    *("--config", "finetune.yaml"),
    *("--data.validation", "0.34"),
    *("--trainer.max_epochs", "2"),
    *("--model.optimizer.backbone_lr", "0.01"),
]


def write_pictures(folder: Path) -> None:
    """Write the pictures: six training and three test pictures of each kind."""
    write_folder(folder / "pictures", size=48)


def run(name: str, *more: str) -> Path:
    """Run train.py in this process, and return the run's folder."""
    assert main([*ARGUMENTS, "--run.name", name, *more]) == 0
    return Path("runs", name)


_TEMPLATES: dict[tuple[str, ...], Path] = {}
_PLACE = tempfile.TemporaryDirectory(prefix="runs-of-tests-")


def copy_of_run(name: str, arguments: Sequence[str], write: Callable[[Path], object]) -> Path:
    """Copy a finished run, which is computed once in this process, into this folder, and return the copy.

    Args:
        name: The name of the copy.
        arguments: The arguments of ``train.py``.
        write: A function that writes the run's data into a folder.
    """
    key = tuple(arguments)
    if key not in _TEMPLATES:
        place = Path(_PLACE.name, str(len(_TEMPLATES)))
        place.mkdir()
        write(place)
        with contextlib.chdir(place):
            assert main([*arguments, "--run.name", "template"]) == 0
        _TEMPLATES[key] = place / "runs" / "template"
    folder = Path("runs", name)
    shutil.copytree(_TEMPLATES[key], folder)
    config = folder / "config.yaml"
    config.write_text(config.read_text().replace("name: template", f"name: {name}"))
    return folder


def prepared(name: str, *more: str) -> Path:
    """Like :func:`run`, but runs the same arguments only once in this process, see :func:`copy_of_run`."""
    return copy_of_run(name, [*ARGUMENTS, *more], write_pictures)


def metrics(folder: Path) -> dict[str, Any]:
    """Read ``metrics.json``."""
    found: dict[str, Any] = json.loads((folder / "metrics.json").read_text())
    return found


def logged(folder: Path, key: str, by: str = "epoch") -> dict[int, float]:
    """Return a metric by epoch or step, from the CSV logs of all stages and sessions of a run."""
    values: dict[int, float] = {}
    for file in sorted((folder / "csv").glob("*/version_*/metrics.csv"), key=lambda p: int(p.parent.name[8:])):
        values |= {int(float(row[by])): float(row[key]) for row in csv.DictReader(file.open()) if row.get(key)}
    return dict(sorted(values.items()))
