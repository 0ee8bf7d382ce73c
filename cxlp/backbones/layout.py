"""Conversion of a layer's output to a map: channels first or last, tokens, vectors."""

import math
from typing import Literal, NamedTuple

from torch import Tensor

from cxlp.utils.errors import CxlpError

#: Limit on class token, distillation token and registers. With more, the output is probably not a token sequence.
_MOST_PREFIX_TOKENS = 16


class Layout(NamedTuple):
    """Layout of a layer's output: its kind, and the number of tokens before the patch tokens."""

    kind: Literal["vector", "tokens", "channels_first", "channels_last"]
    prefix: int = 0

    def as_map(self, output: Tensor) -> Tensor:
        """View an output as a map ``(B, C, h, w)``, without a copy. A vector is a map with a single place."""
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
    """Determine the layout of a layer's output for one square image, for which maps are square.

    Raises:
        CxlpError: If the output has no known layout.
    """
    if isinstance(output, Tensor) and len(output) == 1 and output.numel():
        if output.ndim == 2:
            return Layout("vector")
        if output.ndim == 3:
            prefix = output.shape[1] - math.isqrt(output.shape[1]) ** 2
            if prefix <= _MOST_PREFIX_TOKENS:
                return Layout("tokens", prefix)
        if output.ndim == 4 and output.shape[2] == output.shape[3]:  # includes cubes: most networks are channels first
            return Layout("channels_first")
        if output.ndim == 4 and output.shape[1] == output.shape[2]:
            return Layout("channels_last")
    shape = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
    raise CxlpError(
        f"{whose} returns {shape}: choose a layer that returns, for square images, a square map (B, C, H, W) or (B, H, "
        "W, C), a vector (B, C), or the tokens (B, N, C) of a square grid after at most 16 other tokens"
    )
