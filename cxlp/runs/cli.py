"""The command line of a run: every key of its configs, parsed and checked."""

import importlib
import logging
import os
import re
import warnings
from collections.abc import Sequence
from functools import cache
from typing import Literal, get_type_hints

import pytorch_lightning as pl
from jsonargparse import ArgumentParser, Namespace

from cxlp.data import import_data_modules
from cxlp.data.datamodule import ImageDataModule
from cxlp.runs.arguments import CLASSES, HEAD, TRAINER, find_configs, separate_head_lists
from cxlp.runs.config_errors import check_group, explain, explain_instance, refuse_infinite, refuse_nulls
from cxlp.runs.loggers import RunConfig
from cxlp.runs.recipe import ModelConfig
from cxlp.tasks.finetune import UNFITTED
from cxlp.utils.errors import CxlpError
from cxlp.utils.program import train_program


@cache
def build_parser() -> ArgumentParser:
    """Build the parser of all keys: ``model``, ``data``, ``trainer``, ``run``, and a few single keys."""
    import_data_modules()  # makes their short names known
    parser = ArgumentParser(
        prog=train_program(),
        description="Train and test cross-convolutional-layer pooling.",
        allow_abbrev=False,  # a misspelt key must not match another one
        exit_on_error=False,
    )
    parser.add_argument(
        "-c", "--config", action="config", help="A config file, here or in configs/; later ones override earlier ones."
    )
    parser.add_argument("--seed_everything", type=int, default=0, help="Seed of the run.")
    parser.add_class_arguments(ModelConfig, "model")
    parser.add_subclass_arguments(ImageDataModule, "data", required=True)
    parser.add_class_arguments(pl.Trainer, "trainer", instantiate=False, fail_untyped=False, skip={"precision"})
    parser.add_argument(
        "--trainer.precision",
        type=get_type_hints(pl.Trainer.__init__)["precision"] | Literal["auto"],
        default=None,
        help="Lightning's precision, for all stages. auto or null: bf16-mixed for forward passes without gradients if "
        "the hardware computes with bfloat16, 32-true for gradient epochs, and for a test the precision that its "
        "checkpoint was validated in.",
    )
    parser.add_class_arguments(RunConfig, "run")
    parser.add_argument(
        "--ckpt_path", type=str | None, default=None, help="Resume a run: its folder, or a checkpoint in it."
    )
    parser.add_argument(
        "--seeds",
        type=int | None,
        default=None,
        help="Number of seeds to run, from seed_everything upward, one after another in one folder; prints mean and "
        "standard deviation at the end. The seed determines order, augmentation and initial weights; the held-out "
        "images stay the same unless data.split_seed is null. Given the same --run.name, finished runs are skipped.",
    )
    parser.set_defaults({"model.head": {"class_path": HEAD}})
    parser.set_defaults({f"trainer.{key}": value for key, value in TRAINER.items()})
    return parser


def parse(arguments: Sequence[str]) -> Namespace:
    """Parse the arguments of a run into a resolved config, without building any object.

    Raises:
        CxlpError: If an argument is invalid; names the key and the valid choices.
    """
    quiet()
    parser = build_parser()
    try:
        config: Namespace = parser.parse_args(separate_head_lists(find_configs(arguments)))
    except CxlpError:
        raise
    except Exception as error:  # argparse, jsonargparse and yaml raise different classes
        raise CxlpError(explain(parser, error, CLASSES)) from error
    if config["trainer"]["precision"] == "auto":
        config["trainer"]["precision"] = None
    refuse_infinite(config)
    for group in ("trainer", "run"):
        check_group(group, config[group])
    if config["seed_everything"] is None or not 0 <= config["seed_everything"] < 2**32:
        raise CxlpError(f"seed_everything is {config['seed_everything']}: give an integer from 0 to 2^32 - 1")
    module, _, name = config["data"]["class_path"].rpartition(".")
    refuse_nulls(config, {"model": ModelConfig, "data": getattr(importlib.import_module(module), name)})
    return config


def parts_of(config: Namespace) -> Namespace:
    """Instantiate the classes of a resolved config: ``model`` and ``data``.

    Raises:
        CxlpError: If a value is out of its range.
    """
    try:
        parts: Namespace = build_parser().instantiate(config.clone())
        return parts
    except Exception as error:  # the parser wraps exceptions of constructors, sometimes repeatedly
        cause: BaseException | None = error
        while cause is not None and not isinstance(cause, CxlpError):
            cause = cause.__cause__
        said = explain_instance(error) if cause is None else str(cause)
        if said is None:
            raise
        raise CxlpError(said) from error


def model_of(config: Namespace) -> ModelConfig:
    """Instantiate the ``model`` keys of a resolved config.

    Raises:
        CxlpError: If a value is out of its range.
    """
    model: ModelConfig = parts_of(config)["model"]
    return model


#: Warnings that a user of a run cannot act on, by the start of their messages, and the reason to ignore each.
_IGNORED_WARNINGS = {
    r"`isinstance\(treespec, LeafSpec\)` is deprecated": "Lightning's own code makes this call",
    r".*does not have many workers": "the number of workers follows the number of cores, or the user sets it",
    r"The number of training batches .* is smaller than the logging interval": "each epoch's end is logged as well",
    r"Checkpoint directory .* exists and is not empty": "it is the run's own folder, which stages share",
    r"Total length of `list` across ranks is zero": "without held-out images, the loader is an empty list",
    r".*configure_optimizers` returned `None`": "the frozen fit needs no optimizer",
    r"It is recommended to use `self\.log.*sync_dist=True": "these values are logged by rank 0 on purpose",
    r"Found .* module\(s\) in eval mode at the start of training": "intended for frozen BatchNorm and the frozen fit",
    r"`ModelCheckpoint\(monitor='val/(accuracy|mAP)'\)` could not find the monitored": "some epochs are not validated",
    re.escape(UNFITTED): "model.start requests it",
}


def quiet() -> None:
    """Filter warnings that a user cannot act on, and reduce the output of Lightning and wandb."""
    os.environ.setdefault("WANDB_SILENT", "true")
    for name in ("pytorch_lightning", "lightning_fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)  # omits tips, devices and seeds; the run prints what matters
    for message in _IGNORED_WARNINGS:
        warnings.filterwarnings("ignore", message)
