"""What images a network takes."""

from torch import Tensor

from cxlp.utils.errors import CxlpError

#: By how much resampling may leave 0..1.
SLACK = 0.1


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
