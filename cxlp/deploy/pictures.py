"""Conversion of users' images to pixels: files, folders, patterns, Pillow images, arrays and tensors."""

import glob
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from cxlp.backbones.inputs import SLACK
from cxlp.data.decode import Pixels, as_pixels, read_image
from cxlp.data.transforms import Transform
from cxlp.deploy.image_paths import image_paths
from cxlp.utils.errors import CxlpError

#: A path, a Pillow image, an array ``(H, W)``, ``(H, W, 3)`` or ``(H, W, 4)``, or a tensor ``(3, H, W)`` or
#: ``(1, H, W)``. Arrays and tensors are RGB (or grey), uint8 in 0..255 or floating point in 0..1.
Picture = str | os.PathLike[str] | Image.Image | np.ndarray[Any, Any] | Tensor
#: One image or several: a folder, a pattern, an array or tensor with a batch dimension, or any iterable of these.
Pictures = Picture | Iterable[Picture]


def is_single(images: Pictures) -> bool:
    """Return whether the argument is a single image, not a folder, pattern, batch or iterable."""
    if isinstance(images, str | os.PathLike):
        path = os.fspath(images)
        return not (os.path.isdir(path) or _is_pattern(path))  # noqa: PTH112 (pathlib raises for invalid paths)
    if isinstance(images, np.ndarray) and images.dtype.kind in "OU":  # an array of paths
        return False
    if isinstance(images, np.ndarray | Tensor):
        return images.ndim != 4
    return isinstance(images, Image.Image)


def iterate_pictures(images: Pictures) -> Iterator[Picture]:
    """Iterate over images, including those in folders and those that match patterns."""
    if is_single(images):
        yield cast(Picture, images)
    elif isinstance(images, str | os.PathLike):
        yield from image_paths([os.fspath(images)], ())
    elif isinstance(images, Iterable):
        for image in images:
            yield from iterate_pictures(image)
    else:
        yield images  # of an invalid type, for which pixels_of raises an error


def pixels_of(image: Picture, needed: int | None = None) -> Pixels:
    """Convert an image to pixels.

    Args:
        image: The image, see :data:`Picture`.
        needed: Size that is needed, so that a file may be decoded at a reduced size, see
            :func:`~cxlp.data.decode.read_image`.

    Returns:
        ``(H, W, 3)`` uint8.

    Raises:
        CxlpError: If the image cannot be decoded, or has another type.
    """
    if isinstance(image, str | os.PathLike):
        return read_image(Path(image), None, needed)
    if isinstance(image, Image.Image):
        return as_pixels(image)
    if isinstance(image, Tensor):
        if image.ndim != 3 or image.shape[0] not in (1, 3) or not image.numel():
            raise CxlpError(f"the image is a tensor of shape {tuple(image.shape)}: pass (3, H, W) or (1, H, W)")
        bytes_ = image.dtype == torch.uint8
        return _as_bytes((image if bytes_ else image.float()).detach().cpu().permute(1, 2, 0).numpy())
    if not isinstance(image, np.ndarray):
        raise CxlpError(
            f"the image is a {type(image).__name__}: pass a path, a Pillow image, an array (H, W, 3) or a tensor "
            "(3, H, W)"
        )
    shape = image.shape
    if image.ndim not in (2, 3) or not image.size or (image.ndim == 3 and shape[2] not in (1, 3, 4)):
        channels_first = image.ndim == 3 and shape[0] in (1, 3)
        hint = " (transpose the array, or pass a tensor)" if channels_first else ""
        raise CxlpError(f"the image is an array of shape {shape}: pass (H, W, 3), RGB{hint}")
    return _as_bytes(image if image.ndim == 3 else image[..., None])


def prepared(image: Picture, transform: Transform) -> tuple[Tensor, float]:
    """Return the network's input ``(3, T, T)`` uint8 and the image's height divided by its width."""
    pixels = pixels_of(image, transform.needed(None))
    return transform(pixels, None), transform.proportion(pixels)


def name_of(image: Picture) -> str:
    """Return the path of a file, or an empty string for other images."""
    return os.fspath(image) if isinstance(image, str | os.PathLike) else ""


def _is_pattern(path: str) -> bool:
    return glob.has_magic(path) and not os.path.lexists(path)


def _as_bytes(values: np.ndarray[Any, Any]) -> Pixels:
    """Convert one, three or four channels of bytes, or of floating point in 0..1, to ``(H, W, 3)`` uint8."""
    values = values[..., :3] if values.shape[2] == 4 else values  # alpha is ignored, as for files
    if values.dtype != np.uint8:
        if values.dtype.kind != "f":
            raise CxlpError(f"the image has type {values.dtype}: pass uint8 in 0..255 or floating point in 0..1")
        least, most = float(values.min()), float(values.max())
        if not (least >= -SLACK and most <= 1 + SLACK):  # rejects NaN, too
            raise CxlpError(
                f"the image has values from {least:.3g} to {most:.3g}, but floating point must be RGB in 0..1: the "
                "network normalises images itself, so do not apply Normalize"
            )
        values = np.round(255 * values.clip(0, 1)).astype(np.uint8)
    return np.ascontiguousarray(values if values.shape[2] == 3 else values.repeat(3, axis=2))
