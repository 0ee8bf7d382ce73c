"""The command line: configs in, one run folder out."""

import logging
import os
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

from cxlp.backbones.feature_extraction import fused_batch_norms
from cxlp.data.datamodule import ImageDataModule
from cxlp.metrics.classification import SELECTION
from cxlp.runs.arguments import CLASSES, find_configs, nested_as_configs
from cxlp.runs.callbacks import (
    EpochSeed,
    RunIdentity,
    TrainingBar,
    TrainingWatch,
    WholeCheckpoints,
    checkpoints,
    save_from_step_0,
)
from cxlp.runs.config_errors import explain, refuse_nulls
from cxlp.runs.evaluation import TestReport
from cxlp.runs.folder import (
    find_resumed,
    launched_rank,
    new_folder,
    run_name,
)
from cxlp.runs.loggers import RunConfig, build_loggers, labelled
from cxlp.runs.provenance import Provenance
from cxlp.runs.refit import Choice, StopAfter, read_choice
from cxlp.tasks import FineTune, Frozen
from cxlp.tasks.base import CrossLayerTask
from cxlp.utils.errors import CxlpError
from cxlp.utils.files import write_whole
from cxlp.utils.locking import hold
from cxlp.utils.program import train_program


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
                "prog": train_program(),
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


def parse(arguments: Sequence[str]) -> Namespace:
    """Resolve arguments of ``train.py`` without building anything.

    Raises:
        CxlpError: As ``train.py`` would.
    """
    quiet()
    return _Parsed(nested_as_configs(find_configs(arguments))).config


class _Parsed(CLI):
    def instantiate_classes(self) -> None:
        """Build nothing."""

    def after_instantiate_classes(self) -> None:
        """Write nothing."""


def quiet() -> None:
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
