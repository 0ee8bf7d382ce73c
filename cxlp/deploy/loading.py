"""Load a predictor from a checkpoint or a run's folder."""

import os
from typing import get_args

import torch
from torch import nn

from cxlp.data.transforms import Aspect
from cxlp.deploy.predictor import Precision, Predictor
from cxlp.models.checkpoint import network_of, read_checkpoint
from cxlp.utils.errors import CxlpError


def load(
    checkpoint: str | os.PathLike[str],
    device: str | torch.device = "cpu",
    precision: Precision = "32",
    backbone: nn.Module | None = None,
) -> Predictor:
    """Load a predictor from a checkpoint of either mode.

    Heads and backbones that the checkpoint names by import path are imported and called: load only checkpoints that
    you trust, see :func:`~cxlp.models.checkpoint.load_network`.

    Args:
        checkpoint: A checkpoint of a run, or the folder of a run, whose tested checkpoint is loaded.
        device: See :meth:`Predictor.to`.
        precision: ``32`` or ``bf16`` (autocast).
        backbone: See :func:`~cxlp.models.checkpoint.load_network`.

    Raises:
        CxlpError: If ``checkpoint`` is not a path, the file is missing or not a checkpoint of cxlp, or the device
            cannot be used.
    """
    if not isinstance(checkpoint, str | os.PathLike):
        raise CxlpError(f"checkpoint is a {type(checkpoint).__name__}: pass the path of a checkpoint or a run's folder")
    saved = read_checkpoint(checkpoint)
    # A checkpoint of a plain Trainer does not contain the preprocessing of images.
    image = saved["cxlp"].get("image", {"aspect": "warp"})
    if not isinstance(image, dict) or image.get("aspect") not in get_args(Aspect):
        raise CxlpError(
            f"{checkpoint} is broken: its entry image has no valid aspect. Use another checkpoint of the run"
        )
    network = network_of(saved, backbone, str(checkpoint))
    given = image["aspect"], precision, image.get("boxes", False), image.get("transform", ())
    return Predictor(network, *given).to(device)
