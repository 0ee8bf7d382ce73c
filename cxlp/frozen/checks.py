"""Checks of labels, maps and features; their errors name the images."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from cxlp.frozen.store import FeatureType
from cxlp.models.network import Network
from cxlp.utils.errors import CxlpError

#: Possible causes of values that are not finite.
_CAUSES = (
    "the backbone's weights may have diverged, or its activations have left the range of 16 bits "
    "(--trainer.precision 32-true)"
)


def check_maps(network: Network, inputs: Sequence[tuple[Tensor, ...]], positions: Tensor) -> None:
    """Check that maps contain neither NaN nor infinity.

    Args:
        network: The network.
        inputs: Inputs of its heads for a batch of images, see :meth:`Network.inputs`.
        positions: ``(b,)``, the images' positions among the training images.

    Raises:
        CxlpError: If a map does; the error names the layer and the first of the images.
    """
    for head, maps in zip(network.each_head(), inputs, strict=True):
        for (_, layer), m in zip(network.map_names(head), maps, strict=True):
            finite = m.isfinite().flatten(1).all(dim=1).view(len(positions), -1).all(dim=1).cpu()  # (b,)
            if not bool(finite.all()):
                which = _describe(positions[~finite].tolist())
                raise CxlpError(
                    f"layer {layer!r} of {network.backbone.name} gives NaN or infinity for {which}: {_CAUSES}"
                )


def check_labels(network: Network, labels: Tensor, positions: Tensor) -> None:
    """Check that labels have the shape, type and range that the network needs.

    Args:
        network: The network.
        labels: Labels of a batch of images, see :mod:`cxlp.utils.labels`.
        positions: ``(b,)``, the images' positions in their data set, or in the batch.

    Raises:
        CxlpError: If they do not; the error names the labels that the network needs.
    """
    if not len(positions):
        return
    classes = len(network.classes)
    several, one = f"(B, {classes}) of 1, -1 and 0, with multi_label=True", f"(B,) of 0..{classes - 1}"
    takes = f"a network of {classes} classes takes whole numbers, {several if network.multi_label else one}"
    shape = (len(positions), classes) if network.multi_label else (len(positions),)
    if labels.shape != shape or labels.is_floating_point():
        other = f"; or {one if network.multi_label else several}"
        raise CxlpError(f"the labels are {labels.dtype} of shape {tuple(labels.shape)}: {takes}{other}")
    low, high = (-1, 1) if network.multi_label else (0, classes - 1)
    wrong = ((labels < low) | (labels > high)).view(len(positions), -1).any(dim=1)
    if bool(wrong.any()):
        first = int(wrong.nonzero()[0])
        raise CxlpError(f"the label of image {int(positions[first])} is {labels[first].tolist()}: {takes}")


def check_absent(labels: Tensor) -> None:
    """Check that labels ``(n, classes)`` mark a class as absent at least once, unlike labels of 1 and 0.

    Raises:
        CxlpError: If they do not; the error tells how to mark absence.
    """
    if labels.ndim == 2 and not bool((labels < 0).any()):
        raise CxlpError("the labels mark no class as absent from any training image: write -1, since 0 is unspecified")


def check_lengths(squares: NDArray[np.float64]) -> None:
    """Check that the squared lengths ``(n,)`` of features are finite.

    Raises:
        CxlpError: If one is not; the error names the first of the images.
    """
    wrong = np.flatnonzero(~np.isfinite(squares))
    if len(wrong):
        which = _describe(wrong.tolist())
        raise CxlpError(f"the pooled features are NaN, infinite, or too large to be squared for {which}: {_CAUSES}")


def check_type(kind: FeatureType, network: Network) -> None:
    """Check that a storage type can represent the network's features.

    ``sign`` stores signs only, and ``float16`` overflows unless vectors have unit length.

    Raises:
        CxlpError: If it cannot; the error names the heads that the type needs.
    """
    heads = list(network.each_head())
    if kind == "float16" and not all(head.unit_length for head in heads):
        raise CxlpError(
            "model.frozen.features is float16, which overflows at 65,504: choose float32, or heads whose vectors have "
            "unit length, l2: true"
        )
    if kind == "sign" and (len(heads) > 1 or not heads[0].signs_only):
        raise CxlpError(
            "model.frozen.features is sign, but the network's vectors are more than signs: choose float16 or float32, "
            "or a single head with sign: true and l2: true"
        )


def _describe(positions: list[int]) -> str:
    if len(positions) == 1:
        return f"training image {positions[0]}"
    return f"{len(positions)} training images, the first is number {positions[0]}"
