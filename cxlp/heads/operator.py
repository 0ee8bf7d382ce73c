"""Cross-convolutional-layer pooling (Liu, Shen and van den Hengel, CVPR 2015), in pure torch.

The activations of an upper layer pool the local features of a lower layer. With local features
``x_i`` in R^d at places ``i = 1..N`` of the lower layer, and activations ``a_ik`` of the upper
layer's channel ``k`` at the same places, ::

    P_k = sum_i a_ik x_i,        P = [P_1; ...; P_K] in R^(K d).

A local feature is an r x r sub-array over all channels of the lower map, projected by a PCA.
Both steps are linear in the map, so one convolution does both: its weight is the PCA basis as
``(p, C, r, r)``, its bias minus the projected mean. The whole head can therefore be trained.
"""

from collections.abc import Sequence
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from cxlp.heads.normalisation import full_precision
from cxlp.utils.errors import CxlpError

Padding = Literal["valid", "same"]
Align = Literal["strict", "to_local", "to_guide"]
_PADDINGS, _RULES = get_args(Padding), get_args(Align)  # at module level: torch.compile cannot trace get_args


def align_maps(local: Tensor, guide: Tensor, rule: Align = "strict") -> tuple[Tensor, Tensor]:
    """Resample two maps to a common grid.

    Args:
        local: Lower layer's map ``(B, C, H, W)``.
        guide: Upper layer's map ``(B, K, H', W')``.
        rule: ``"strict"``: the sizes must be equal. ``"to_local"``: resample the guide to
            ``(H, W)``. ``"to_guide"``: resample the local map to ``(H', W')``. Resampling
            averages over areas to shrink a map and interpolates bilinearly to enlarge it.

    Returns:
        Both maps, with the same height and width.

    Raises:
        CxlpError: If the sizes differ under ``"strict"``, or the rule is unknown.
    """
    check_sizes(local.shape[-2:], guide.shape[-2:], rule)
    if local.shape[-2:] == guide.shape[-2:]:
        return local, guide
    if rule == "to_local":
        return local, _resample(guide, local.shape[-2:])
    return _resample(local, guide.shape[-2:]), guide


def sub_arrays(local: Tensor, size: int = 1, stride: int = 1, padding: Padding = "valid") -> Tensor:
    """Extract the local features of a map as vectors, without projection.

    Args:
        local: Map ``(B, C, H, W)``.
        size: Side r of the sub-array, an odd number.
        stride: Step between sub-arrays, in cells of the map.
        padding: ``"valid"``: whole sub-arrays only; ``"same"``: zero padding beyond the border.

    Returns:
        ``(B, N, C * r * r)``, with the places in row-major order and the entries of each vector
        in the order of a convolution's flattened weight ``(C, r, r)``.
    """
    count_places(local.shape[-2:], size, stride, padding)
    pad = size // 2 if padding == "same" else 0
    return F.unfold(local, size, padding=pad, stride=stride).transpose(1, 2)  # (B, N, C r r)


def centres(guide: Tensor, size: int = 1, stride: int = 1, padding: Padding = "valid") -> Tensor:
    """Return a map at the centres of :func:`sub_arrays`: ``(B, K, H, W) -> (B, K, h, w)``."""
    edge = size // 2 if padding == "valid" else 0
    height, width = guide.shape[-2:]
    return guide[..., edge : height - edge : stride, edge : width - edge : stride]


