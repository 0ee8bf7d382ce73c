"""A predictor of a checkpoint, or of a run's folder."""

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
    """Make a predictor of a checkpoint of either mode; nothing else is needed.

    Args:
        checkpoint: A file that a run wrote, or the folder of a run, whose tested checkpoint is meant.
        device: See :meth:`Predictor.to`.
        precision: ``32`` or ``bf16`` (autocast).
        backbone: See :func:`~cxlp.models.checkpoint.load_network`, which says, too, what is imported: load only
            checkpoints that you trust.

    Raises:
        CxlpError: If it is no path, the file is missing or not a checkpoint of cxlp, or the device cannot be used.
    """
    if not isinstance(checkpoint, str | os.PathLike):
        raise CxlpError(f"the checkpoint is a {type(checkpoint).__name__}: give its path, or that of a run's folder")
    saved = read_checkpoint(checkpoint)
    # A checkpoint of a plain Trainer does not say how its pictures were made.
    image = saved["cxlp"].get("image", {"aspect": "warp"})
    if not isinstance(image, dict) or image.get("aspect") not in get_args(Aspect):
        raise CxlpError(f"{checkpoint} is broken: it does not say how its run made pictures square")
    network = network_of(saved, backbone, str(checkpoint))
    given = image["aspect"], precision, image.get("boxes", False), image.get("transform", ())
    return Predictor(network, *given).to(device)
