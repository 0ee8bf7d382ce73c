"""Views of an image: what of it a network is shown, and at which resolution."""

import math
from collections.abc import Hashable
from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from cxlp.utils.errors import CxlpError, did_you_mean

Kind = Literal["whole", "flip", "crops", "blocks", "regions"]

#: The size at which images are loaded for ten crops, relative to a crop: 256 px for 227 (Krizhevsky et al., 2012).
_CROPPED = 256 / 227
#: The same for regions: 512 px for 227 (Liu et al., NIPS 2014).
_REGIONS = 512 / 227


class Window(NamedTuple):
    """Where a square view lies in its image, pixels; mirrored: left and right are exchanged in it."""

    top: int
    left: int
    mirrored: bool


@dataclass(frozen=True)
class Views:
    """Which views of an image pass through the network.

    Attributes:
        kind: ``whole``: the image. ``flip``: the image and its mirror image. ``crops``: four corners and the
            centre, each also mirrored (CNN-Jitter). ``blocks``: the image cut into ``blocks`` x ``blocks`` parts, each
            enlarged to the network's input (CL-45F). ``regions``: windows of the network's input size on a larger
            image, ``stride`` pixels apart (R-CNN SCFV).
        blocks: Blocks per side.
        scale: Side of the image of which ``crops`` and ``regions`` are cut, in sides of the network's input;
            null: 1.13 for crops (256 px for 227), 2.26 for regions (512 px for 227).
        stride: Pixels between regions, in sides of the network's input; the last ones in a row end at the
            border. (0.28: 64 px for 227, 36 regions. Regions 8 px apart would be 1,369.)
    """

    kind: Kind = "whole"
    blocks: int = 2
    scale: float | None = None
    stride: float = 0.28

    def __post_init__(self) -> None:
        if self.kind not in get_args(Kind):
            raise CxlpError(f"unknown views {self.kind!r}. {did_you_mean(self.kind, get_args(Kind))}")
        if self.blocks < 1:
            raise CxlpError(f"views.blocks is {self.blocks}: it must be 1 or more")
        if self.scale is not None and self.scale < 1:
            raise CxlpError(f"views.scale is {self.scale}: views are cut of an image that is no smaller, so 1 or more")
        if not self.stride > 0:
            raise CxlpError(f"views.stride is {self.stride}: it must be greater than 0")

    @property
    def relevant(self) -> Hashable:
        """What distinguishes these views from others: the kind, and those of its options that have an effect."""
        options = {"crops": (self.scale,), "blocks": (self.blocks,), "regions": (self.scale, self.stride)}
        return self.kind, options.get(self.kind, ())

    def image_size(self, size: int) -> int:
        """Side of the square image that the views are cut of, for a network that takes ``size`` pixels."""
        if self.kind == "blocks":
            return self.blocks * size
        if self.kind in ("whole", "flip"):
            return size
        return round((self.scale or (_CROPPED if self.kind == "crops" else _REGIONS)) * size)

    def count(self, size: int) -> int:
        """Views per image: forward passes."""
        if self.kind == "blocks":
            return self.blocks**2
        if self.kind == "regions":
            return len(self._offsets(size)) ** 2
        return {"whole": 1, "flip": 2, "crops": 10}[self.kind]

    def cut(self, images: Tensor, size: int) -> Tensor:
        """Make the views.

        Args:
            images: ``(B, 3, S, S)``, uint8 of 0..255 or floating point of 0..1; resized where S is not
                :meth:`image_size`.
            size: Side of a view, pixels.

        Returns:
            ``(B * V, 3, size, size)``, an image's views one after another, row by row: blocks and regions
            from top left to bottom right; crops top left, top right, bottom left, bottom right, centre,
            then their mirror images; the image before its mirror image.
        """
        images = resized(images, self.image_size(size))
        if self.kind == "whole":
            return images
        views = []
        for top, left, mirrored in self.windows(size):
            view = images[..., top : top + size, left : left + size]
            views.append(view.flip(-1) if mirrored else view)
        return torch.stack(views, dim=1).flatten(0, 1)  # (B V, 3, size, size)

    def windows(self, size: int) -> list[Window]:
        """Say where the views lie in the image of :meth:`image_size`, in the order of :meth:`cut`."""
        if self.kind in ("whole", "flip"):
            corners = [(0, 0)]
        elif self.kind == "crops":
            far = self.image_size(size) - size
            corners = [(0, 0), (0, far), (far, 0), (far, far), (far // 2, far // 2)]
        else:
            offsets = self._offsets(size)
            corners = [(y, x) for y in offsets for x in offsets]
        mirrors = (False, True) if self.kind in ("flip", "crops") else (False,)
        return [Window(top, left, mirrored) for mirrored in mirrors for top, left in corners]

    def _offsets(self, size: int) -> list[int]:
        """Where views begin along one side."""
        if self.kind == "blocks":
            return [i * size for i in range(self.blocks)]
        room = self.image_size(size) - size
        steps = math.ceil(room / (self.stride * size))
        return [round(i * room / steps) for i in range(steps + 1)] if steps else [0]


def resized(images: Tensor, size: int) -> Tensor:
    """Resize square images.

    Args:
        images: ``(B, 3, S, S)``, uint8 of 0..255 or floating point of 0..1.
        size: Side of the result, pixels.

    Returns:
        The images as they are where they have that size; else ``(B, 3, size, size)`` in floating point, 0..1.
    """
    if images.shape[-1] == size:
        return images
    # In floating point for bytes, too: nothing is rounded in between, and GPUs lack bicubic resizing of bytes.
    full = images if images.is_floating_point() else images.float() / 255
    if images.shape[0] == 0:  # a rank's share of a last batch
        return full.new_zeros(0, 3, size, size)
    return F.interpolate(full, (size, size), mode="bicubic", antialias=True, align_corners=False).clamp(0, 1)
