"""One part of a representation: some views of an image, one or two layers, an encoding of their maps."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from torch import Tensor, nn

from cxlp.backbones.backbone import Backbone, BackboneConfig
from cxlp.heads.average import AveragePooling
from cxlp.heads.covariance import CovariancePooling
from cxlp.heads.cross_layer import Align, CrossLayerPooling, Padding
from cxlp.heads.encoding import LocalEncoding
from cxlp.heads.fisher_vector import GaussianFisherVector, SparseFisherVector
from cxlp.heads.normalisation import Normalise
from cxlp.heads.trained_guide import TrainedGuidePooling
from cxlp.models.views import ViewsConfig
from cxlp.utils.errors import CxlpError

Method = Literal[
    "cross", "bilinear", "average_local", "average_guide", "covariance", "fisher", "sparse_fisher", "trained_guide"
]


@dataclass(frozen=True)
class PoolingConfig:
    """How the maps of one or two layers become one vector.

    Attributes:
        method: ``cross``: cross-layer pooling. Of the upper layer alone: ``bilinear``: pooled under itself (B-CNN;
            with ``pca_dim: null`` in full); ``average_guide``: global average; ``covariance``: with matrix square root
            (iSQRT-COV; with ``sqrt: false``, since the root is taken already); ``fisher``, ``sparse_fisher``: Fisher
            vector of a Gaussian mixture or of sparse coding; ``trained_guide``: pooled under channels that are
            trained on it. ``average_local``: global average of the lower layer.
        layers: Other layers than the backbone's ``layers``; one is enough for methods that take one.
        views: Which views of the image are encoded together.
        pca_dim: Size of a projected local feature; null: no projection. Not used by averages.
        size: Side of the sub-array of local features, odd.
        stride: Step between sub-arrays.
        padding: ``valid``: whole sub-arrays only; ``same``: zeros beyond the border.
        align: For maps of different sizes: ``strict`` refuses, ``to_local`` resamples the guide,
            ``to_guide`` the local map.
        channels: Of the guide, how many pooling channels are used, the first ones; null: all.
        guide_dim: Of cross-layer and bilinear pooling: to how many pooling channels the guide is projected, by the
            leading eigenvectors of its activations; null: no projection.
        sketch: Of cross-layer and bilinear pooling: length of the count sketch of the pooled features (compact
            pooling); null: none.
        atoms: Components of the mixture, atoms of the dictionary, channels of the trained guide.
        sparsity: Weight of the L1 norm in sparse coding.
        spectral: Of cross-layer and bilinear pooling: square root of the singular values of the pooled features, as a
            matrix of pooling channels by values of a local feature (with ``sqrt: false``, or before that root).
        zscore: Standardise each image's pooled vector.
        channel_l2: L2 within each pooling channel.
        sign: Keep only signs.
        sqrt: Signed square root.
        l2: L2 over the whole vector.
    """

    method: Method = "cross"
    layers: tuple[str, ...] | None = None
    views: ViewsConfig = ViewsConfig()
    pca_dim: int | None = 500
    size: int = 1
    stride: int = 1
    padding: Padding = "valid"
    align: Align = "strict"
    channels: int | None = None
    guide_dim: int | None = None
    sketch: int | None = None
    atoms: int = 100
    sparsity: float = 0.1
    spectral: bool = False
    zscore: bool = False
    channel_l2: bool = False
    sign: bool = False
    sqrt: bool = True
    l2: bool = True

    def layers_of(self, backbone: BackboneConfig) -> tuple[str, ...]:
        """Name the layers that the method takes, lower before upper.

        Raises:
            CxlpError: If there are too few or too many.
        """
        given = tuple(self.layers or backbone.layers)
        if len(given) > 2 or (self.method == "cross" and len(given) < 2):
            wanted = "two layers, local features and guide" if self.method == "cross" else "one layer or two"
            raise CxlpError(f"model.network.pooling.layers is {list(given)}: {self.method} takes {wanted}")
        if self.method == "cross":
            return given
        return given[:1] if self.method == "average_local" else given[-1:]


class Part(nn.Module):
    """One vector of an image: some views of it, one or two layers of the backbone, an encoding of their maps.

    Args:
        config: Its options.
        backbone: The backbone, which has the layers.
        layers: Those that this part takes, lower before upper.

    Attributes:
        encoding: ``maps -> (B, D)``; its ``projection`` is the PCA where there is one.
        views: V, views per image.
        out_features: D.
    """

    def __init__(self, config: PoolingConfig, backbone: Backbone, layers: Sequence[str]) -> None:
        super().__init__()
        self.config, self.layers = config, tuple(layers)
        self.views = config.views.count(backbone.image_size)
        places = [backbone.layers.index(layer) for layer in layers]
        if len({backbone.same[i] for i in places}) < len(layers):
            raise CxlpError(
                f"layers {layers[0]!r} and {layers[1]!r} are one and the same map: "
                "the guide must lie above the local features"
            )
        names = [backbone.same[i] for i in places] * (2 if config.method == "bilinear" else 1)
        #: What tells the maps that :meth:`select` gives from those of other parts.
        self.map_names = [(config.views.relevant, name, config.channels if i else None) for i, name in enumerate(names)]
        self._map_sizes = [backbone.map_sizes[i] for i in places]
        self.encoding = _build_encoding(config, [backbone.channels[i] for i in places], self._map_sizes)
        self.out_features = self.encoding.out_features
        if self.projection is not None:
            _ = self.local_features  # refuses maps that are too small

    @property
    def projection(self) -> nn.Conv2d | None:
        """The PCA as a convolution; ``None`` where the encoding has none."""
        return None if isinstance(self.encoding, AveragePooling) else self.encoding.projection

    @property
    def guide_projection(self) -> nn.Conv2d | None:
        """The projection of the guide as a convolution; ``None`` where the encoding has none."""
        return self.encoding.guide_projection if isinstance(self.encoding, CrossLayerPooling) else None

    @property
    def local_features(self) -> int:
        """How many local features one image gives, of all its views, at the size that the backbone is built for."""
        assert not isinstance(self.encoding, AveragePooling)
        to_guide = self.encoding.align == "to_guide"
        return self.views * self.encoding.places(*self._map_sizes[-1 if to_guide else 0])

    def select(self, maps: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Take what the encoding pools of the layers' maps: a map under itself, or fewer channels of the guide."""
        if self.config.method == "bilinear":
            maps = [maps[0], maps[0]]
        if self.config.channels is not None and len(maps) == 2:
            maps = [maps[0], maps[1][:, : self.config.channels]]
        return tuple(maps)

    def forward(self, *maps: Tensor) -> Tensor:
        """Encode the selected maps of ``B * V`` views, an image's one after another: ``(B, out_features)``."""
        vector: Tensor = self.encoding(*maps, views=self.views)
        return vector


