"""Provenance of a run's results: state of the code, versions of packages, machine, and data."""

import json
import os
import platform
import subprocess
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback

from cxlp.data.datamodule import ImageDataModule
from cxlp.runs.callbacks import wandb_logger
from cxlp.utils.distributed import usable_cores
from cxlp.utils.files import write_whole
from cxlp.utils.fingerprint import digest, library_versions
from cxlp.version import __version__

#: The packages that results depend on.
PACKAGES = (
    "torch", "torchvision", "pytorch-lightning", "torchmetrics", "timm", "scikit-learn", "scipy", "numpy",
    "albumentations", "opencv-python-headless", "pillow", "wandb",
)  # fmt: skip


def versions() -> dict[str, str]:
    """Versions of cxlp, Python, and the packages that results depend on."""
    return {"cxlp": __version__, "python": platform.python_version(), **library_versions(PACKAGES)}


def git_state(folder: Path | None = None) -> dict[str, Any] | None:
    """The commit of a git checkout, and whether tracked files are modified.

    Args:
        folder: Root of the checkout; ``None``: the folder of this package.

    Returns:
        ``commit`` and ``dirty``; ``None`` if the folder is not the root of a checkout, or git fails.
    """
    root = Path(__file__).parents[2] if folder is None else folder
    if not (root / ".git").exists():  # do not search parent folders: site-packages may be inside another checkout
        return None

    def ask(*arguments: str) -> str:
        done = subprocess.run(
            ["git", "-C", str(root), *arguments], check=True, capture_output=True, text=True, timeout=30
        )
        return done.stdout.strip()

    try:
        return {"commit": ask("rev-parse", "HEAD"), "dirty": bool(ask("status", "--porcelain", "--untracked-files=no"))}
    except (OSError, subprocess.SubprocessError):
        return None


def data_facts(data: ImageDataModule) -> dict[str, Any]:
    """Summary of a DataModule: ``name``, number of ``classes``, images by split, and a ``digest``.

    The digest covers the classes and, for each image in order, its split, path below the root, file size, box and
    label. Two runs with the same digest used the same images, regardless of the root.
    """
    parts: list[object] = [data.classes]
    for name, split in data.splits.items():
        for sample in split.samples:
            place = Path(os.path.relpath(sample.path, data.root)).as_posix()
            size = sample.path.stat().st_size if sample.path.is_file() else None
            parts.append((name, place, size, sample.box, sample.label))
    counts = {str(name): len(split) for name, split in data.splits.items()}
    return {"name": data.name, "classes": len(data.classes), **counts, "digest": digest(*parts, size=8)}


class Provenance(Callback):
    """Writes the provenance of results to ``provenance.json`` and to wandb's config.

    A resumed run keeps the first file and writes ``provenance-resumed.json``.

    Args:
        folder: The run's folder.
        data: The data of fit and test.
    """

    def __init__(self, folder: Path, data: ImageDataModule) -> None:
        self.folder, self.data = folder, data
        self._written = False

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Record the provenance when the first stage begins, since files may change later."""
        if self._written or not trainer.is_global_zero:
            return
        self._written = True
        facts = {
            "data": data_facts(self.data),
            "git": git_state(),
            "versions": versions(),
            "machine": {
                "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU",
                "processes": trainer.world_size,
                "cores": usable_cores(),
                "system": platform.platform(),
            },
        }
        first = self.folder / "provenance.json"
        write_whole(
            first.with_stem("provenance-resumed") if first.exists() else first, json.dumps(facts, indent=2) + "\n"
        )
        logger = wandb_logger(trainer)
        if logger is not None:
            logger.log_hyperparams({"provenance": facts})
