"""The command line: configs in, one run folder out."""

import gc
import logging
import os
import re
import sys
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from jsonargparse import Namespace
from pytorch_lightning.callbacks import LearningRateMonitor, ModelCheckpoint, ProgressBar
from pytorch_lightning.cli import LightningArgumentParser, LightningCLI
from pytorch_lightning.loggers import WandbLogger
from pytorch_lightning.plugins.io import CheckpointIO
from pytorch_lightning.utilities.exceptions import MisconfigurationException  # type: ignore[attr-defined]

from cxlp.arguments import CLASSES, find_configs, nested_as_configs
from cxlp.callbacks import (
    EpochSeed,
    RunIdentity,
    TrainingBar,
    TrainingWatch,
    WholeCheckpoints,
    checkpoints,
    save_from_step_0,
    write_whole,
)
from cxlp.config_errors import explain, refuse_nulls
from cxlp.cutting import fused_batch_norms
from cxlp.data.base import ImageDataModule
from cxlp.distributed import STOPPED, is_distributed, leave_soon, leave_with_parent
from cxlp.errors import CxlpError
from cxlp.evaluation import TestReport
from cxlp.locking import hold, let_go
from cxlp.logging import RunConfig, build_loggers, labelled
from cxlp.metrics import SELECTION
from cxlp.provenance import Provenance
from cxlp.refit import Choice, StopAfter, read_choice
from cxlp.results import Results
from cxlp.runs import (
    find_resumed,
    last_checkpoint,
    launched_rank,
    new_folder,
    refit_folder,
    run_name,
    say,
    take_up,
)
from cxlp.tasks import FineTune, Frozen
from cxlp.tasks.base import CrossLayerTask


def main(args: Sequence[str] | None = None) -> int:
    """Run ``train.py``.

    Args:
        args: Arguments; ``None``: those of the process.

    Returns:
        The exit status: 0; 2 where the user can mend something; 130 where the user interrupted.
    """
    _quiet()
    leave_with_parent()
    cli: CLI | None = None
    try:
        arguments = find_configs(sys.argv[1:] if args is None else args)
        if args is None:
            sys.argv[1:] = arguments  # what the processes of further ranks are started with
        cli = CLI(nested_as_configs(arguments))
        if cli.config["seeds"] is not None:
            from cxlp.repeats import run_seeds  # whose children are runs as below

            return run_seeds(arguments, cli.config, cli.run_folder)
        if cli.run_config.refit is True:
            cli = CLI(nested_as_configs(_select(cli, arguments)))
            gc.collect()  # the first run's loaders, with their processes
        train_and_test(cli)
    except (KeyboardInterrupt, SystemExit) as error:
        # Lightning turns the first into the second.
        if isinstance(error, SystemExit) and not isinstance(error.__context__, KeyboardInterrupt):
            raise
        if launched_rank() == 0:
            print(f"\ninterrupted. {_how_to_go_on(cli)}", file=sys.stderr)  # noqa: T201
        return 130
    except Exception as error:
        said = _mendable(error)
        if is_distributed():
            leave_soon(1 if said is None else 2)
        if said is None:
            raise
        print(f"error: {said}", file=sys.stderr)  # noqa: T201
        return 2
    finally:
        let_go()
    return 0


