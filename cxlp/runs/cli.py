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
from cxlp.runs.arguments import CLASSES, HEAD, TRAINER, find_configs, part_heads
from cxlp.runs.config_errors import check_group, explain, explain_instance, refuse_infinite, refuse_nulls
from cxlp.runs.loggers import RunConfig
from cxlp.runs.recipe import ModelConfig
from cxlp.tasks.finetune import UNFITTED
from cxlp.utils.errors import CxlpError
from cxlp.utils.program import train_program


@cache
def build_parser() -> ArgumentParser:
    """Build the parser of all keys: ``model``, ``data``, ``trainer``, ``run``, and a few of their own."""
    import_data_modules()  # so that their short names are known
    parser = ArgumentParser(
        prog=train_program(),
        description="Train and test cross-convolutional-layer pooling.",
        allow_abbrev=False,  # a misspelt key must not pass for another
        exit_on_error=False,
    )
    parser.add_argument("-c", "--config", action="config", help="A config, here or in configs/; later ones win.")
    parser.add_argument("--seed_everything", type=int, default=0, help="Seed of the run.")
    parser.add_class_arguments(ModelConfig, "model")
    parser.add_subclass_arguments(ImageDataModule, "data", required=True)
    parser.add_class_arguments(pl.Trainer, "trainer", instantiate=False, fail_untyped=False, skip={"precision"})
    parser.add_argument(
        "--trainer.precision",
        type=get_type_hints(pl.Trainer.__init__)["precision"] | Literal["auto"],
        default=None,
        help="As Lightning has it, for all stages. auto, or null: forward passes without gradients in bf16-mixed where "
        "the hardware computes with bfloat16, gradient epochs in 32-true; a test as its checkpoint was validated.",
    )
    parser.add_class_arguments(RunConfig, "run")
    parser.add_argument(
        "--ckpt_path", type=str | None, default=None, help="Go on with a run: its folder, or a checkpoint in it."
    )
    parser.add_argument(
        "--seeds",
        type=int | None,
        default=None,
        help="Do the run with so many seeds, from seed_everything upward, one after another in one folder; mean and "
        "deviation in the end. With the seed move order, augmentation, initial weights; what is held out stays, unless "
        "data.split_seed is null. What is done already is not done again, given the same --run.name.",
    )
    parser.set_defaults({"model.head": {"class_path": HEAD}})
    parser.set_defaults({f"trainer.{key}": value for key, value in TRAINER.items()})
    return parser


def parse(arguments: Sequence[str]) -> Namespace:
    """Resolve the arguments of a run, without building anything.

    Raises:
        CxlpError: Names the key that is wrong, and what would be right.
    """
    quiet()
    parser = build_parser()
    try:
        config: Namespace = parser.parse_args(part_heads(find_configs(arguments)))
    except CxlpError:
        raise
    except Exception as error:  # argparse, jsonargparse and yaml each raise their own
        raise CxlpError(explain(parser, error, CLASSES)) from error
    if config["trainer"]["precision"] == "auto":
        config["trainer"]["precision"] = None
    refuse_infinite(config)
    for group in ("trainer", "run"):
        check_group(group, config[group])
    if config["seed_everything"] is None or not 0 <= config["seed_everything"] < 2**32:
        raise CxlpError(f"seed_everything is {config['seed_everything']}: a seed lies between 0 and 2^32 - 1")
    module, _, name = config["data"]["class_path"].rpartition(".")
    refuse_nulls(config, {"model": ModelConfig, "data": getattr(importlib.import_module(module), name)})
    return config


def parts_of(config: Namespace) -> Namespace:
    """Make the keys of a resolved config what they stand for: ``model``, ``data``.

    Raises:
        CxlpError: If a value is out of its range.
    """
    try:
        parts: Namespace = build_parser().instantiate(config.clone())
        return parts
    except Exception as error:  # the parser wraps what constructors raise, also more than once
        cause: BaseException | None = error
        while cause is not None and not isinstance(cause, CxlpError):
            cause = cause.__cause__
        said = explain_instance(error) if cause is None else str(cause)
        if said is None:
            raise
        raise CxlpError(said) from error


def model_of(config: Namespace) -> ModelConfig:
    """Make the model's keys of a resolved config what they stand for.

    Raises:
        CxlpError: If a value is out of its range.
    """
    model: ModelConfig = parts_of(config)["model"]
    return model


#: Warnings that nobody can act upon in a run, by the beginnings of their messages, and why each is none.
_NO_NEWS = {
    r"`isinstance\(treespec, LeafSpec\)` is deprecated": "Lightning's own code calls torch so",
    r".*does not have many workers": "the number of workers is chosen by the cores, or by the user",
    r"The number of training batches .* is smaller than the logging interval": "each epoch's end is logged, too",
    r"Checkpoint directory .* exists and is not empty": "it is the run's own, where stages share it",
    r"Total length of `list` across ranks is zero": "without held-out images, the loader is an empty list",
    r".*configure_optimizers` returned `None`": "the frozen fit has no optimizer of use",
    r"It is recommended to use `self\.log.*sync_dist=True": "such figures are rank 0's, on purpose",
    r"Found .* module\(s\) in eval mode at the start of training": "frozen BatchNorm, and the frozen fit, evaluate",
    r"`ModelCheckpoint\(monitor='val/(accuracy|mAP)'\)` could not find the monitored": "not each epoch is validated",
    re.escape(UNFITTED): "model.start asks for it",
}


def quiet() -> None:
    """Silence what a user cannot act upon, and keep wandb from talking at length."""
    os.environ.setdefault("WANDB_SILENT", "true")
    for name in ("pytorch_lightning", "lightning_fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)  # tips, devices, seeds: the run says itself what matters
    for message in _NO_NEWS:
        warnings.filterwarnings("ignore", message)
