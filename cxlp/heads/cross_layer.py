"""The head of the paper: cross-layer pooling of two layers' maps, and its shorter forms."""

from collections.abc import Sequence
from typing import ClassVar

from torch import Tensor, nn

from cxlp.heads.base import Head, Shape
from cxlp.heads.count_sketch import CountSketch
from cxlp.heads.description import check_count, is_whole
from cxlp.heads.evidence import shares_of_guide
from cxlp.heads.fitting import HeadFit, TrainingSet
from cxlp.heads.normalisation import Normalise
from cxlp.heads.operator import (
    Align,
    Padding,
    align_maps,
    centres,
    check_geometry,
    check_sizes,
    count_places,
    cross_layer_pooling,
    sub_arrays,
)
from cxlp.heads.projection import AxesFit, PrincipalAxes, local_vectors, project
from cxlp.heads.views import Views
from cxlp.utils.errors import CxlpError


class CrossLayerPooling(Head):
    """Cross-convolutional-layer pooling as a head: two maps in, one normalised vector out.

    For networks with many channels there are two shorter forms of the K p pooled features, which combine:

    - low-rank: the guide's K channels are projected to k by ``V`` of orthonormal rows, and the rows ``V P`` pooled. Its
      fit takes the leading eigenvectors of the guide's second moment ``E[a a^T]``, not centred, so that
      ``V^T V a`` is the best approximation of rank k of its activations, and ``V^T (V P)`` one of ``P``; gradient
      descent trains it. (Low-rank bilinear forms: Kong and Fowlkes, CVPR 2017.)
    - compact: a count sketch adds them up in D bins, see :class:`~cxlp.heads.count_sketch.CountSketch`.

    Second-order statistics tell more of a picture when they do not depend on the mean (``centre``) and when no few
    directions outweigh all others, neither those of the data set (``whiten``) nor those of the picture (``spectral``).
    Together these options make the iSQRT-COV of a pair of layers, see ``configs/best.yaml``.

    The cost of an image with N places, in multiply-adds, and in values of memory beside the maps:

        ========  =======  ================================  ===========================
        form      length   multiply-adds                     memory
        ========  =======  ================================  ===========================
        full      ``K p``  ``N (C r r p + K p)``             ``N p + K p``
        low-rank  ``k p``  ``N (C r r p + K k + k p)``       ``N (p + k) + k p``
        compact   ``D``    those of the full, and ``2 K p``  ``N p + 2 K p + D``
        both      ``D``    those of low-rank, and ``2 k p``  ``N (p + k) + 2 k p + D``
        ========  =======  ================================  ===========================

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
        centre: Subtract the guide's mean over the places of each view, which makes the cross-covariance of both layers,
            see :func:`~cxlp.heads.operator.cross_layer_pooling`. The axes of ``guide_dim`` are then those of the
            guide's covariance.
        whiten: How far the projections' fit evens out the variances along the axes, see
            :class:`~cxlp.heads.projection.PrincipalAxes`: 0 leaves them, 1 makes them equal, 0.5 takes their root.
        spectral, zscore, channel_l2, sign, sqrt, l2: The normalisation, see
            :class:`~cxlp.heads.normalisation.Normalise`. The root of the singular values takes the place of ``sqrt``.
        second_root: Whether, with ``spectral``, the signed square root follows, as in improved bilinear pooling.
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
        >>> import torch
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
        centre: bool = False,
        whiten: float = 0.0,
        spectral: bool = False,
        zscore: bool = False,
        channel_l2: bool = False,
        sign: bool = False,
        sqrt: bool = True,
        second_root: bool = False,
        l2: bool = True,
        layers: Sequence[str] | None = None,
        views: Views = Views(),
    ) -> None:
        super().__init__(layers, views)
        for option, value in (("size", size), ("stride", stride)):
            if not is_whole(value):
                raise CxlpError(f"{option} is {value!r}: give a whole number")
        check_geometry(size, stride, padding)
        for option, on in (("spectral", spectral), ("channel_l2", channel_l2)):
            if sketch is not None and on:
                raise CxlpError(
                    f"{option} is true, but a sketch has no pooling channels any more: set {option} to false, or "
                    "sketch to null"
                )
        if second_root and not spectral:
            raise CxlpError("second_root is true, but there is no first one: set spectral to true, or it to false")
        self.pca_dim, self.size, self.stride, self.padding, self.align = pca_dim, size, stride, padding, align
        if not 0 <= whiten <= 1:
            raise CxlpError(f"whiten is {whiten}: it must lie between 0 and 1")
        if whiten and pca_dim is None and guide_dim is None:
            raise CxlpError(f"whiten is {whiten}, but there are no projections: give pca_dim or guide_dim, or whiten 0")
        self.channels, self.guide_dim, self.sketch = channels, guide_dim, sketch
        self.centre, self.whiten = centre, whiten
        self.spectral, self.zscore, self.channel_l2 = spectral, zscore, channel_l2
        self.sign, self.sqrt, self.second_root, self.l2 = sign, sqrt, second_root, l2
        self.normalise = Normalise(
            spectral=spectral, zscore=zscore, channel_l2=channel_l2, sign=sign,
            sqrt=second_root if spectral else sqrt, l2=l2,
        )  # fmt: skip

    def build(self, shapes: Sequence[Shape]) -> None:
        """Make the projections and the sketch."""
        local, guide = shapes
        check_sizes(local[1:], guide[1:], self.align)
        self.local_dim = local[0] * self.size**2
        local_feature = f"a local feature has {self.local_dim} values ({local[0]} channels x {self.size} x {self.size})"
        check_count("channels", self.channels, guide[0], f"the guide has {guide[0]}")
        guides = self.channels or guide[0]
        check_count("pca_dim", self.pca_dim, self.local_dim, local_feature)
        check_count("guide_dim", self.guide_dim, guides, f"the guide has {guides} channels")
        sides = (guide if self.align == "to_guide" else local)[1:]
        places = count_places(sides, self.size, self.stride, self.padding)
        if self.centre and places == 1:
            raise CxlpError("centre is true, but a view has one local feature, which is its own mean: set it to false")
        self.local_features = self.view_count * places
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
            centre=self.centre,
        )

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
        axes = [
            PrincipalAxes(projection, data, self.local_features, what, option, centred=centred, whiten=self.whiten)
            for projection, what, option, centred in (
                (self.projection, "PCA", "pca_dim", True),
                (self.guide_projection, "projection of the guide", "guide_dim", self.centre),
            )
            if projection is not None
        ]
        return AxesFit(axes, self._projected_vectors) if axes else None

    def _projected_vectors(self, maps: tuple[Tensor, ...]) -> list[Tensor]:
        """What each projection is applied to where maps are pooled: ``(B V, N, d)``."""
        local, guide = self.select(*maps)
        local, guide = align_maps(local.float(), guide.float(), self.align)
        found = []
        if self.projection is not None:
            found.append(sub_arrays(local, self.size, self.stride, self.padding))
        if self.guide_projection is not None:
            found.append(local_vectors(centres(guide, self.size, self.stride, self.padding)))
        return found

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
