"""Layouts of a layer's output, read as maps: channels first or last, tokens, vectors."""

import math
from typing import Literal, NamedTuple

from torch import Tensor

from cxlp.backbones.feature_extraction import PENULTIMATE
from cxlp.utils.errors import CxlpError


class _Layout(NamedTuple):
    """How a layer's output is read as a map: its kind, and how many tokens stand before those of the patches."""

    kind: Literal["vector", "tokens", "channels_first", "channels_last"]
    prefix: int = 0


#: Class token, distillation token, registers: more would hint that these are no tokens.
_MOST_PREFIX_TOKENS = 16


def _layout(output: Tensor, whose: str) -> _Layout:
    """Tell the layout of a layer's output for one square image, whose maps are square."""
    shape = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
    if isinstance(output, Tensor) and len(output) == 1 and output.numel():
        if output.ndim == 2:
            return _Layout("vector")
        if output.ndim == 3:
            prefix = output.shape[1] - math.isqrt(output.shape[1]) ** 2
            if prefix <= _MOST_PREFIX_TOKENS:
                return _Layout("tokens", prefix)
        if output.ndim == 4 and output.shape[2] == output.shape[3]:  # a cube, too: most networks are so
            return _Layout("channels_first")
        if output.ndim == 4 and output.shape[1] == output.shape[2]:
            return _Layout("channels_last")
    raise CxlpError(
        f"{whose} gives {shape}, not a map (B, C, H, W) or (B, H, W, C) of a square image, nor tokens (B, N, C) of a "
        "square grid behind a few others, nor a vector (B, C)"
    )


def _as_map(output: Tensor, layout: _Layout, layer: str) -> Tensor:
    """Read a layer's output as a map ``(B, C, h, w)``, without copying it; the classifier's input is averaged."""
    if layout.kind == "vector":
        return output[:, :, None, None]
    m = output
    if layout.kind == "tokens":
        patches = output[:, layout.prefix :]  # (B, g g, C)
        side = math.isqrt(patches.shape[1])
        m = patches.view(len(patches), side, side, -1).permute(0, 3, 1, 2)
    elif layout.kind == "channels_last":
        m = output.permute(0, 3, 1, 2)
    return m.mean(dim=(2, 3), keepdim=True) if layer == PENULTIMATE else m
