"""What images a network takes."""

import operator
from collections.abc import Sequence
from typing import Literal

from torch import Tensor

from cxlp.utils.errors import CxlpError

#: By how much resampling may leave 0..1.
SLACK = 0.1

#: The mean of RGB images of 0..1, by channel, or ``image``: each image's own.
Mean = Sequence[float] | Literal["image"]


def check_images(images: Tensor, side: int) -> None:
    """Refuse images of other channels, sizes or values than a network takes; asking for values waits for a GPU.

    Floating point values beyond 0..1 are those of normalised images, or of bytes made floats.

    Args:
        images: To be ``(B, 3, side, side)``.
        side: In pixels.

    Raises:
        CxlpError: Says what the network takes.
    """
    if images.ndim != 4 or images.shape[1] != 3:
        raise CxlpError(
            f"the images have the shape {tuple(images.shape)}: the network takes RGB, (B, 3, {side}, {side})"
        )
    if images.shape[2:] != (side, side):
        height, width = images.shape[2:]
        raise CxlpError(
            f"the images are of {height} x {width} pixels, but the network takes {side} x {side}: resize them, or give "
            "the backbone another image_size"
        )
    if not images.is_floating_point() or not images.numel():
        return
    least, most = (float(value) for value in images.aminmax())
    if least < -SLACK or most > 1 + SLACK:
        raise CxlpError(
            f"the images have values from {least:.3g} to {most:.3g}, but floats are RGB of 0..1, and bytes (uint8) of "
            "0..255: the network normalises them itself, so leave out Normalize"
        )


def side_of(image_size: int) -> int:
    """Read the side of a backbone's images, pixels.

    Raises:
        CxlpError: If it is no whole number, or out of range.
    """
    try:
        side = operator.index(image_size)  # of NumPy, too
    except TypeError:
        side = 0
    if not 1 <= side <= 2**14:
        raise CxlpError(f"the backbone's image_size is {image_size!r}: give the side of its images, in pixels")
    return side


def mean_of(mean: Mean) -> list[float] | Literal["image"]:
    """Read a backbone's mean: one number for each of three channels, or ``image``.

    Raises:
        CxlpError: If it is neither.
    """
    if mean == "image":
        return "image"
    if isinstance(mean, str):
        raise CxlpError(f"the backbone's mean is {mean!r}: give three numbers, or 'image' for each image's own mean")
    return by_channel("mean", mean)


def by_channel(what: str, values: Sequence[float]) -> list[float]:
    """Read a backbone's mean or standard deviation, one number for each of three channels.

    Raises:
        CxlpError: If they are not three, or out of range.
    """
    numbers = [float(value) for value in values]
    if len(numbers) != 3 or (what == "std" and min(numbers) <= 0):
        raise CxlpError(f"the backbone's {what} is {numbers}: give three numbers, for red, green and blue")
    if max(map(abs, numbers)) > 1:
        raise CxlpError(f"the backbone's {what} is {numbers}, but it is of images of 0..1: divide it by 255")
    return numbers
