"""MixUp and CutMix."""

from typing import Literal

import numpy as np
import torch
from torch import Tensor
from torchvision.transforms.v2 import CutMix, MixUp

Mix = Literal["none", "mixup", "cutmix"]


class Mixing:
    """Mixes each image of a batch with the one before it, and their labels in the same proportion.

    ``mixup``: ``lambda x + (1 - lambda) x'`` (Zhang et al., ICLR 2018); ``cutmix``: a rectangle of ``x'`` in ``x``,
    ``1 - lambda`` of its area (Yun et al., ICCV 2019). Lambda is drawn from Beta(alpha, alpha), once per batch.

    Args:
        kind: ``mixup`` or ``cutmix``.
        alpha: Parameter of the distribution: small values mix little, 1 draws lambda uniformly.
        classes: K.
    """

    def __init__(self, kind: Literal["mixup", "cutmix"], alpha: float, classes: int) -> None:
        self.mix = (MixUp if kind == "mixup" else CutMix)(alpha=alpha, num_classes=classes)

    def __call__(self, images: Tensor, labels: Tensor, *seed: int) -> tuple[Tensor, Tensor]:
        """Mix a batch.

        Args:
            images: ``(B, 3, H, W)``, uint8 of 0..255 or floating point of 0..1.
            labels: ``(B,)`` class indices.
            seed: Integers that alone determine the draw, so that a resumed run draws as one that was not stopped.

        Returns:
            Images ``(B, 3, H, W)`` in floating point, 0..1, and targets ``(B, K)``, which sum to 1 for each image.
        """
        images = images if images.is_floating_point() else images.float() / 255
        state = int(np.random.SeedSequence(seed).generate_state(1)[0])
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(state)  # the CPU's only, where proportions are drawn
            mixed, targets = self.mix(images, labels)
        return mixed, targets
