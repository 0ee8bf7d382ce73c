"""The stages of a run: fit, test, and the refit on all training images."""

import time
from collections.abc import Sequence
from pathlib import Path

import pytorch_lightning as pl
from pytorch_lightning.callbacks import ModelCheckpoint
from pytorch_lightning.loggers import WandbLogger

from cxlp.runs.cli import CLI
from cxlp.runs.folder import refit_folder, say, take_up
from cxlp.runs.refit import read_choice
from cxlp.runs.results import Results
from cxlp.utils.errors import CxlpError


def _fit(cli: CLI) -> str:
    """Fit, and return the path of the checkpoint to be tested: the best on the validation images, else the last."""
    task, trainer, resumed = cli.model, cli.trainer, cli.config["ckpt_path"]
    task.resuming = bool(resumed)
    trainer.fit(task, cli.datamodule, ckpt_path=resumed, weights_only=True if resumed else None)
    if 0 in task.frozen_epochs and not task.report:
        raise CxlpError("the run was stopped before its first epoch was over (trainer.max_time?): nothing was fitted")
    if resumed and trainer.is_global_zero:  # now that it is known to belong to the run
        cli.save_config("config-resumed.yaml")
    checkpoint = trainer.checkpoint_callback
    return checkpoint.best_model_path if isinstance(checkpoint, ModelCheckpoint) else ""


def choose_epoch(cli: CLI, arguments: Sequence[str]) -> list[str]:
    """Do the first run of ``run.refit: true``; returns the arguments of the second."""
    best = _fit(cli)
    choice = read_choice(best)
    folder = refit_folder(Path(cli.trainer.strategy.broadcast(str(cli.run_folder))))
    last = Path(cli.trainer.strategy.broadcast(str(take_up(folder) or "") if cli.trainer.is_global_zero else ""))
    if cli.trainer.is_global_zero:
        _finish_wandb(cli.trainer)
        say(f"{cli.run_folder} has chosen epoch {choice.epoch}: now all training images, in {folder}")
    place = ["--run.root", str(folder.parent), "--run.name", folder.name]
    resumed = str(last) if last != Path() else "null"
    return [*arguments, *place, "--run.refit", best, "--data.validation", "0", "--ckpt_path", resumed]


def train_and_test(cli: CLI) -> None:
    """Fit, test the right checkpoint, and write down what came out."""
    start = time.perf_counter()
    best = _fit(cli)
    task, data, trainer = cli.model, cli.datamodule, cli.trainer
    (tested,) = trainer.test(task, data, ckpt_path=best or None, weights_only=True if best else None, verbose=False)
    if trainer.is_global_zero:
        # Of the phases, a resumed run knows all the time they took; of what is between them, this process's only.
        whole = "since resumed" if cli.config["ckpt_path"] else "total"
        seconds = {**task.times, whole: time.perf_counter() - start}
        results = Results(trainer, tested, best, seconds, cli.watch.images, cli.choice)
        results.write(cli.run_folder, cli.run_config)
        results.show(cli.run_folder)


def _finish_wandb(trainer: pl.Trainer) -> None:
    for logger in trainer.loggers:
        if isinstance(logger, WandbLogger):
            logger.experiment.finish()
