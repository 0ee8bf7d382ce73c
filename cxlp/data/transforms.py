"""From a decoded picture to the network's input, by albumentations."""

import os
from dataclasses import dataclass
from typing import Any, Literal

import cv2
import numpy as np
import torch
from torch import Tensor

# Before the import: it would ask PyPI for news, which stalls without a network.
os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")
import albumentations as A

from cxlp.errors import CxlpError

Aspect = Literal["warp", "crop"]


@dataclass(frozen=True)
class AugmentConfig:
    """Random changes of training images in fine-tuning.

    Attributes:
        crop_scale: Smallest part of the image's area that a random crop keeps; 1: no cropping.
        flip: Probability of a mirror image.
        colour: Strength of changes of brightness, contrast and saturation; 0: none.
    """

    crop_scale: float = 0.5
    flip: float = 0.5
    colour: float = 0.2

    def __post_init__(self) -> None:
        for name, low, high in (("crop_scale", 0.01, 1.0), ("flip", 0.0, 1.0), ("colour", 0.0, 1.0)):
            value = getattr(self, name)
            if not low <= value <= high:
                raise CxlpError(f"data.augment.{name} is {value}: it must lie between {low:g} and {high:g}")


class Transform:
    """Resize, perhaps augment, and turn into a tensor; the network itself normalises.

    Args:
        size: Side of the square output, pixels.
        aspect: ``warp`` or ``crop``, see :class:`~cxlp.data.base.ImageDataModule`.
        augment: Random changes, made where a seed is given.
    """

    def __init__(self, size: int, aspect: Aspect, augment: AugmentConfig) -> None:
        self.size = size
        # Shrinking averages areas, since interpolation alone skips pixels and textures alias;
        # enlarging (small boxes) interpolates by cubics.
        scaling = {"interpolation": cv2.INTER_CUBIC, "area_for_downscale": "image"}
        if aspect == "warp":
            steps = [A.Resize(size, size, **scaling)]
        else:
            steps = [A.SmallestMaxSize(size, **scaling), A.CenterCrop(size, size)]
        self.plain = A.Compose(steps)
        if augment.crop_scale < 1:
            steps = [
                A.RandomResizedCrop((size, size), scale=(augment.crop_scale, 1.0), ratio=(3 / 4, 4 / 3), **scaling)
            ]
        jitter = augment.colour
        self.random = A.Compose(
            [
                *steps,
                A.HorizontalFlip(p=augment.flip),
                A.ColorJitter(jitter, jitter, jitter, hue=0.0, p=float(jitter > 0)),
            ]
        )

    def __call__(self, image: np.ndarray[Any, np.dtype[np.uint8]], seed: int | None) -> Tensor:
        """Make the input of a picture.

        Args:
            image: ``(H, W, 3)`` uint8, RGB.
            seed: Of the random changes, so that they depend neither on the worker nor on what was
                drawn before; ``None``: no random changes.

        Returns:
            ``(3, size, size)`` uint8, RGB.
        """
        pipeline = self.plain
        if seed is not None:
            pipeline = self.random
            pipeline.set_random_seed(seed)
        changed = pipeline(image=image)["image"]
        return torch.from_numpy(np.ascontiguousarray(changed.transpose(2, 0, 1)))
