"""MixUp and CutMix augmentation."""

from typing import Literal

import numpy as np
import torch
from torch import Tensor
from torchvision.transforms.v2 import CutMix, MixUp

Mix = Literal["none", "mixup", "cutmix"]


class Mixing:
    """Mixes each image ``x`` and its label with the previous image ``x'`` of the batch, by MixUp or CutMix.

    ``mixup`` computes ``lambda x + (1 - lambda) x'`` (Zhang et al., ICLR 2018). ``cutmix`` replaces a rectangle, which
    covers ``1 - lambda`` of ``x``, by the same rectangle of ``x'`` (Yun et al., ICCV 2019). Lambda is drawn from
    Beta(alpha, alpha), once per batch. The labels are mixed with the weights lambda and 1 - lambda.

    Args:
        kind: ``mixup`` or ``cutmix``.
        alpha: Parameter of the beta distribution: small values mix little, and 1 draws lambda uniformly.
        classes: Number of classes, K.
    """

    def __init__(self, kind: Literal["mixup", "cutmix"], alpha: float, classes: int) -> None:
        self.mix = (MixUp if kind == "mixup" else CutMix)(alpha=alpha, num_classes=classes)

    def __call__(self, images: Tensor, labels: Tensor, *seed: int) -> tuple[Tensor, Tensor]:
        """Mix a batch.

        Args:
            images: ``(B, 3, H, W)``, uint8 in 0..255 or floating point in 0..1.
            labels: ``(B,)`` class indices.
            seed: Integers that seed the draw. Nothing else determines it, so that a resumed run mixes as an
                uninterrupted run does.

        Returns:
            Images ``(B, 3, H, W)`` in floating point, in 0..1, and targets ``(B, K)``, which sum to 1 for each image.
        """
        images = images if images.is_floating_point() else images.float() / 255
        state = int(np.random.SeedSequence(seed).generate_state(1)[0])
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(state)  # torchvision draws lambda on the CPU
            mixed, targets = self.mix(images, labels)
        return mixed, targets