class CLI(LightningCLI):
    """LightningCLI without subcommands: parses, makes the run's folder, and builds everything."""

    run_folder: Path
    watch: TrainingWatch
    #: Of a refit.
    choice: Choice | None = None

    def __init__(self, args: Sequence[str]) -> None:
        super().__init__(
            CrossLayerTask,
            ImageDataModule,
            subclass_mode_model=True,
            subclass_mode_data=True,
            run=False,
            save_config_callback=None,  # saved in the run's own folder instead, see after_instantiate_classes
            load_from_checkpoint_support=False,
            auto_configure_optimizers=False,
            seed_everything_default=0,
            # No sanity check: it scores an unfitted network on a few images of a few classes.
            trainer_defaults={"num_sanity_val_steps": 0, "log_every_n_steps": 10, "enable_model_summary": False},
            parser_kwargs={
                "description": "Train and test cross-convolutional-layer pooling.",
                "allow_abbrev": False,  # a misspelt key must not pass for another
            },
            args=list(args),
        )

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add what belongs to a run rather than to the model, the data or the Trainer."""
        parser.add_class_arguments(RunConfig, "run")
        parser.add_argument("--ckpt_path", type=str | None, default=None, help="Checkpoint of a run to resume.")
        parser.add_argument(
            "--seeds",
            type=int | None,
            default=None,
            help="Do the run with so many seeds, from seed_everything upward, one after another in one folder; mean "
            "and deviation in the end. With the seed move order, augmentation, initial weights; what is held out "
            "stays, unless data.split_seed is null. What is done already is not done again, given the same --run.name.",
        )

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:  # noqa: ANN401 (Lightning's type)
        """Parse, and name the valid keys where one is unknown."""
        parser.exit_on_error = False
        try:
            self.config: Namespace = parser.parse_args(args)
        except Exception as error:  # argparse, jsonargparse and yaml each raise their own
            raise CxlpError(explain(parser, error, CLASSES)) from error
        refuse_nulls(self.config, CLASSES)

    @property
    def run_config(self) -> RunConfig:
        """What the user asked of the run as such."""
        return RunConfig(**self.config["run"].as_dict())

    def instantiate_classes(self) -> None:
        """Build everything; of a series of runs only its folder, which each of them finds again."""
        if self.config["seeds"] is None:
            super().instantiate_classes()
        else:
            self.run_folder = Path(self.run_config.root) / run_name(self.run_config, self.config)

    def instantiate_trainer(self, **kwargs: Any) -> pl.Trainer:
        """Make the run's folder, and a Trainer that writes there."""
        run = self.run_config
        trainer = self.config_init["trainer"]
        self._check_trainer(trainer)
        resumed = self.config["ckpt_path"]
        folder, wandb_id = find_resumed(Path(resumed), run) if resumed else (None, None)
        self.run_folder = folder or new_folder(run, self.config)
        if launched_rank() == 0:
            hold(self.run_folder)
        if trainer["logger"] in (None, True):
            network = self.model.network.config
            facts = (network.backbone.name, type(self.model).__name__, network.pooling.method)
            logged = labelled(run, self.datamodule.name, *facts)
            kwargs["logger"] = build_loggers(logged, self.run_folder, wandb_id, launched_rank())
        given = trainer["callbacks"] or []
        given = list(given) if isinstance(given, list | tuple) else [given]
        self.watch = TrainingWatch()
        own = (TestReport(self.run_folder), RunIdentity(), Provenance(self.run_folder), self.watch, EpochSeed())
        callbacks: list[pl.Callback] = [*own]
        if run.refit is True and any(isinstance(c, ModelCheckpoint) for c in given):
            raise CxlpError(
                "run.refit: true chooses by a checkpoint of its own: leave ModelCheckpoint out of callbacks"
            )
        if isinstance(run.refit, str):
            self.choice = read_choice(run.refit)
            callbacks.append(StopAfter(self.choice))
            # Nothing is held out that could end the run, or choose.
            given = [c for c in given if not str(getattr(c, "monitor", "")).startswith("val/")]
            kwargs |= {"min_epochs": None, "min_steps": None}
        plugins = trainer["plugins"] or []
        plugins = list(plugins) if isinstance(plugins, list | tuple) else [plugins]
        if not any(isinstance(plugin, CheckpointIO) for plugin in plugins):
            kwargs["plugins"] = [*plugins, WholeCheckpoints()]
        if not any(isinstance(c, ModelCheckpoint) for c in given) and trainer["enable_checkpointing"] is not False:
            monitor = f"val/{SELECTION[self.datamodule.multi_label]}" if self.datamodule.validation else None
            callbacks.extend(checkpoints(self.run_folder / "checkpoints", monitor))
        for callback in given:
            if isinstance(callback, ModelCheckpoint):
                save_from_step_0(callback)
                callback.dirpath = callback.dirpath or str(self.run_folder / "checkpoints")
        if not any(isinstance(c, ProgressBar) for c in given) and trainer["enable_progress_bar"] is not False:
            callbacks.append(TrainingBar())  # as the fit's own bars: a live display would clash with them
        if self.model.automatic_optimization and trainer["logger"] is not False:
            callbacks.append(LearningRateMonitor("step"))
        if isinstance(self.model, Frozen):
            kwargs["max_epochs"] = 1
        kwargs |= {"callbacks": [*given, *callbacks], "default_root_dir": str(self.run_folder)}
        return super().instantiate_trainer(**kwargs)

    def _check_trainer(self, trainer: Namespace) -> None:
        """Refuse what would have no effect."""
        if trainer["default_root_dir"] is not None:
            raise CxlpError("trainer.default_root_dir: a run's folder is made in run.root; set --run.root")
        limit = trainer["limit_test_batches"]
        if limit not in (None, 1.0) or isinstance(limit, int) or trainer["barebones"]:  # 1 is a batch, 1.0 all of them
            raise CxlpError(
                "trainer.limit_test_batches, trainer.barebones: a run ends with its whole test; leave them out"
            )
        if self.datamodule.validation and trainer["limit_val_batches"] == 0:
            raise CxlpError(
                f"trainer.limit_val_batches is 0, but data.validation holds out {self.datamodule.validation}: the best "
                "checkpoint is chosen by these images. Leave one of them out"
            )
        refit, held_out = self.run_config.refit, self.datamodule.validation
        if refit is True and not (held_out and trainer["enable_checkpointing"] is not False):
            raise CxlpError(
                "run.refit chooses the epoch by held-out images and its checkpoint: set data.validation, such as 0.1, "
                "and leave trainer.enable_checkpointing out"
            )
        if refit and (trainer["max_steps"] not in (None, -1) or trainer["max_time"]):
            raise CxlpError("run.refit counts epochs: leave trainer.max_steps and trainer.max_time out")
        if isinstance(refit, str) and held_out:
            raise CxlpError(
                f"run.refit is the choice of an earlier run, but data.validation holds out {held_out}: a refit takes "
                "all training images, set data.validation: 0"
            )
        if trainer["sync_batchnorm"]:
            self._check_sync()
        if isinstance(self.model, Frozen) and trainer["max_epochs"] not in (None, 1):
            raise CxlpError(
                f"trainer.max_epochs is {trainer['max_epochs']}, but the frozen mode takes one pass: leave it out, "
                "or add --config finetune.yaml"
            )

    def _check_sync(self) -> None:
        """Refuse to synchronise BatchNorm where nothing would be synchronised, or more than that would change."""
        if not isinstance(self.model, FineTune) or self.model.freeze_batch_norm:
            raise CxlpError(
                "trainer.sync_batchnorm shares statistics that this run does not take: it keeps those there are. Leave "
                "it out, or fine-tune with model.freeze_batch_norm: false"
            )
        if self.config_init["trainer"]["accelerator"] == "cpu" or not torch.cuda.is_available():
            raise CxlpError("trainer.sync_batchnorm needs GPUs: torch has no such BatchNorm for the CPU")
        fused = fused_batch_norms(self.model.network.backbone)
        if fused:
            raise CxlpError(
                f"trainer.sync_batchnorm would lose the activations that timm fuses with {len(fused)} BatchNorms of "
                f"this backbone ({fused[0]}, ...): leave it out"
            )

    def after_instantiate_classes(self) -> None:
        """Save the whole resolved config in the run's folder and in wandb."""
        if launched_rank() != 0 or self.config["seeds"] is not None:
            return
        if not (self.run_folder / "config.yaml").exists():  # a resumed run keeps its own
            self.save_config("config.yaml")
        for logger in self.trainer.loggers:
            if isinstance(logger, WandbLogger):
                logger.experiment.config.update(self.config.as_dict(), allow_val_change=True)

    def save_config(self, file: str) -> None:
        """Write the whole resolved config into the run's folder."""
        config = self.config.clone()
        config["ckpt_path"] = None  # the config of a run is how to do it again, not how to go on with it
        write_whole(self.run_folder / file, self.parser.dump(config, skip_unset=False))


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


