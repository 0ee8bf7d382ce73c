"""What users have for images, made into pictures: files, folders, patterns, Pillow's, arrays, tensors."""

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

#: A file, or a picture itself: Pillow's; an array ``(H, W)``, ``(H, W, 3)`` or ``(H, W, 4)``; a tensor ``(3, H, W)`` or
#: ``(1, H, W)``. Arrays and tensors are RGB (or grey), uint8 of 0..255 or floating point of 0..1.
Picture = str | os.PathLike[str] | Image.Image | np.ndarray[Any, Any] | Tensor
#: One picture, or several: a folder, a pattern, a batch as an array or tensor with a dimension more, any iterable.
Pictures = Picture | Iterable[Picture]


def is_one(images: Pictures) -> bool:
    """Whether a single picture is meant, and not a folder, a pattern, a batch or any other number of them."""
    if isinstance(images, str | os.PathLike):
        path = os.fspath(images)
        return not (os.path.isdir(path) or _is_pattern(path))  # noqa: PTH112 (pathlib's raises for what is no path)
    if isinstance(images, np.ndarray) and images.dtype.kind in "OU":  # of paths
        return False
    if isinstance(images, np.ndarray | Tensor):
        return images.ndim != 4
    return isinstance(images, Image.Image)


def one_by_one(images: Pictures) -> Iterator[Picture]:
    """Go through pictures; folders and patterns among them are gone through, too."""
    if is_one(images):
        yield cast(Picture, images)
    elif isinstance(images, str | os.PathLike):
        yield from image_paths([os.fspath(images)], ())
    elif isinstance(images, Iterable):
        for image in images:
            yield from one_by_one(image)
    else:
        yield images  # who opens it tells what it is


def pixels_of(image: Picture, needed: int | None = None) -> Pixels:
    """Make pixels of a picture.

    Args:
        image: See :data:`Picture`.
        needed: A file may be decoded at a reduced size, see :func:`~cxlp.data.decode.read_image`.

    Returns:
        ``(H, W, 3)`` uint8.

    Raises:
        CxlpError: If it cannot be decoded, or is of another kind.
    """
    if isinstance(image, str | os.PathLike):
        return read_image(Path(image), None, needed)
    if isinstance(image, Image.Image):
        return as_pixels(image)
    if isinstance(image, Tensor):
        if image.ndim != 3 or image.shape[0] not in (1, 3) or not image.numel():
            raise CxlpError(f"the picture is a tensor of shape {tuple(image.shape)}: give (3, H, W) or (1, H, W)")
        bytes_ = image.dtype == torch.uint8
        return _as_bytes((image if bytes_ else image.float()).detach().cpu().permute(1, 2, 0).numpy())
    if not isinstance(image, np.ndarray):
        raise CxlpError(
            f"the picture is a {type(image).__name__}: give a path, one of Pillow's, an array (H, W, 3) or a tensor "
            "(3, H, W)"
        )
    shape = image.shape
    if image.ndim not in (2, 3) or not image.size or (image.ndim == 3 and shape[2] not in (1, 3, 4)):
        channels_first = image.ndim == 3 and shape[0] in (1, 3)
        hint = " (transpose it, or give it as a tensor)" if channels_first else ""
        raise CxlpError(f"the picture is an array of shape {shape}: give (H, W, 3), RGB{hint}")
    return _as_bytes(image if image.ndim == 3 else image[..., None])


def prepared(image: Picture, transform: Transform) -> tuple[Tensor, float]:
    """Make a network's input ``(3, T, T)`` uint8 of a picture, and say how high what it shows is by its width."""
    pixels = pixels_of(image, transform.needed(None))
    return transform(pixels, None), transform.proportion(pixels)


def name_of(image: Picture) -> str:
    """The path of a file; empty for a picture itself."""
    return os.fspath(image) if isinstance(image, str | os.PathLike) else ""


def _is_pattern(path: str) -> bool:
    return glob.has_magic(path) and not os.path.lexists(path)


def _as_bytes(values: np.ndarray[Any, Any]) -> Pixels:
    """Make ``(H, W, 3)`` uint8 of one, three or four channels of bytes, or of floating point of 0..1."""
    values = values[..., :3] if values.shape[2] == 4 else values  # without alpha, as files are read
    if values.dtype != np.uint8:
        if values.dtype.kind != "f":
            raise CxlpError(f"the picture is of {values.dtype}: give uint8 of 0..255, or floating point of 0..1")
        least, most = float(values.min()), float(values.max())
        if not (least >= -SLACK and most <= 1 + SLACK):  # not so for NaN
            raise CxlpError(
                f"the picture has values from {least:.3g} to {most:.3g}, but floats are RGB of 0..1: the network "
                "normalises them itself, so leave out Normalize"
            )
        values = np.round(255 * values.clip(0, 1)).astype(np.uint8)
    return np.ascontiguousarray(values if values.shape[2] == 3 else values.repeat(3, axis=2))
