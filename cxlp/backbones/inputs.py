"""Checks of images, image sizes, means and standard deviations for a network's input."""

import operator
from collections.abc import Sequence
from typing import Literal

from torch import Tensor

from cxlp.utils.errors import CxlpError

#: Tolerance for values outside 0..1, which resampling can produce.
SLACK = 0.1

#: The mean of RGB images in 0..1, one number per channel, or ``image``: each image's own mean.
Mean = Sequence[float] | Literal["image"]


def check_images(images: Tensor, side: int) -> None:
    """Check the shape and values of images for a network. The check of values synchronises with a GPU.

    Floating point values outside 0..1 indicate normalised images, or bytes that were converted to floating point.

    Args:
        images: The images, which must be ``(B, 3, side, side)``.
        side: Size of the network's input in pixels.

    Raises:
        CxlpError: If the images have another shape, or values outside 0..1.
    """
    if images.ndim != 4 or images.shape[1] != 3:
        raise CxlpError(
            f"the images have shape {tuple(images.shape)}: the network takes RGB images (B, 3, {side}, {side})"
        )
    if images.shape[2:] != (side, side):
        height, width = images.shape[2:]
        raise CxlpError(
            f"the images have {height} x {width} pixels, but the network takes {side} x {side}: resize them, or set "
            "the backbone's image_size"
        )
    if not images.is_floating_point() or not images.numel():
        return
    least, most = (float(value) for value in images.aminmax())
    if least < -SLACK or most > 1 + SLACK:
        raise CxlpError(
            f"the images have values from {least:.3g} to {most:.3g}, but RGB images must be floating point in 0..1 or "
            "uint8 in 0..255: the network normalises images itself, so do not apply Normalize"
        )


def side_of(image_size: int) -> int:
    """Return a backbone's ``image_size`` in pixels as an ``int``.

    Raises:
        CxlpError: If the size is not an integer, or out of range.
    """
    try:
        side = operator.index(image_size)  # accepts integers of NumPy, too
    except TypeError:
        side = 0
    if not 1 <= side <= 2**14:
        raise CxlpError(f"the backbone's image_size is {image_size!r}: set it to 1 to 16384 pixels")
    return side


def mean_of(mean: Mean) -> list[float] | Literal["image"]:
    """Return a backbone's mean as a list of three numbers, one per channel, or ``image``.

    Raises:
        CxlpError: If the mean is neither of these.
    """
    if isinstance(mean, str):
        if mean == "image":
            return "image"
        raise CxlpError(f"the backbone's mean is {mean!r}: set it to three numbers, or 'image' for each image's mean")
    return by_channel("mean", mean)


def by_channel(what: str, values: Sequence[float]) -> list[float]:
    """Return a backbone's mean or standard deviation as a list of three numbers, one per channel.

    Raises:
        CxlpError: If there are not three numbers, or they are out of range.
    """
    numbers = [float(value) for value in values]
    if len(numbers) != 3 or (what == "std" and min(numbers) <= 0):
        raise CxlpError(f"the backbone's {what} is {numbers}: set it to three numbers, for red, green and blue")
    if max(map(abs, numbers)) > 1:
        raise CxlpError(f"the backbone's {what} is {numbers}, but must refer to images in 0..1: divide it by 255")
    return numbers
