"""Cross-convolutional-layer pooling (Liu, Shen and van den Hengel, CVPR 2015), in pure torch.

One layer's activations pool the local features of the layer below it. With local features
``x_i`` in R^d at places ``i = 1..N`` of the lower layer, and activations ``a_ik`` of the upper
layer's channel ``k`` at the same places,

    P_k = sum_i a_ik x_i,        P = [P_1; ...; P_K] in R^(K d).

A local feature is an r x r sub-array over all channels of the lower map, reduced by PCA; both
steps are linear in the map, so together they *are* one convolution (weight: the PCA basis as
``(p, C, r, r)``; bias: minus the projected mean), and the whole head can be trained.
"""

from collections.abc import Sequence
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cxlp.heads.base import Head, Shape
from cxlp.heads.count_sketch import CountSketch
from cxlp.heads.evidence import shares_of_guide
from cxlp.heads.fitting import HeadFit, KeptMaps, TrainingSet
from cxlp.heads.normalisation import Normalise, full_precision
from cxlp.heads.projection import PrincipalAxes, project
from cxlp.heads.views import Views
from cxlp.utils.errors import CxlpError

Padding = Literal["valid", "same"]
Align = Literal["strict", "to_local", "to_guide"]


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


class CrossLayerPooling(Head):
    """Cross-convolutional-layer pooling as a head: two maps in, one normalised vector out.

    For networks with many channels there are two shorter forms of the K p pooled features, which combine:

    - low-rank: the guide's K channels are projected to k by ``V`` of orthonormal rows, and the rows ``V P`` pooled. Its
      fit takes the leading eigenvectors of the guide's second moment ``E[a a^T]``, not centred, so that
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
        pca_dim: Size p of a projected local feature; ``None``: no projection.
        size: Side r of the sub-array that is a local feature, odd.
        stride: Step between sub-arrays, in cells of the map.
        padding: ``"valid"``: whole sub-arrays only; ``"same"``: zeros beyond the border.
        align: Rule for maps of different sizes, see :func:`align_maps`.
        channels: How many pooling channels of the guide are used, the first ones; ``None``: all.
        guide_dim: Number k of pooling channels that the guide is projected to; ``None``: no projection.
        sketch: Length D of the count sketch of the pooled features; ``None``: none.
        spectral, zscore, channel_l2, sign, sqrt, l2: The normalisation, see
            :func:`~cxlp.heads.normalisation.normalise`.
        layers: The layer of the local features and the layer of the guide; ``None``: the backbone's last two.
        views: The views of an image whose local features are pooled together.

    Attributes:
        projection: The convolution that cuts and reduces local features, or ``None``.
        guide_projection: The 1 x 1 convolution without bias that reduces the guide, or ``None``.
        count_sketch: The count sketch, or ``None``.
        local_dim: Size of a local feature before the projection, ``C r r``.
        local_features: How many of them an image has, N of all views.
        out_features: Length of the vector.

    Raises:
        CxlpError: For options without meaning; by :meth:`connect`, for those that do not fit the maps.

    Example:
        >>> head = CrossLayerPooling(pca_dim=6, size=3).connect((8, 13, 13), (4, 13, 13))
        >>> head(torch.rand(2, 8, 13, 13), torch.rand(2, 4, 13, 13)).shape
        torch.Size([2, 24])
    """

    takes: ClassVar[int] = 2

    def __init__(
        self,
        pca_dim: int | None = 500,
        size: int = 1,
        stride: int = 1,
        padding: Padding = "valid",
        align: Align = "strict",
        channels: int | None = None,
        guide_dim: int | None = None,
        sketch: int | None = None,
        spectral: bool = False,
        zscore: bool = False,
        channel_l2: bool = False,
        sign: bool = False,
        sqrt: bool = True,
        l2: bool = True,
        layers: Sequence[str] | None = None,
        views: Views = Views(),
    ) -> None:
        super().__init__(layers, views)
        _check_options(size, stride, padding)
        for option, on in (("spectral", spectral), ("channel_l2", channel_l2)):
            if sketch is not None and on:
                raise CxlpError(
                    f"{option} is true, but a sketch has no pooling channels any more: set {option} to false, or "
                    "sketch to null"
                )
        self.pca_dim, self.size, self.stride, self.padding, self.align = pca_dim, size, stride, padding, align
        self.channels, self.guide_dim, self.sketch = channels, guide_dim, sketch
        self.spectral, self.zscore, self.channel_l2 = spectral, zscore, channel_l2
        self.sign, self.sqrt, self.l2 = sign, sqrt, l2
        self.normalise = Normalise(
            spectral=spectral, zscore=zscore, channel_l2=channel_l2, sign=sign, sqrt=sqrt, l2=l2
        )  # fmt: skip

    def build(self, shapes: Sequence[Shape]) -> None:
        """Make the projections and the sketch."""
        local, guide = shapes
        if local[1:] != guide[1:] and self.align == "strict":
            raise CxlpError(
                f"the two layers have maps of {local[1]}x{local[2]} and {guide[1]}x{guide[2]}: choose layers of one "
                "resolution, or set align to to_local or to_guide"
            )
        if self.channels is not None and not 1 <= self.channels <= guide[0]:
            raise CxlpError(
                f"channels is {self.channels}, but the guide has {guide[0]}: choose 1 to {guide[0]}, or null"
            )
        guides = self.channels or guide[0]
        self.local_dim = local[0] * self.size**2
        if self.pca_dim is not None and not 1 <= self.pca_dim <= self.local_dim:
            raise CxlpError(
                f"pca_dim is {self.pca_dim}, but a local feature has {self.local_dim} values "
                f"({local[0]} channels x {self.size} x {self.size}): choose 1 to {self.local_dim}, or null"
            )
        if self.guide_dim is not None and not 1 <= self.guide_dim <= guides:
            raise CxlpError(
                f"guide_dim is {self.guide_dim}, but the guide has {guides} channels: choose 1 to {guides}, or null"
            )
        self.local_features = self.view_count * self.places(*(guide if self.align == "to_guide" else local)[1:])
        self.projection: nn.Conv2d | None = None
        if self.pca_dim is not None:
            pad = self.size // 2 if self.padding == "same" else 0
            self.projection = nn.Conv2d(local[0], self.pca_dim, self.size, stride=self.stride, padding=pad)
        self.guide_projection: nn.Conv2d | None = None
        if self.guide_dim is not None:
            self.guide_projection = nn.Conv2d(guides, self.guide_dim, 1, bias=False)
            nn.init.orthogonal_(self.guide_projection.weight)
        pooled = self.guide_dim or guides, self.pca_dim or self.local_dim
        self.count_sketch = None if self.sketch is None else CountSketch(*pooled, self.sketch)
        self.out_features = self.sketch or pooled[0] * pooled[1]

    def select(self, *maps: Tensor) -> tuple[Tensor, Tensor]:
        """Give local map and guide, of which only the first channels may be used."""
        local, guide = maps
        return local, guide if self.channels is None else guide[:, : self.channels]

    def pool(self, local: Tensor, guide: Tensor) -> Tensor:
        """Pool selected maps without sketch and normalisation: ``(B, C, H, W), (B, K, H, W) -> (B, K, p)``."""
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

    def forward(self, *maps: Tensor, views: int = 1) -> Tensor:
        """Pool and normalise.

        Args:
            maps: ``(B * V, C, H, W)`` of the local features and ``(B * V, K, H, W)`` of the guide.
            views: V, how many consecutive maps belong to one image: their local features are pooled together.

        Returns:
            ``(B, out_features)``, float32 for half inputs.
        """
        pooled = self.pool(*self.select(*maps))  # (B V, K, p)
        if views > 1:
            pooled = pooled.view(-1, views, *pooled.shape[1:]).sum(dim=1)
        if self.count_sketch is not None:
            pooled = self.count_sketch(pooled).unsqueeze(1)  # (B, 1, D)
        vector: Tensor = self.normalise(pooled)
        return vector

    def start_fit(self, data: TrainingSet) -> HeadFit | None:
        """Begin with the projections, of local features or guide or both, where there are any."""
        return None if self.projection is None and self.guide_projection is None else _AxesFit(self, data)

    @property
    def explanation_obstacle(self) -> str | None:
        """A matrix root mixes all places."""
        return "spectral is true: a matrix root mixes all places" if self.spectral else None

    def explain(self, maps: Sequence[Tensor], weights: Tensor) -> tuple[Tensor, Tensor]:
        """Split a score over the guide's channels and places, see :mod:`cxlp.heads.evidence`.

        A place is a cell of the guide on the grid that both maps are brought onto: the centre of its sub-array. Where
        no sub-array is centred, shares are zero.
        """
        if self.explanation_obstacle is not None:
            return super().explain(maps, weights)
        local, activations = align_maps(*self.select(*maps), self.align)

        def pool(guide: Tensor) -> Tensor:
            pooled = self.pool(local.detach(), guide).sum(dim=0)  # (K, p)
            return pooled if self.count_sketch is None else self.count_sketch(pooled[None])  # linear, too: (1, D)

        return shares_of_guide(pool, activations, self.normalise, weights), activations

    def extra_repr(self) -> str:
        """Show the options that the submodules do not."""
        return f"size={self.size}, stride={self.stride}, padding={self.padding}, align={self.align}"


