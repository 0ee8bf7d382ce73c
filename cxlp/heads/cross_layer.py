"""Cross-convolutional-layer pooling (Liu, Shen and van den Hengel, CVPR 2015), in pure torch.

One layer's activations pool the local features of the layer below it. With local features
``x_i`` in R^d at places ``i = 1..N`` of the lower layer, and activations ``a_ik`` of the upper
layer's channel ``k`` at the same places,

    P_k = sum_i a_ik x_i,        P = [P_1; ...; P_K] in R^(K d).

A local feature is an r x r sub-array over all channels of the lower map, reduced by PCA; both
steps are linear in the map, so together they *are* one convolution (weight: the PCA basis as
``(p, C, r, r)``; bias: minus the projected mean), and the whole head can be trained.
"""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cxlp.heads.count_sketch import CountSketch
from cxlp.heads.normalisation import Normalise, full_precision
from cxlp.utils.errors import CxlpError

Padding = Literal["valid", "same"]
Align = Literal["strict", "to_local", "to_guide"]


def local_vectors(features: Tensor, views: int = 1) -> Tensor:
    """List the vectors at all places of an image's maps: ``(B * V, C, H, W) -> (B, V H W, C)``."""
    vectors = features.flatten(2).transpose(1, 2)  # (B V, H W, C)
    return vectors.reshape(-1, views * vectors.shape[1], vectors.shape[2])


def project(projection: nn.Conv2d, features: Tensor) -> Tensor:
    """Apply a convolution in float32 or wider, whatever the precision of its weights and of the map."""
    x = full_precision(features)
    bias = None if projection.bias is None else projection.bias.to(x.dtype)
    with torch.autocast(x.device.type, enabled=False):
        return F.conv2d(x, projection.weight.to(x.dtype), bias, projection.stride, projection.padding)


def align_maps(local: Tensor, guide: Tensor, rule: Align = "strict") -> tuple[Tensor, Tensor]:
    """Bring two maps onto one grid.

    Args:
        local: Lower layer's map ``(B, C, H, W)``.
        guide: Upper layer's map ``(B, K, H', W')``.
        rule: ``"strict"``: the sizes must be equal. ``"to_local"``: resample the guide to
            ``(H, W)``. ``"to_guide"``: resample the local map to ``(H', W')``. Resampling is
            area averaging where a map shrinks and bilinear interpolation where it grows.

    Returns:
        Both maps, of one size.

    Raises:
        CxlpError: If the sizes differ under ``"strict"``, or the rule is unknown.
    """
    if rule not in ("strict", "to_local", "to_guide"):
        raise CxlpError(f"unknown align rule {rule!r}; valid: strict, to_local, to_guide")
    if local.shape[-2:] == guide.shape[-2:]:
        return local, guide
    if rule == "to_local":
        return local, _resample(guide, local.shape[-2], local.shape[-1])
    if rule == "to_guide":
        return _resample(local, guide.shape[-2], guide.shape[-1]), guide
    raise CxlpError(
        f"the local map is {_hw(local)} but the guide is {_hw(guide)}: choose two layers of one "
        "resolution, or say how to align them: align: to_local | to_guide"
    )


def sub_arrays(local: Tensor, size: int = 1, stride: int = 1, padding: Padding = "valid") -> Tensor:
    """Cut the local features out of a map, without reducing them.

    Args:
        local: Map ``(B, C, H, W)``.
        size: Side r of the sub-array, odd.
        stride: Step between sub-arrays, in cells of the map.
        padding: ``"valid"``: only whole sub-arrays; ``"same"``: zeros beyond the border.

    Returns:
        ``(B, N, C * r * r)``, the places in row-major order, each vector in the order of a
        convolution's flattened weight ``(C, r, r)``.
    """
    _check_geometry(local, size, stride, padding)
    pad = size // 2 if padding == "same" else 0
    return F.unfold(local, size, padding=pad, stride=stride).transpose(1, 2)  # (B, N, C r r)


