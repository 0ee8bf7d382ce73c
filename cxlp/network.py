"""The one network that both modes fit: backbone, projection, pooling, linear classifier."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from cxlp.backbones import Backbone, BackboneConfig, Tap
from cxlp.errors import CxlpError
from cxlp.pooling import Align, AveragePooling, CrossLayerPooling, Normalise, Padding

Method = Literal["cross", "bilinear", "average_local", "average_guide"]
#: The layers that a method pools; no other one is computed.
_TAPS: dict[Method, tuple[Tap, ...]] = {
    "cross": ("local", "guide"),
    "bilinear": ("guide",),
    "average_local": ("local",),
    "average_guide": ("guide",),
}


@dataclass(frozen=True)
class PoolingConfig:
    """How the two maps become one vector.

    Attributes:
        method: ``cross``: cross-layer pooling. Baselines: ``bilinear``: the upper layer pooled under
            itself (B-CNN; with ``pca_dim: null`` in full); ``average_local``, ``average_guide``:
            global average pooling of the lower or the upper layer.
        pca_dim: Size of a projected local feature; null: no projection. Not used by averages.
        size: Side of the sub-array of local features, odd.
        stride: Step between sub-arrays.
        padding: ``valid``: whole sub-arrays only; ``same``: zeros beyond the border.
        align: For maps of different sizes: ``strict`` refuses, ``to_local`` resamples the guide,
            ``to_guide`` the local map.
        zscore: Standardise each image's pooled vector.
        channel_l2: L2 within each pooling channel.
        sign: Keep only signs.
        sqrt: Signed square root.
        l2: L2 over the whole vector.
    """

    method: Method = "cross"
    pca_dim: int | None = 500
    size: int = 1
    stride: int = 1
    padding: Padding = "valid"
    align: Align = "strict"
    zscore: bool = False
    channel_l2: bool = False
    sign: bool = False
    sqrt: bool = True
    l2: bool = True


@dataclass(frozen=True)
class NetworkConfig:
    """A whole network, by plain values: enough to build it again.

    Attributes:
        backbone: The network to cut, and where.
        pooling: What is made of its two maps.
    """

    backbone: BackboneConfig = BackboneConfig()
    pooling: PoolingConfig = PoolingConfig()


class Network(nn.Module):
    """Images in, one score per class out; the parts are fitted by either mode.

    Args:
        config: Backbone and pooling.
        classes: Names of the classes; without them the classifier comes with :meth:`set_classes`.
        multi_label: Whether an image may show several of them.

    Attributes:
        backbone: ``images -> (local, guide)``.
        pooling: ``maps -> (B, D)``; its ``projection`` is the PCA where there is one.
        classifier: ``(B, D) -> (B, classes)``: logits. Fitted as SVMs, they are the margins times one
            fitted number, so that their softmax (or sigmoid, with several labels) is a sensible probability.
    """

    def __init__(self, config: NetworkConfig, classes: Sequence[str] | None = None, multi_label: bool = False) -> None:
        super().__init__()
        self.config = config
        self.backbone = Backbone(config.backbone, _TAPS[config.pooling.method])
        self.pooling = _build_pooling(config.pooling, self.backbone)
        self.classifier: nn.Linear | None = None
        self.classes: tuple[str, ...] = ()
        self.multi_label = multi_label
        if isinstance(self.pooling, CrossLayerPooling):
            _ = self.local_features  # refuses maps that are too small
        if classes is not None:
            self.set_classes(classes, multi_label)

    @property
    def projection(self) -> nn.Conv2d | None:
        """The PCA as a convolution; ``None`` where the pooling has none."""
        return self.pooling.projection if isinstance(self.pooling, CrossLayerPooling) else None

    @property
    def local_features(self) -> int:
        """How many local features one image gives, at the size that the backbone is built for."""
        assert isinstance(self.pooling, CrossLayerPooling)
        return self.pooling.places(*self.backbone.map_sizes[-1 if self.pooling.align == "to_guide" else 0])

    def set_classes(self, classes: Sequence[str], multi_label: bool = False) -> None:
        """Give the network its classifier; done once, repeated calls must agree.

        Raises:
            CxlpError: If there is a classifier for other classes already.
        """
        if self.classifier is None:
            self.classes, self.multi_label = tuple(classes), multi_label
            self.classifier = nn.Linear(self.pooling.out_features, len(classes))
            # Features have unit length and 10^4 to 10^6 entries: start from no opinion at all.
            nn.init.zeros_(self.classifier.weight)
            nn.init.zeros_(self.classifier.bias)
        elif (self.classes, self.multi_label) != (tuple(classes), multi_label):
            raise CxlpError(
                f"the network was fitted to {len(self.classes)} classes ({', '.join(self.classes[:3])}, ...), "
                f"the data has {len(classes)} ({', '.join(list(classes)[:3])}, ...)"
            )

    def pooling_inputs(self, images: Tensor) -> tuple[Tensor, ...]:
        """Compute the maps that the pooling takes: two for cross-layer pooling, one for averages."""
        maps: tuple[Tensor, ...] = self.backbone(images)
        return maps * 2 if self.config.pooling.method == "bilinear" else maps

    def features(self, images: Tensor) -> Tensor:
        """Compute the image representation: ``(B, 3, H, W) -> (B, D)``, float32 or wider."""
        vector: Tensor = self.pooling(*self.pooling_inputs(images))
        return vector

    def classify(self, features: Tensor) -> Tensor:
        """Score features: ``(B, D) -> (B, classes)``."""
        if self.classifier is None:
            raise CxlpError("the network has no classes yet: call set_classes first")
        # Full precision: half-precision scores of close classes tie.
        with torch.autocast(features.device.type, enabled=False):
            logits: Tensor = self.classifier(features.to(self.classifier.weight.dtype))
            return logits

    def forward(self, images: Tensor) -> Tensor:
        """Score images: ``(B, 3, H, W)``, RGB 0..255 ``-> (B, classes)``."""
        return self.classify(self.features(images))

    def spec(self) -> dict[str, Any]:
        """Plain values that :func:`load_network` builds the network from."""
        return {"config": asdict(self.config), "classes": list(self.classes), "multi_label": self.multi_label}


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """Read a checkpoint that a run wrote, without running code from it.

    Raises:
        CxlpError: If the file is missing or not a checkpoint of cxlp.
    """
    if not Path(path).is_file():
        raise CxlpError(f"checkpoint not found: {path}")
    try:
        checkpoint: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        _ = checkpoint["cxlp"]["network"]["config"]
    except Exception as error:  # torch.load raises many kinds, from UnpicklingError to EOFError
        # Only its kind: the message advises to load the file without the protection against code in it.
        raise CxlpError(f"{path} is not a checkpoint of cxlp ({type(error).__name__})") from error
    return checkpoint


def load_network(path: str | Path) -> Network:
    """Build the network of a checkpoint, in evaluation mode; nothing else is needed, no code is run.

    Args:
        path: A checkpoint that a run wrote.

    Raises:
        CxlpError: If the file is missing or not a checkpoint of cxlp.
    """
    checkpoint = read_checkpoint(path)
    spec = checkpoint["cxlp"]["network"]
    # The weights come from the checkpoint: nothing is downloaded.
    backbone = BackboneConfig(**{**spec["config"]["backbone"], "weights": None})
    config = NetworkConfig(backbone, PoolingConfig(**spec["config"]["pooling"]))
    network = Network(config, spec["classes"] or None, spec["multi_label"])  # no classes yet: no classifier either
    prefix = "network."
    state = {k.removeprefix(prefix): v for k, v in checkpoint["state_dict"].items() if k.startswith(prefix)}
    network.load_state_dict(state)
    return network.eval()


def _build_pooling(config: PoolingConfig, backbone: Backbone) -> CrossLayerPooling | AveragePooling:
    normalise = Normalise(config.zscore, config.channel_l2, config.sign, config.sqrt, config.l2)
    if config.method in ("average_local", "average_guide"):
        return AveragePooling(backbone.channels[0], normalise)
    sizes = backbone.map_sizes
    if sizes[0] != sizes[-1] and config.align == "strict":
        lower, upper = ("{}x{}".format(*size) for size in sizes)
        raise CxlpError(
            f"the two layers have maps of {lower} and {upper}: choose layers of one resolution, "
            "or set pooling.align to to_local or to_guide"
        )
    return CrossLayerPooling(
        backbone.channels[0],
        backbone.channels[-1],  # of bilinear pooling, the same layer
        config.pca_dim,
        config.size,
        config.stride,
        config.padding,
        config.align,
        normalise,
    )
