"""Layouts of a layer's output, read as maps: channels first or last, tokens, vectors."""

import math
from typing import Literal, NamedTuple

from torch import Tensor

from cxlp.utils.errors import CxlpError

#: Class token, distillation token, registers: more would hint that these are no tokens.
_MOST_PREFIX_TOKENS = 16


class Layout(NamedTuple):
    """How a layer's output is read as a map: its kind, and how many tokens stand before those of the patches."""

    kind: Literal["vector", "tokens", "channels_first", "channels_last"]
    prefix: int = 0

    def as_map(self, output: Tensor) -> Tensor:
        """Read an output as a map ``(B, C, h, w)``, without copying it; a vector is a map of one place."""
        if self.kind == "vector":
            return output[:, :, None, None]
        if self.kind == "channels_last":
            return output.permute(0, 3, 1, 2)
        if self.kind == "channels_first":
            return output
        patches = output[:, self.prefix :]  # (B, g g, C)
        side = math.isqrt(patches.shape[1])
        return patches.view(len(patches), side, side, -1).permute(0, 3, 1, 2)


def layout_of(output: Tensor, whose: str) -> Layout:
    """Tell the layout of a layer's output for one square image, whose maps are square.

    Raises:
        CxlpError: If it is none of them.
    """
    if isinstance(output, Tensor) and len(output) == 1 and output.numel():
        if output.ndim == 2:
            return Layout("vector")
        if output.ndim == 3:
            prefix = output.shape[1] - math.isqrt(output.shape[1]) ** 2
            if prefix <= _MOST_PREFIX_TOKENS:
                return Layout("tokens", prefix)
        if output.ndim == 4 and output.shape[2] == output.shape[3]:  # a cube, too: most networks are so
            return Layout("channels_first")
        if output.ndim == 4 and output.shape[1] == output.shape[2]:
            return Layout("channels_last")
    shape = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
    raise CxlpError(
        f"{whose} gives {shape}, not a map (B, C, H, W) or (B, H, W, C) of a square image, nor tokens (B, N, C) of a "
        "square grid behind a few others, nor a vector (B, C)"
    )