def centres(guide: Tensor, size: int = 1, stride: int = 1, padding: Padding = "valid") -> Tensor:
    """Take a map at the centres of the sub-arrays that :func:`sub_arrays` cuts: ``(B, K, H, W) -> (B, K, h, w)``."""
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
) -> Tensor:
    """Pool the local features of one layer under the activations of another.

    ``P_k = sum_i a_ik (W x_i + b)``, where ``x_i`` is the r x r sub-array at place ``i`` of
    ``local`` and ``a_ik`` the guide's channel ``k`` at the sub-array's centre (section 3.2 of
    the paper). Half-precision inputs, and everything under autocast, are computed in float32: the
    sums over places and the square root behind them do not survive 8 bits of mantissa. (What float32 means
    to a GPU's convolutions is torch's switch ``torch.backends.cudnn.allow_tf32``, on by default.)

    Args:
        local: Lower layer's map ``(B, C, H, W)``.
        guide: Upper layer's map ``(B, K, H', W')``.
        weight: Projection ``(p, C, r, r)``, for example a PCA basis; ``None``: no reduction.
        bias: ``(p,)`` added to every projected local feature.
        size: Side r of the sub-array where there is no ``weight`` (which says it otherwise).
        stride: Step between sub-arrays, in cells.
        padding: ``"valid"`` or ``"same"`` (zeros beyond the border).
        align: What to do with maps of different sizes, see :func:`align_maps`.

    Returns:
        ``(B, K, p)``, or ``(B, K, C r r)`` without projection; float32 for half inputs.

    Raises:
        CxlpError: If r is even, a map is smaller than r x r, batches or channels do not fit, or
            the sizes differ under ``align="strict"``.

    Example:
        >>> local, guide = torch.rand(2, 8, 13, 13), torch.rand(2, 4, 13, 13)
        >>> cross_layer_pooling(local, guide, size=3).shape
        torch.Size([2, 4, 72])
    """
    for name, tensor in (("local", local), ("guide", guide)):
        if tensor.ndim != 4:
            raise CxlpError(f"{name} must be a map (B, C, H, W), not of shape {tuple(tensor.shape)}")
    if local.shape[0] != guide.shape[0]:
        raise CxlpError(f"the maps hold {local.shape[0]} and {guide.shape[0]} images")
    with torch.autocast(local.device.type, enabled=False):
        local, guide = align_maps(full_precision(local), full_precision(guide), align)
        if weight is None:
            features = sub_arrays(local, size, stride, padding)  # (B, N, d)
        else:
            size = weight.shape[-1]
            _check_geometry(local, size, stride, padding)
            if weight.shape[-2] != size:
                raise CxlpError(f"the projection is {weight.shape[-2]}x{size}: sub-arrays are square")
            if weight.shape[1] != local.shape[1]:
                raise CxlpError(
                    f"the projection expects {weight.shape[1]} channels, the local map has {local.shape[1]}"
                )
            pad = size // 2 if padding == "same" else 0
            bias = None if bias is None else bias.to(local.dtype)
            projected = F.conv2d(local, weight.to(local.dtype), bias, stride=stride, padding=pad)
            features = projected.flatten(2).transpose(1, 2)  # (B, N, p)
        return torch.bmm(centres(guide, size, stride, padding).flatten(2), features)  # (B, K, p)


