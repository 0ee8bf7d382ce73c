"""Transform from a decoded image to the network's input, with augmentation by albumentations."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from cxlp.data.changes import build_change
from cxlp.data.decode import Pixels
from cxlp.utils.errors import CxlpError

Aspect = Literal["warp", "crop"]

_ELONGATION = 4 / 3  # largest ratio of the sides of a random crop


@dataclass(frozen=True)
class AugmentConfig:
    """Augmentation of training images in fine-tuning.

    Attributes:
        crop_scale: Lower bound of a random crop's area as a fraction of the image's area; 1: no cropping.
        flip: Probability of a horizontal flip.
        colour: Strength of random changes of brightness, contrast and saturation; 0: none.
        erase: Probability of filling a rectangle, 2 to 33 % of the area, with noise (random erasing, Zhong et al.,
            AAAI 2020).
        custom: Further transforms, applied in order: transforms of albumentations or ``torchvision.transforms.v2``, or
            modules of your own, each as ``class_path`` and ``init_args``. They must keep the shape and type of an
            image, see :func:`~cxlp.data.changes.build_change`.
    """

    crop_scale: float = 0.5
    flip: float = 0.5
    colour: float = 0.2
    erase: float = 0.0
    custom: tuple[dict[str, Any], ...] = ()

    def __post_init__(self) -> None:
        for name, low in (("crop_scale", 0.01), ("flip", 0.0), ("colour", 0.0), ("erase", 0.0)):
            value = getattr(self, name)
            if not low <= value <= 1:
                raise CxlpError(f"data.augment.{name} is {value}: it must lie between {low:g} and 1")
        for described in self.custom:
            build_change(described, "data.augment.custom")  # raises an error if it cannot be built


class Transform:
    """Resizes, optionally augments, and converts an image to a tensor; normalisation is part of the network.

    Args:
        size: Side of the square output in pixels.
        aspect: ``warp`` or ``crop``, see :class:`~cxlp.data.datamodule.ImageDataModule`.
        augment: Augmentation, applied if the transform is called with a seed.
        prepare: Transforms of all images before they are made square, see ``data.transform``.
    """

    def __init__(
        self, size: int, aspect: Aspect, augment: AugmentConfig, prepare: Sequence[Mapping[str, Any]] = ()
    ) -> None:
        self.size, self.aspect, self.crop_scale, self.augment = size, aspect, augment.crop_scale, augment
        self.described = tuple(map(dict, prepare))
        self._prepare = [build_change(each, "data.transform", resizes=True) for each in prepare]
        self._custom = [build_change(each, "data.augment.custom") for each in augment.custom]

    def __repr__(self) -> str:
        changes = f", after {[each.get('class_path') for each in self.described]}" if self.described else ""
        return f"Transform(to {self.size} x {self.size} pixels, {self.aspect}{changes})"

    @cached_property
    def random(self) -> Any:  # noqa: ANN401 (of albumentations)
        """The augmentation, built on first use, because the import of albumentations takes half a second."""
        import albumentations as A

        augment, size, jitter = self.augment, self.size, self.augment.colour
        changes = [
            A.HorizontalFlip(p=augment.flip),
            A.ColorJitter(jitter, jitter, jitter, hue=0.0, p=float(jitter > 0)),
        ]
        if augment.erase:
            changes.append(A.Erasing(fill="random", p=augment.erase))
        if self.crop_scale < 1:
            crop = A.RandomResizedCrop(
                (size, size),
                scale=(self.crop_scale, 1.0),
                ratio=(1 / _ELONGATION, _ELONGATION),
                interpolation=cv2.INTER_CUBIC,
                area_for_downscale="image",
            )
            changes.insert(0, crop)
        return A.Compose(changes)

    def at(self, size: int) -> "Transform":
        """Return the same transform for another size, without augmentation."""
        return Transform(size, self.aspect, AugmentConfig(), self.described)

    def prepared(self, image: Pixels) -> Pixels:
        """Apply the transforms of ``data.transform`` to a decoded image."""
        for change in self._prepare:
            image = change(image, 0)
        return image

    def proportion(self, image: Pixels) -> float:
        """Return the ratio of height to width of the region that the square input shows; 1 for ``crop``."""
        height, width = self.prepared(image).shape[:2]
        return height / width if self.aspect == "warp" else 1.0

    def needed(self, seed: int | None) -> int | None:
        """Return the short side at which an image must be decoded, so that no crop of it has to be enlarged.

        The smallest random crop of a ``W x H`` image has a short side of ``sqrt(crop_scale / (4 / 3) * W * H)``.

        Args:
            seed: Seed of the augmentation; ``None`` if there is no random crop.

        Returns:
            Pixels, or ``None`` for the full size of the file, because ``data.transform`` may need it.
        """
        if self._prepare:
            return None
        part = 1.0 if seed is None or self.crop_scale == 1 else self.crop_scale / _ELONGATION
        return math.ceil(self.size / math.sqrt(part))

    def __call__(self, image: Pixels, seed: int | None) -> Tensor:
        """Transform an image into the network's input.

        Args:
            image: ``(H, W, 3)`` uint8, RGB.
            seed: Seed of the augmentation, which depends neither on the worker nor on earlier draws; ``None`` for no
                augmentation.

        Returns:
            ``(3, size, size)`` uint8, RGB.
        """
        image = self.prepared(image)
        if seed is None:
            return self._fit(image)
        if self.crop_scale == 1:
            image = np.ascontiguousarray(self._fit(image).permute(1, 2, 0).numpy())
        self.random.set_random_seed(seed)
        changed = self.random(image=image)["image"]
        for change in self._custom:
            changed = change(changed, seed)
        return torch.from_numpy(np.ascontiguousarray(changed.transpose(2, 0, 1)))

    def _fit(self, image: Pixels) -> Tensor:
        height, width = image.shape[:2]
        if self.aspect == "warp":
            return _resize(image, self.size, self.size)
        short = min(height, width)
        height, width = (round(side * self.size / short) for side in (height, width))
        top, left = (height - self.size) // 2, (width - self.size) // 2
        resized = _resize(image, height, width)
        return resized[:, top : top + self.size, left : left + self.size].contiguous()


def _resize(image: Pixels, height: int, width: int) -> Tensor:
    """Resize ``(H, W, 3)`` to ``(3, height, width)`` by bicubic interpolation with antialiasing.

    On photos, the mean difference to ``cv2.INTER_AREA`` (the mean of the area that each pixel covers) is about 1 of
    255, at a quarter of its time.
    """
    planes = torch.from_numpy(image).permute(2, 0, 1)[None]
    return F.interpolate(planes, (height, width), mode="bicubic", antialias=True)[0].contiguous()
