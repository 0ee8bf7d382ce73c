"""Views of an image that pass through the network: mirror images, crops, blocks or regions."""

import math
from collections.abc import Hashable
from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from cxlp.utils.errors import CxlpError, did_you_mean

Kind = Literal["whole", "flip", "crops", "blocks", "regions"]

#: Image size for ten crops, relative to the size of a crop: 256 px for 227 px (Krizhevsky et al., 2012).
_CROPPED = 256 / 227
#: Image size for regions, relative to the size of a region: 512 px for 227 px (Liu et al., NIPS 2014).
_REGIONS = 512 / 227


class Window(NamedTuple):
    """Position of a square view in its image, in pixels, and whether the view is mirrored left to right."""

    top: int
    left: int
    mirrored: bool


@dataclass(frozen=True)
class Views:
    """Which views of an image pass through the network.

    Attributes:
        kind: ``whole``: the image. ``flip``: the image and its mirror image. ``crops``: the four corners and the
            centre, each also mirrored (CNN-Jitter). ``blocks``: the image divided into ``blocks`` x ``blocks`` parts,
            each enlarged to the network's input size (CL-45F). ``regions``: windows of the network's input size on a
            larger image, at steps of ``stride`` (R-CNN SCFV).
        blocks: Number of blocks per side.
        scale: Size of the image that ``crops`` and ``regions`` are cut from, as a multiple of the network's input
            size; null: 1.13 for crops (256 px for 227 px), 2.26 for regions (512 px for 227 px).
        stride: Step between regions, as a fraction of the network's input size. The last region of a row ends at the
            image border. (The default 0.28 means 64 px for 227 px, 36 regions; steps of 8 px would mean 1,369.)
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
            raise CxlpError(f"views.scale is {self.scale}: it must be 1 or more, since views are cut from this image")
        if not self.stride > 0:
            raise CxlpError(f"views.stride is {self.stride}: it must be greater than 0")

    @property
    def relevant(self) -> Hashable:
        """The kind and the options that have an effect for this kind, as a key to compare views."""
        options = {"crops": (self.scale,), "blocks": (self.blocks,), "regions": (self.scale, self.stride)}
        return self.kind, options.get(self.kind, ())

    def image_size(self, size: int) -> int:
        """Return the size of the square image that views of ``size`` pixels are cut from."""
        if self.kind == "blocks":
            return self.blocks * size
        if self.kind in ("whole", "flip"):
            return size
        return round((self.scale or (_CROPPED if self.kind == "crops" else _REGIONS)) * size)

    def count(self, size: int) -> int:
        """Return the number of views per image, which is the number of forward passes."""
        if self.kind == "blocks":
            return self.blocks**2
        if self.kind == "regions":
            return len(self._offsets(size)) ** 2
        return {"whole": 1, "flip": 2, "crops": 10}[self.kind]

    def cut(self, images: Tensor, size: int) -> Tensor:
        """Cut the views from images.

        Args:
            images: ``(B, 3, S, S)``, uint8 in 0..255 or floating point in 0..1. Images are resized if S differs from
                :meth:`image_size`.
            size: Size of a view in pixels.

        Returns:
            ``(B * V, 3, size, size)``, where the views of an image are adjacent. Blocks and regions are in row-major
            order. Crops are in the order top left, top right, bottom left, bottom right, centre, followed by their
            mirror images. The image precedes its mirror image.
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
        """Return the positions of the views in the image of :meth:`image_size`, in the order of :meth:`cut`."""
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
        """Return the start positions of views along one side of the image."""
        if self.kind == "blocks":
            return [i * size for i in range(self.blocks)]
        room = self.image_size(size) - size
        steps = math.ceil(room / (self.stride * size))
        return [round(i * room / steps) for i in range(steps + 1)] if steps else [0]


def resized(images: Tensor, size: int) -> Tensor:
    """Resize square images.

    Args:
        images: ``(B, 3, S, S)``, uint8 in 0..255 or floating point in 0..1.
        size: Target size in pixels.

    Returns:
        The unchanged images if they have this size, otherwise ``(B, 3, size, size)`` in floating point in 0..1.
    """
    if images.shape[-1] == size:
        return images
    # Bytes are resized in floating point, without rounding in between. GPUs cannot resize bytes bicubically.
    full = images if images.is_floating_point() else images.float() / 255
    if images.shape[0] == 0:  # a rank may have no share of the last batch
        return full.new_zeros(0, 3, size, size)
    return F.interpolate(full, (size, size), mode="bicubic", antialias=True, align_corners=False).clamp(0, 1)