class _AxesFit(HeadFit):
    """Fits the projections that a head has to the maps as it pools them."""

    def __init__(self, head: CrossLayerPooling, data: TrainingSet) -> None:
        self.head = head
        self.local: PrincipalAxes | None = None
        self.guide: PrincipalAxes | None = None
        if head.projection is not None:
            self.local = PrincipalAxes(head.projection, data, head.local_features, "PCA", "pca_dim")
        if head.guide_projection is not None:
            what = "projection of the guide"
            self.guide = PrincipalAxes(head.guide_projection, data, head.local_features, what, "guide_dim")

    def observe(self, maps: tuple[Tensor, ...], positions: Tensor) -> None:
        head = self.head
        local, guide = (m.float() for m in head.select(*maps))
        local, guide = align_maps(local, guide, head.align)
        if self.local is not None:
            self.local.observe(sub_arrays(local, head.size, head.stride, head.padding), positions)
        if self.guide is not None:
            vectors = centres(guide, head.size, head.stride, head.padding).flatten(2).transpose(1, 2)  # (b V, N, K)
            self.guide.observe(vectors, positions)

    def solve(self, kept: KeptMaps) -> None:
        with kept.measure("PCA"):
            for axes in (self.local, self.guide):
                if axes is not None:
                    axes.solve()


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
