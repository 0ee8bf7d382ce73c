"""Refusals of labels, maps and features that cannot be fitted, by the images that they are of."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from cxlp.frozen.store import FeatureType
from cxlp.models.network import Network
from cxlp.utils.errors import CxlpError

#: What may be behind numbers that are not finite.
_CAUSES = (
    "the backbone's weights may have diverged, or its activations have left the range of 16 bits "
    "(--trainer.precision 32-true)"
)


def check_maps(network: Network, inputs: Sequence[tuple[Tensor, ...]], positions: Tensor) -> None:
    """Refuse maps that hold NaN or infinity.

    Args:
        network: The network.
        inputs: What its heads take of some images, see :meth:`Network.inputs`.
        positions: ``(b,)``, the images' places among the training images.

    Raises:
        CxlpError: Names the layer and the first of the images.
    """
    for head, maps in zip(network.each_head(), inputs, strict=True):
        for (_, layer), m in zip(network.map_names(head), maps, strict=True):
            finite = m.isfinite().flatten(1).all(dim=1).view(len(positions), -1).all(dim=1).cpu()  # (b,)
            if not bool(finite.all()):
                which = _some(positions[~finite].tolist())
                raise CxlpError(
                    f"layer {layer!r} of {network.backbone.name} gives NaN or infinity for {which}: {_CAUSES}"
                )


def check_labels(network: Network, labels: Tensor, positions: Tensor) -> None:
    """Refuse labels of another kind than the network's, or of classes that it does not have.

    Args:
        network: The network.
        labels: Of some images, see :mod:`cxlp.utils.labels`.
        positions: ``(b,)``, the images' places in their data set, or in the batch.

    Raises:
        CxlpError: Says what the network takes.
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
    """Refuse several labels per image that never say that a class is absent, such as those of 1 and 0.

    Raises:
        CxlpError: Says how absence is written.
    """
    if labels.ndim == 2 and not bool((labels < 0).any()):
        raise CxlpError("no class is absent from any training image: write -1 for absent, since 0 means unspecified")


def check_lengths(squares: NDArray[np.float64]) -> None:
    """Refuse features whose squared lengths ``(n,)`` are not finite.

    Raises:
        CxlpError: Names the first of the images.
    """
    wrong = np.flatnonzero(~np.isfinite(squares))
    if len(wrong):
        which = _some(wrong.tolist())
        raise CxlpError(f"the pooled features are NaN, infinite, or too large to be squared for {which}: {_CAUSES}")


def check_type(kind: FeatureType, network: Network) -> None:
    """Refuse to keep two bits of what is more than signs, or half precision of what may be large.

    Raises:
        CxlpError: Says what the type takes.
    """
    heads = list(network.each_head())
    if kind == "float16" and not all(head.unit_length for head in heads):
        raise CxlpError(
            "model.frozen.features is float16, which overflows at 65,504: it takes heads whose vectors have unit "
            "length, l2: true"
        )
    if kind == "sign" and (len(heads) > 1 or not heads[0].signs_only):
        raise CxlpError(
            "model.frozen.features is sign, but the network's vectors are more than signs: it takes a single head with "
            "sign: true and l2: true"
        )


def _some(positions: list[int]) -> str:
    if len(positions) == 1:
        return f"training image {positions[0]}"
    return f"{len(positions)} training images, the first is number {positions[0]}"
