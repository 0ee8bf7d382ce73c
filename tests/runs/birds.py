"""Runs of ``train.py`` on a tiny CUB-200-2011, with a backbone from the shipped configs."""

from pathlib import Path
from typing import Any

from cxlp.commands.train import main
from tests import small_run
from tests.generate import write_cub200
from tests.small_run import BACKBONE, POOLING, metrics

NETWORK = [
    *("--config", "squeezenet.yaml"),
    *(f"--{BACKBONE}.weights", "null"),
    *(f"--{BACKBONE}.image_size", "64"),
    *(f"--{POOLING}.pca_dim", "8"),
]


QUIET = [
    *("--data.num_workers", "0"),
    *("--data.batch_size", "8"),
    *("--run.wandb", "off"),
    *("--trainer.accelerator", "cpu"),
    *("--trainer.devices", "1"),
    *("--trainer.enable_progress_bar", "false"),
]


FINETUNE = [
    *("--config", "finetune.yaml"),
    *("--data.validation", "0.34"),
    *("--trainer.max_epochs", "2"),
]


CLOSING = [*FINETUNE, "--trainer.max_epochs", "1", "--model.closing_fit", "true", "--model.cross_fit", "true"]


def run(name: str, *more: str, config: str = "cub200.yaml") -> dict[str, Any]:
    """Run train.py in this process, and return ``metrics.json``."""
    assert main(["--config", config, *NETWORK, *QUIET, "--run.name", name, *more]) == 0
    return metrics(Path("runs", name))


def made(name: str, *more: str) -> dict[str, Any]:
    """Like :func:`run`, but copies an earlier run with the same arguments if there is one."""
    arguments = ["--config", "cub200.yaml", *NETWORK, *QUIET, *more]
    return metrics(small_run.copy_of_run(name, arguments, lambda folder: write_cub200(folder / "data")))


def logged(name: str, key: str, by: str = "epoch") -> dict[int, float]:
    """Return a metric by epoch or step, from the CSV logs of ``runs/name``."""
    return small_run.logged(Path("runs", name), key, by)