def _select(cli: CLI, arguments: Sequence[str]) -> list[str]:
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


def parse(arguments: Sequence[str]) -> Namespace:
    """Resolve arguments of ``train.py`` without building anything.

    Raises:
        CxlpError: As ``train.py`` would.
    """
    _quiet()
    return _Parsed(nested_as_configs(find_configs(arguments))).config


class _Parsed(CLI):
    def instantiate_classes(self) -> None:
        """Build nothing."""

    def after_instantiate_classes(self) -> None:
        """Write nothing."""


def _finish_wandb(trainer: pl.Trainer) -> None:
    for logger in trainer.loggers:
        if isinstance(logger, WandbLogger):
            logger.experiment.finish()


def _how_to_go_on(cli: CLI | None) -> str:
    folder = getattr(cli, "run_folder", None)
    if cli is not None and folder is not None and cli.config["seeds"] is not None:
        return f"What is done is kept: give the same command again, with --run.name {folder.name}"
    if cli is not None and cli.choice is not None and last_checkpoint(cli.run_folder) is None:
        folder = Path(cli.choice.checkpoint).parent.parent  # of the run that has chosen, which refits anew
    last = None if folder is None else last_checkpoint(folder)
    if last is None:
        return "Nothing was saved yet: begin again"
    return f"Go on with: --config {folder}/config.yaml --ckpt_path {last}"


#: What collectives raise where a peer has ended: gloo's words, and NCCL's.
_PEER_GONE = (
    "Connection (closed by|reset by) peer|Socket closed|Broken pipe|remote process exited|communicator was aborted"
)


def _mendable(error: BaseException | None) -> str | None:
    """What to tell the user of an exception that they can mend; ``None`` for one that we have to."""
    while error is not None:  # the parser wraps what constructors raise
        if isinstance(error, CxlpError):
            # From a loader's worker, the message carries the worker's traceback.
            return str(error).rpartition("CxlpError: ")[2].strip()
        if isinstance(error, MisconfigurationException):
            return " ".join(str(error).split())
        if is_distributed() and re.search(_PEER_GONE, str(error)):
            return STOPPED
        error = error.__cause__
    return None


def _quiet() -> None:
    """Silence what a user cannot act upon, and keep wandb from talking at length."""
    os.environ.setdefault("WANDB_SILENT", "true")
    for name in ("pytorch_lightning", "lightning_fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    for message in (
        r".*isinstance\(treespec, LeafSpec\).*",
        r".*does not have many workers.*",
        r".*The number of training batches .* is smaller than the logging interval.*",
        r".*Checkpoint directory .* exists and is not empty.*",
        r".*Total length of `list` across ranks is zero.*",
        r".*configure_optimizers` returned `None`.*",
    ):
        warnings.filterwarnings("ignore", message)


if __name__ == "__main__":
    sys.exit(main())
