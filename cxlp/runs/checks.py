"""Checks before a run begins: reject options that would have no effect or would invalidate the result."""

import os

import torch
from jsonargparse import Namespace

from cxlp.backbones.library import check_name
from cxlp.runs.cli import build_parser
from cxlp.runs.places import STARTS
from cxlp.runs.recipe import ModelConfig, check_gradient_options
from cxlp.utils.errors import CxlpError, did_you_mean

#: Valid values of the environment variable ``WANDB_MODE``; wandb has more, for its own servers.
WANDB_MODES = ("online", "offline", "disabled", "dryrun", "off")

#: Options of the Trainer that could omit some held-out or test images, with the values that omit none.
ALL_IMAGES: dict[str, tuple[object, ...]] = {
    "fast_dev_run": (None, False, 0), "barebones": (None, False), "overfit_batches": (None, 0.0),
    "limit_val_batches": (None, 1.0), "limit_test_batches": (None, 1.0),
}  # fmt: skip

#: Options that the Trainer does not check, with the smallest valid values.
MINIMA = {"gradient_clip_val": 0, "log_every_n_steps": 0, "accumulate_grad_batches": 1, "check_val_every_n_epoch": 1}


def check_trainer(config: Namespace, model: ModelConfig) -> None:
    """Reject options of the Trainer that contradict other options.

    Args:
        config: The resolved config.
        model: The model options built from the config.

    Raises:
        CxlpError: If an option is invalid; names the key and the remedy.
    """
    trainer, refit = config["trainer"], config["run"]["refit"]
    if trainer["default_root_dir"] is not None:
        raise CxlpError("trainer.default_root_dir has no effect, since runs are stored in run.root: give --run.root")
    for key, whole in ALL_IMAGES.items():
        # 1.0 means all batches, 1 means one batch
        if trainer[key] not in whole or (trainer[key] == 1 and isinstance(trainer[key], int)):
            raise CxlpError(
                f"trainer.{key} is {trainer[key]}: the epoch is chosen on all held-out images, and a run ends with a "
                "test on all test images; remove this option"
            )
    if not isinstance(trainer["max_epochs"], int) or trainer["max_epochs"] < 0:
        raise CxlpError(
            f"trainer.max_epochs is {trainer['max_epochs']}: give a number of gradient epochs; 0: frozen mode"
        )
    check_name(model.backbone.name)  # before data are downloaded
    check_gradient_options(config, build_parser().get_defaults())
    for key, least in MINIMA.items():
        if trainer[key] is not None and trainer[key] < least:
            raise CxlpError(f"trainer.{key} is {trainer[key]}: it must be {least} or more")
    mode = os.environ.get("WANDB_MODE", "online")
    if config["run"]["wandb"] == "auto" and mode not in WANDB_MODES:
        raise CxlpError(f"the environment variable WANDB_MODE is {mode!r}. {did_you_mean(mode, WANDB_MODES)}")
    if not trainer["max_epochs"] and not model.fits_first:
        raise CxlpError(
            f"model.start is {model.start}, but trainer.max_epochs is 0: nothing would be fitted. Give "
            "trainer.max_epochs, or add --config finetune.yaml"
        )
    if refit and (trainer["max_steps"] not in (None, -1) or trainer["max_time"]):
        raise CxlpError("run.refit stops after an epoch: remove trainer.max_steps and trainer.max_time")
    if refit and model.start not in STARTS:
        raise CxlpError(
            f"run.refit starts again on all training images, but model.start {model.start} was fitted to some of them: "
            "set model.start to frozen; with model.frozen.store, features are reused"
        )
    if trainer["sync_batchnorm"] and model.freeze_batch_norm:
        raise CxlpError(
            "trainer.sync_batchnorm has no effect, since model.freeze_batch_norm keeps BatchNorm's statistics fixed: "
            "remove it, or set model.freeze_batch_norm: false"
        )
    if trainer["sync_batchnorm"] and (trainer["accelerator"] == "cpu" or not torch.cuda.is_available()):
        raise CxlpError("trainer.sync_batchnorm needs GPUs: torch has no synchronized BatchNorm for the CPU")


def check_held_out(config: Namespace, images: int) -> None:
    """Reject a first run of a refit without held-out images, and a second run with held-out images.

    Args:
        config: The resolved config.
        images: Number of held-out images.

    Raises:
        CxlpError: If the options are invalid; names the key and the remedy.
    """
    refit = config["run"]["refit"]
    if refit is True and not (images and config["trainer"]["enable_checkpointing"] is not False):
        raise CxlpError(
            "run.refit chooses the epoch on held-out images and needs its checkpoint: set data.validation, such as "
            "0.1, and remove trainer.enable_checkpointing"
        )
    if isinstance(refit, str) and images:
        raise CxlpError(
            f"run.refit uses the choice of an earlier run and all training images, but {images:,} are held out: set "
            "data.validation: 0"
        )
