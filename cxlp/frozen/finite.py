"""Refusals of maps and features that are not finite, by the images that they are of."""

from collections.abc import Sequence

import numpy as np
from torch import Tensor

from cxlp.frozen.svm import Array
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


def check_features(gram: Array) -> None:
    """Refuse features whose squared lengths, the diagonal of the Gram matrix, are not finite.

    Raises:
        CxlpError: Names the first of the images.
    """
    wrong = np.flatnonzero(~np.isfinite(gram.diagonal()))
    if len(wrong):
        which = _some(wrong.tolist())
        raise CxlpError(f"the pooled features are NaN, infinite, or too large to be squared for {which}: {_CAUSES}")


def _some(positions: list[int]) -> str:
    if len(positions) == 1:
        return f"training image {positions[0]}"
    return f"{len(positions)} training images, the first is number {positions[0]}"