def cross_layer_pooling(
    local: Tensor,
    guide: Tensor,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    *,
    size: int = 1,
    stride: int = 1,
    padding: Padding = "valid",
    align: Align = "strict",
    centre: bool = False,
) -> Tensor:
    """Pool the local features of one layer under the activations of another.

    ``P_k = sum_i a_ik (W x_i + b)``, where ``x_i`` is the r x r sub-array at place ``i`` of
    ``local`` and ``a_ik`` the guide's channel ``k`` at the sub-array's centre (section 3.2 of
    the paper). Half-precision inputs, and all inputs under autocast, are computed in float32: 8 bits
    of mantissa are too few for the sums over places and the square root that follows them. (On a GPU,
    ``torch.backends.cudnn.allow_tf32`` decides whether float32 convolutions use TF32; it is on by default.)

    Args:
        local: Lower layer's map ``(B, C, H, W)``.
        guide: Upper layer's map ``(B, K, H', W')``.
        weight: Projection ``(p, C, r, r)``, for example a PCA basis; ``None``: no reduction.
        bias: ``(p,)``, added to every projected local feature.
        size: Side r of the sub-array. Ignored if ``weight`` is given, which determines r.
        stride: Step between sub-arrays, in cells of the map.
        padding: ``"valid"``: whole sub-arrays only; ``"same"``: zero padding beyond the border.
        align: Rule for maps of different sizes, see :func:`align_maps`.
        centre: Subtract from each channel of the guide its mean over the N places. Then ``P`` is N times the
            cross-covariance of both layers, ``sum_i (a_i - mean a)(W x_i - mean W x)^T``: it is enough to centre one
            of the two factors.

    Returns:
        ``(B, K, p)``, or ``(B, K, C r r)`` without projection; float32 for half-precision inputs.

    Raises:
        CxlpError: If r is even, a map is smaller than r x r, batch sizes or channels do not match, or
            the sizes differ under ``align="strict"``.

    Example:
        >>> local, guide = torch.rand(2, 8, 13, 13), torch.rand(2, 4, 13, 13)
        >>> cross_layer_pooling(local, guide, size=3).shape
        torch.Size([2, 4, 72])
    """
    for name, tensor in (("local", local), ("guide", guide)):
        if tensor.ndim != 4:
            raise CxlpError(f"{name} has shape {tuple(tensor.shape)}: pass a map (B, C, H, W)")
    if local.shape[0] != guide.shape[0]:
        raise CxlpError(f"local has {local.shape[0]} images, guide has {guide.shape[0]}: pass maps of the same images")
    with torch.autocast(local.device.type, enabled=False):
        local, guide = align_maps(full_precision(local), full_precision(guide), align)
        if weight is None:
            features = sub_arrays(local, size, stride, padding)  # (B, N, d)
        else:
            size = weight.shape[-1]
            count_places(local.shape[-2:], size, stride, padding)
            if weight.shape[-2] != size:
                raise CxlpError(f"the projection weight is {weight.shape[-2]}x{size}: it must be square")
            if weight.shape[1] != local.shape[1]:
                raise CxlpError(
                    f"the projection weight has {weight.shape[1]} channels, but the local map has {local.shape[1]}"
                )
            pad = size // 2 if padding == "same" else 0
            bias = None if bias is None else bias.to(local.dtype)
            projected = F.conv2d(local, weight.to(local.dtype), bias, stride=stride, padding=pad)
            features = projected.flatten(2).transpose(1, 2)  # (B, N, p)
        activations = centres(guide, size, stride, padding).flatten(2)  # (B, K, N)
        if centre:
            activations = activations - activations.mean(dim=2, keepdim=True)
        return torch.bmm(activations, features)  # (B, K, p)


def check_sizes(local: Sequence[int], guide: Sequence[int], rule: Align) -> None:
    """Raise :class:`CxlpError` for an unknown rule, or different ``(H, W)`` under ``"strict"``."""
    if rule not in _RULES:
        raise CxlpError(f"unknown align rule {rule!r}; valid: {', '.join(_RULES)}")
    if rule == "strict" and tuple(local) != tuple(guide):
        raise CxlpError(
            f"the two layers have maps of {local[0]}x{local[1]} and {guide[0]}x{guide[1]}: choose layers of one "
            "resolution, or set align to to_local or to_guide"
        )


def check_geometry(size: int, stride: int, padding: Padding) -> None:
    """Raise :class:`CxlpError` for a size, stride or padding that is invalid for every map."""
    if size < 1 or size % 2 == 0:
        raise CxlpError(f"size is {size}: it must be odd (1, 3, ...), so that a sub-array has a centre")
    if not isinstance(stride, int) or stride < 1:
        raise CxlpError(f"stride is {stride}: it must be 1 or more")
    if padding not in _PADDINGS:
        raise CxlpError(f"unknown padding {padding!r}; valid: {', '.join(_PADDINGS)}")


def count_places(sides: Sequence[int], size: int, stride: int, padding: Padding) -> int:
    """Return the number of sub-arrays of a map of ``(H, W)`` cells.

    Raises:
        CxlpError: If the map is too small for a single sub-array.
    """
    check_geometry(size, stride, padding)
    height, width = sides
    edge = size - 1 if padding == "valid" else 0
    if min(height, width) <= edge:
        raise CxlpError(
            f"the local map is {height}x{width}: too small for a whole {size}x{size} sub-array; "
            "use a larger image, a lower layer, size: 1 or padding: same"
        )
    return ((height - edge - 1) // stride + 1) * ((width - edge - 1) // stride + 1)


def _resample(x: Tensor, sides: Sequence[int]) -> Tensor:
    height, width = sides
    x = F.adaptive_avg_pool2d(x, (min(height, x.shape[-2]), min(width, x.shape[-1])))  # shrink
    if x.shape[-2:] == (height, width):
        return x
    return F.interpolate(x, (height, width), mode="bilinear", align_corners=False)
