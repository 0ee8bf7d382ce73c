"""Cross-layer pooling of two layers' maps, the paper's head, with low-rank and compact forms."""

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
    """Cross-convolutional-layer pooling, which turns two maps into one normalised vector.

    For networks with many channels, two shorter forms of the K p pooled features are available. They can be combined:

    - low-rank: a matrix ``V`` with orthonormal rows projects the guide's K channels to k, so that the pooled features
      are ``V P``. The fit sets ``V`` to the leading eigenvectors of the guide's uncentred second moment ``E[a a^T]``.
      Then ``V^T V a`` is the best rank-k approximation of the activations, and ``V^T (V P)`` approximates ``P``.
      Gradient descent can train ``V``. (Low-rank bilinear forms: Kong and Fowlkes, CVPR 2017.)
    - compact: a count sketch sums the pooled features in D bins, see :class:`~cxlp.heads.count_sketch.CountSketch`.

    Second-order statistics are more informative if they do not depend on the mean (``centre``), and if no small set of
    directions dominates the others, whether of the data set (``whiten``) or of the image (``spectral``). These options
    together are iSQRT-COV for a pair of layers, see ``configs/best.yaml``.

    Cost of an image with N places, in multiply-adds and in values of memory in addition to the maps:

        ========  =======  ================================  ===========================
        form      length   multiply-adds                     memory
        ========  =======  ================================  ===========================
        full      ``K p``  ``N (C r r p + K p)``             ``N p + K p``
        low-rank  ``k p``  ``N (C r r p + K k + k p)``       ``N (p + k) + k p``
        compact   ``D``    full form plus ``2 K p``          ``N p + 2 K p + D``
        both      ``D``    low-rank form plus ``2 k p``      ``N (p + k) + 2 k p + D``
        ========  =======  ================================  ===========================

    For ``C = K = 2048``, ``p = 512`` and ``N = 196``, the full form has length 1,048,576 and takes 411 million
    multiply-adds. The low-rank form with k = 64 has length 32,768 and takes 238 million.

    Args:
        pca_dim: Size p of a projected local feature; ``None``: no projection.
        size: Side r of the sub-array that forms a local feature, an odd number.
        stride: Step between sub-arrays, in cells of the map.
        padding: ``"valid"``: whole sub-arrays only; ``"same"``: zero padding beyond the border.
        align: Rule for maps of different sizes, see :func:`align_maps`.
        channels: Use only this many of the guide's first channels as pooling channels; ``None``: all.
        guide_dim: Number k of pooling channels that the guide is projected to; ``None``: no projection.
        sketch: Length D of the count sketch of the pooled features; ``None``: no sketch.
        centre: Subtract the guide's mean over the places of each view. The result is the cross-covariance of both
            layers, see :func:`~cxlp.heads.operator.cross_layer_pooling`, and ``guide_dim`` projects to the axes of the
            guide's covariance.
        whiten: Strength of the whitening of the projections, 0 to 1, see
            :class:`~cxlp.heads.projection.PrincipalAxes`: 0 leaves the variances along the axes unchanged, 0.5 takes
            their square roots, 1 makes them equal.
        spectral, zscore, channel_l2, sign, sqrt, l2: The normalisation, see
            :class:`~cxlp.heads.normalisation.Normalise`. ``spectral`` replaces ``sqrt``.
        second_root: With ``spectral``, apply the signed square root after it, as in improved bilinear pooling.
        layers: The layer of the local features and the layer of the guide; ``None``: the backbone's last two.
        views: The views of an image whose local features are pooled together.

    Attributes:
        projection: The convolution that extracts and projects local features, or ``None``.
        guide_projection: The 1 x 1 convolution without bias that projects the guide, or ``None``.
        count_sketch: The count sketch, or ``None``.
        local_dim: Size of a local feature before the projection, ``C r r``.
        local_features: Number of local features of an image, N summed over all views.
        out_features: Length of the vector.

    Raises:
        CxlpError: If options are invalid or contradict each other. :meth:`connect` raises it for options that do not
            fit the maps.

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
                    f"{option} is true, but a sketch does not preserve pooling channels: set {option} to false or "
                    "sketch to null"
                )
        if second_root and not spectral:
            raise CxlpError("second_root is true, but spectral is false: set spectral to true or second_root to false")
        self.pca_dim, self.size, self.stride, self.padding, self.align = pca_dim, size, stride, padding, align
        if not 0 <= whiten <= 1:
            raise CxlpError(f"whiten is {whiten}: it must be between 0 and 1")
        if whiten and pca_dim is None and guide_dim is None:
            raise CxlpError(f"whiten is {whiten}, but there is no projection: set pca_dim or guide_dim, or whiten to 0")
        self.channels, self.guide_dim, self.sketch = channels, guide_dim, sketch
        self.centre, self.whiten = centre, whiten
        self.spectral, self.zscore, self.channel_l2 = spectral, zscore, channel_l2
        self.sign, self.sqrt, self.second_root, self.l2 = sign, sqrt, second_root, l2
        self.normalise = Normalise(
            spectral=spectral, zscore=zscore, channel_l2=channel_l2, sign=sign,
            sqrt=second_root if spectral else sqrt, l2=l2,
        )  # fmt: skip

    def build(self, shapes: Sequence[Shape]) -> None:
        """Create the projections and the sketch."""
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
            raise CxlpError(
                "centre is true, but each view has a single local feature, which equals its mean: set centre to false"
            )
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
        """Return the local map and the guide, the guide reduced to its first ``channels`` channels."""
        local, guide = maps
        return local, guide if self.channels is None else guide[:, : self.channels]

    def pool(self, local: Tensor, guide: Tensor) -> Tensor:
        """Pool selected maps without sketch and normalisation: ``(B, C, H, W), (B, K, H, W) -> (B, K, p)``."""
        if self.guide_projection is not None:
            guide = project(self.guide_projection, guide)  # before resampling, which commutes: both are linear
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
            maps: The local map ``(B * V, C, H, W)`` and the guide ``(B * V, K, H, W)``.
            views: Number V of consecutive maps that belong to one image. Their local features are pooled together.

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
        """Return the fit of the projections of local features and guide, or ``None`` if there are none."""
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
        """Return the input vectors of each projection at the pooled places: ``(B V, N, d)``."""
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
        """The reason why ``spectral`` rules out an explanation; ``None`` without ``spectral``."""
        return "spectral is true: a matrix root mixes all places" if self.spectral else None

    def explain(self, maps: Sequence[Tensor], weights: Tensor) -> tuple[Tensor, Tensor]:
        """Split a score over the guide's channels and places, see :mod:`cxlp.heads.evidence`.

        A place is a cell of the guide on the common grid of both maps, and the centre of a sub-array. Cells that are
        not the centre of a sub-array have shares of zero.
        """
        if self.explanation_obstacle is not None:
            return super().explain(maps, weights)
        local, activations = align_maps(*self.select(*maps), self.align)

        def pool(guide: Tensor) -> Tensor:
            pooled = self.pool(local.detach(), guide).sum(dim=0)  # (K, p)
            return pooled if self.count_sketch is None else self.count_sketch(pooled[None])  # linear, too: (1, D)

        return shares_of_guide(pool, activations, self.normalise, weights), activations