class CrossLayerPooling(nn.Module):
    """Cross-convolutional-layer pooling as a head: two maps in, one normalised vector out.

    For networks with many channels there are two shorter forms of the K p pooled features, which combine:

    - low-rank: the guide's K channels are projected to k by ``V`` of orthonormal rows, and the rows ``V P`` pooled. The
      frozen fit takes the leading eigenvectors of the guide's second moment ``E[a a^T]``, not centred, so that
      ``V^T V a`` is the best approximation of rank k of its activations, and ``V^T (V P)`` one of ``P``; gradient
      descent trains it. (Low-rank bilinear forms: Kong and Fowlkes, CVPR 2017.)
    - compact: a count sketch adds them up in D bins, see :class:`~cxlp.heads.count_sketch.CountSketch`.

    Of an image with N places, in multiply-adds and in values of memory beside the maps:

        ============  =========  ===============================  ====================
        form          length     multiply-adds                    memory
        ============  =========  ===============================  ====================
        full          ``K p``    ``N (C r r p + K p)``            ``N p + K p``
        low-rank      ``k p``    ``N (C r r p + K k + k p)``      ``N (p + k) + k p``
        compact       ``D``      those of the full, and ``2 K p`` ``N p + 2 K p + D``
        both          ``D``      those of low-rank, and ``2 k p`` ``N (p + k) + 2 k p + D``
        ============  =========  ===============================  ====================

    With ``C = K = 2048``, ``p = 512``, ``N = 196``: 1,048,576 values and 411 million multiply-adds in full; with k = 64
    32,768 values and 238 million.

    Args:
        local_channels: Channels C of the lower map.
        guide_channels: Channels K of the upper map, the pooling channels.
        pca_dim: Size p of a projected local feature; ``None``: no projection.
        size: Side r of the sub-array, odd.
        stride: Step between sub-arrays.
        padding: ``"valid"`` or ``"same"``.
        align: Rule for maps of different sizes, see :func:`align_maps`.
        normalise: What follows the pooling; signed square root and L2 if not given.
        guide_dim: Number k of pooling channels that the guide is projected to; ``None``: no projection.
        sketch: Length D of the count sketch of the pooled features; ``None``: none.

    Attributes:
        projection: The convolution that cuts and reduces local features, or ``None``.
        guide_projection: The 1 x 1 convolution without bias that reduces the guide, or ``None``.
        sketch: The count sketch, or ``None``.
        local_dim: Size of a local feature before the projection, ``C r r``.
        out_features: Length of the vector.

    Example:
        >>> pool = CrossLayerPooling(local_channels=8, guide_channels=4, pca_dim=6, size=3)
        >>> pool(torch.rand(2, 8, 13, 13), torch.rand(2, 4, 13, 13)).shape
        torch.Size([2, 24])
    """

    def __init__(
        self,
        local_channels: int,
        guide_channels: int,
        pca_dim: int | None = None,
        size: int = 1,
        stride: int = 1,
        padding: Padding = "valid",
        align: Align = "strict",
        normalise: nn.Module | None = None,
        guide_dim: int | None = None,
        sketch: int | None = None,
    ) -> None:
        super().__init__()
        _check_options(size, stride, padding)
        self.local_dim = local_channels * size * size
        if pca_dim is not None and not 1 <= pca_dim <= self.local_dim:
            raise CxlpError(
                f"pca_dim is {pca_dim}, but a local feature has {self.local_dim} values "
                f"({local_channels} channels x {size} x {size}): choose 1 to {self.local_dim}, or null"
            )
        if guide_dim is not None and not 1 <= guide_dim <= guide_channels:
            raise CxlpError(
                f"guide_dim is {guide_dim}, but the guide has {guide_channels} channels: choose 1 to {guide_channels}, "
                "or null"
            )
        self.size, self.stride, self.padding, self.align = size, stride, padding, align
        self.projection: nn.Conv2d | None = None
        if pca_dim is not None:
            pad = size // 2 if padding == "same" else 0
            self.projection = nn.Conv2d(local_channels, pca_dim, size, stride=stride, padding=pad)
        self.guide_projection: nn.Conv2d | None = None
        if guide_dim is not None:
            self.guide_projection = nn.Conv2d(guide_channels, guide_dim, 1, bias=False)
            nn.init.orthogonal_(self.guide_projection.weight)
        self.normalise = Normalise() if normalise is None else normalise
        shape = guide_dim or guide_channels, pca_dim or self.local_dim
        self.sketch = None if sketch is None else CountSketch(*shape, sketch)
        self.out_features = sketch or shape[0] * shape[1]

    def pool(self, local: Tensor, guide: Tensor) -> Tensor:
        """Pool without sketch and normalisation: ``(B, C, H, W), (B, K, H, W) -> (B, K, p)``, or ``(B, k, p)``."""
        if self.guide_projection is not None:
            guide = project(self.guide_projection, guide)  # before it is resampled: both are linear
        weight, bias = (None, None) if self.projection is None else (self.projection.weight, self.projection.bias)
        return cross_layer_pooling(
            local,
            guide,
            weight,
            bias,
            size=self.size,
            stride=self.stride,
            padding=self.padding,
            align=self.align,
        )

    def places(self, height: int, width: int) -> int:
        """Count the local features of a map: N of ``(height, width)``.

        Raises:
            CxlpError: If the map is too small for a whole sub-array.
        """
        _check_fit(height, width, self.size, self.padding)
        edge = self.size - 1 if self.padding == "valid" else 0
        rows, columns = ((side - edge - 1) // self.stride + 1 for side in (height, width))
        return rows * columns

    def forward(self, local: Tensor, guide: Tensor, views: int = 1) -> Tensor:
        """Pool and normalise.

        Args:
            local: ``(B * V, C, H, W)``.
            guide: ``(B * V, K, H, W)``.
            views: V, how many consecutive maps belong to one image: their local features are pooled together.

        Returns:
            ``(B, out_features)``.
        """
        pooled = self.pool(local, guide)  # (B V, K, p)
        if views > 1:
            pooled = pooled.view(-1, views, *pooled.shape[1:]).sum(dim=1)
        if self.sketch is not None:
            pooled = self.sketch(pooled).unsqueeze(1)  # (B, 1, D)
        vector: Tensor = self.normalise(pooled)
        return vector

    def extra_repr(self) -> str:
        """Show the options that the submodules do not."""
        return f"size={self.size}, stride={self.stride}, padding={self.padding}, align={self.align}"


def _resample(x: Tensor, height: int, width: int) -> Tensor:
    x = F.adaptive_avg_pool2d(x, (min(height, x.shape[-2]), min(width, x.shape[-1])))  # where it shrinks
    if x.shape[-2:] == (height, width):
        return x
    return F.interpolate(x, (height, width), mode="bilinear", align_corners=False)


def _check_options(size: int, stride: int, padding: str) -> None:
    if size < 1 or size % 2 == 0:
        raise CxlpError(f"size is {size}: a sub-array needs an odd side (1, 3, ...), so that it has a centre")
    if stride < 1:
        raise CxlpError(f"stride is {stride}: it must be 1 or more")
    if padding not in ("valid", "same"):
        raise CxlpError(f"unknown padding {padding!r}; valid: valid, same")


def _check_geometry(local: Tensor, size: int, stride: int, padding: str) -> None:
    _check_options(size, stride, padding)
    _check_fit(local.shape[-2], local.shape[-1], size, padding)


def _check_fit(height: int, width: int, size: int, padding: str) -> None:
    if padding == "valid" and min(height, width) < size:
        raise CxlpError(
            f"the local map is {height}x{width}: too small for a whole {size}x{size} sub-array; "
            "use a larger image, a lower layer, size: 1 or padding: same"
        )


def _hw(x: Tensor) -> str:
    return f"{x.shape[-2]}x{x.shape[-1]}"