def _build_encoding(
    config: PoolingConfig, channels: Sequence[int], sizes: Sequence[tuple[int, int]]
) -> CrossLayerPooling | AveragePooling | LocalEncoding:
    _check_method(config)
    normalise = Normalise(
        spectral=config.spectral,
        zscore=config.zscore,
        channel_l2=config.channel_l2,
        sign=config.sign,
        sqrt=config.sqrt,
        l2=config.l2,
    )
    if config.method in ("average_local", "average_guide"):
        return AveragePooling(channels[0], normalise)
    if config.method == "covariance":
        return CovariancePooling(channels[0], config.pca_dim, normalise)
    if config.method == "fisher":
        return GaussianFisherVector(channels[0], config.pca_dim, config.atoms, normalise)
    if config.method == "sparse_fisher":
        return SparseFisherVector(channels[0], config.pca_dim, config.atoms, normalise, config.sparsity)
    if config.method == "trained_guide":
        return TrainedGuidePooling(channels[0], config.pca_dim, config.atoms, normalise)
    if sizes[0] != sizes[-1] and config.align == "strict":
        lower, upper = ("{}x{}".format(*size) for size in sizes)
        raise CxlpError(
            f"the two layers have maps of {lower} and {upper}: choose layers of one resolution, "
            "or set pooling.align to to_local or to_guide"
        )
    guides = channels[-1]  # of bilinear pooling, the same layer
    if config.channels is not None:
        if not 1 <= config.channels <= guides:
            raise CxlpError(
                f"model.network.pooling.channels is {config.channels}, but the guide has {guides}: choose 1 to "
                f"{guides}, or null"
            )
        guides = config.channels
    return CrossLayerPooling(
        channels[0],
        guides,
        config.pca_dim,
        config.size,
        config.stride,
        config.padding,
        config.align,
        normalise,
        config.guide_dim,
        config.sketch,
    )


def _check_method(config: PoolingConfig) -> None:
    """Refuse options that the method, or another option, leaves without meaning."""
    if config.method not in ("cross", "bilinear"):
        for name, off in (("guide_dim", None), ("sketch", None), ("spectral", False)):
            if getattr(config, name) is not off:
                raise CxlpError(
                    f"model.network.pooling.{name} is {getattr(config, name)}, which method {config.method} does not "
                    f"have: choose cross or bilinear, or set {name} to {'null' if off is None else 'false'}"
                )
    if config.sketch is not None:
        for name in ("spectral", "channel_l2"):
            if getattr(config, name):
                raise CxlpError(
                    f"model.network.pooling.{name} is true, but a sketch has no pooling channels any more: set "
                    f"{name} to false, or sketch to null"
                )
