"""What a run refuses before it begins: options that would have no effect, or spoil its result."""

import os

import torch
from jsonargparse import Namespace

from cxlp.backbones.library import check_name
from cxlp.runs.cli import build_parser
from cxlp.runs.places import STARTS
from cxlp.runs.recipe import ModelConfig, check_gradient_options
from cxlp.utils.errors import CxlpError, did_you_mean

#: What the environment variable ``WANDB_MODE`` may say; wandb knows more of them, for its own servers.
WANDB_MODES = ("online", "offline", "disabled", "dryrun", "off")

#: Options of the Trainer that would leave a part of the held-out or of the test images out, with what leaves out none.
WHOLE: dict[str, tuple[object, ...]] = {
    "fast_dev_run": (None, False, 0), "barebones": (None, False), "overfit_batches": (None, 0.0),
    "limit_val_batches": (None, 1.0), "limit_test_batches": (None, 1.0),
}  # fmt: skip

#: Options of the Trainer that it takes as they are, and the least values that make sense.
LEAST = {"gradient_clip_val": 0, "log_every_n_steps": 0, "accumulate_grad_batches": 1, "check_val_every_n_epoch": 1}


def check_trainer(config: Namespace, model: ModelConfig) -> None:
    """Refuse options of the Trainer that contradict the rest.

    Args:
        config: Resolved.
        model: Built from it.

    Raises:
        CxlpError: Names the key, and what to do.
    """
    trainer, refit = config["trainer"], config["run"]["refit"]
    if trainer["default_root_dir"] is not None:
        raise CxlpError("trainer.default_root_dir: a run's folder is made in run.root; set --run.root")
    for key, whole in WHOLE.items():
        # 1.0 is all batches, 1 is one of them
        if trainer[key] not in whole or (trainer[key] == 1 and isinstance(trainer[key], int)):
            raise CxlpError(
                f"trainer.{key} is {trainer[key]}: the best epoch is chosen by all held-out images, and a run ends "
                "with its whole test; leave it out"
            )
    if not isinstance(trainer["max_epochs"], int) or trainer["max_epochs"] < 0:
        raise CxlpError(
            f"trainer.max_epochs is {trainer['max_epochs']}: give the number of gradient epochs, 0 for the frozen mode"
        )
    check_name(model.backbone.name)  # before data are fetched
    check_gradient_options(config, build_parser().get_defaults())
    for key, least in LEAST.items():
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
        raise CxlpError("run.refit counts epochs: leave trainer.max_steps and trainer.max_time out")
    if refit and model.start not in STARTS:
        raise CxlpError(
            f"run.refit fits all training images anew, but {model.start} was fitted to some of them: set model.start: "
            "frozen; with model.frozen.store, its features are kept"
        )
    if trainer["sync_batchnorm"] and model.freeze_batch_norm:
        raise CxlpError(
            "trainer.sync_batchnorm shares statistics that this run does not take: it keeps those there are. Leave it "
            "out, or fine-tune with model.freeze_batch_norm: false"
        )
    if trainer["sync_batchnorm"] and (trainer["accelerator"] == "cpu" or not torch.cuda.is_available()):
        raise CxlpError("trainer.sync_batchnorm needs GPUs: torch has no such BatchNorm for the CPU")


def check_held_out(config: Namespace, images: int) -> None:
    """Refuse a refit that has no held-out images to choose by, or would leave some out.

    Args:
        config: Resolved.
        images: How many are held out.

    Raises:
        CxlpError: Names the key, and what to do.
    """
    refit = config["run"]["refit"]
    if refit is True and not (images and config["trainer"]["enable_checkpointing"] is not False):
        raise CxlpError(
            "run.refit chooses the epoch by held-out images and its checkpoint: set data.validation, such as 0.1, and "
            "leave trainer.enable_checkpointing out"
        )
    if isinstance(refit, str) and images:
        raise CxlpError(
            f"run.refit is the choice of an earlier run, but {images:,} images are held out: a refit takes all "
            "training images, set data.validation: 0"
        )
