"""The one network that both modes fit: backbone, projection, pooling, linear classifier."""

from collections.abc import Hashable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from cxlp.backbones.backbone import Backbone, BackboneConfig
from cxlp.models.branch import Part, PoolingConfig
from cxlp.models.views import ViewsConfig
from cxlp.utils.errors import CxlpError

#: How many views pass through the backbone at a time: many to keep it busy, few to bound memory.
_VIEWS_AT_A_TIME = 128


@dataclass(frozen=True)
class NetworkConfig:
    """A whole network, by plain values: enough to build it again.

    Attributes:
        backbone: The network to cut, and where.
        pooling: What is made of its maps.
        also: Further vectors, each made by a pooling of its own; all of them are concatenated.
        test_views: Views of an image that is scored (validation, test, prediction): the mean of their scores counts.
            Training sees whole images.
    """

    backbone: BackboneConfig = BackboneConfig()
    pooling: PoolingConfig = PoolingConfig()
    also: tuple[PoolingConfig, ...] = ()
    test_views: ViewsConfig = ViewsConfig()

    @property
    def parts(self) -> tuple[PoolingConfig, ...]:
        """All poolings."""
        return self.pooling, *self.also

    @staticmethod
    def from_values(values: dict[str, Any]) -> "NetworkConfig":
        """Build it from plain values, such as :func:`dataclasses.asdict`'s; what is not said keeps its default."""

        def pooling(part: dict[str, Any]) -> PoolingConfig:
            return PoolingConfig(**{**part, "views": ViewsConfig(**part.get("views", {}))})

        backbone = BackboneConfig(**values["backbone"])
        return NetworkConfig(
            backbone,
            pooling(values["pooling"]),
            tuple(pooling(part) for part in values["also"]),
            ViewsConfig(**values.get("test_views", {})),
        )


class Network(nn.Module):
    """Images in, one score per class out; the parts are fitted by either mode.

    Args:
        config: Backbone and pooling.
        classes: Names of the classes; without them the classifier comes with :meth:`set_classes`.
        multi_label: Whether an image may show several of them.

    Attributes:
        backbone: ``images -> maps``.
        parts: What is made of the maps, each part a vector; the representation is their concatenation, divided by
            the square root of their number, so that vectors of unit length make one of unit length.
        image_size: Side of the square images that it is trained on, of which the parts' views are cut, pixels.
        test_size: Side of the square images that :meth:`score` takes, of which the test views are cut, pixels.
        out_features: Length D of the representation.
        classifier: ``(B, D) -> (B, classes)``: logits. Fitted as SVMs, they are the margins times one
            fitted number, so that their softmax (or sigmoid, with several labels) is a sensible probability.
    """

    def __init__(self, config: NetworkConfig, classes: Sequence[str] | None = None, multi_label: bool = False) -> None:
        super().__init__()
        self.config = config
        layers = [part.layers_of(config.backbone) for part in config.parts]
        self.backbone = Backbone(config.backbone, list(dict.fromkeys(chain.from_iterable(layers))))
        self.parts = nn.ModuleList(
            Part(part, self.backbone, taken) for part, taken in zip(config.parts, layers, strict=True)
        )
        self.image_size = max(part.views.image_size(self.backbone.image_size) for part in config.parts)
        self.test_size = config.test_views.image_size(self.image_size)
        self.out_features = sum(part.out_features for part in self.each_part())
        self.classifier: nn.Linear | None = None
        self.classes: tuple[str, ...] = ()
        self.multi_label = multi_label
        if classes is not None:
            self.set_classes(classes, multi_label)

    def each_part(self) -> Iterator[Part]:
        """Go through the parts (which a ModuleList knows as modules only)."""
        for part in self.parts:
            assert isinstance(part, Part)
            yield part

    @property
    def projection(self) -> nn.Conv2d | None:
        """The first part's PCA as a convolution; ``None`` where it has none."""
        return next(self.each_part()).projection

    @property
    def passes(self) -> int:
        """Forward passes of the backbone per image that is scored."""
        views = {part.config.views.relevant: part.views for part in self.each_part()}
        return sum(views.values()) * self.test_views

    @property
    def test_views(self) -> int:
        """Views of an image that is scored."""
        return self.config.test_views.count(self.image_size)

    def set_classes(self, classes: Sequence[str], multi_label: bool = False) -> None:
        """Give the network its classifier; done once, repeated calls must agree.

        Raises:
            CxlpError: If there is a classifier for other classes already.
        """
        if self.classifier is None:
            self.classes, self.multi_label = tuple(classes), multi_label
            self.classifier = nn.Linear(self.out_features, len(classes))
            self.reset_classifier()
        elif (self.classes, self.multi_label) != (tuple(classes), multi_label):
            raise CxlpError(
                f"the network was fitted to {len(self.classes)} classes ({', '.join(self.classes[:3])}, ...), "
                f"the data has {len(classes)} ({', '.join(list(classes)[:3])}, ...)"
            )

    def reset_classifier(self) -> None:
        """Put the classifier back to no opinion at all: features have unit length and 10^4 to 10^6 entries."""
        assert self.classifier is not None
        nn.init.zeros_(self.classifier.weight)
        nn.init.zeros_(self.classifier.bias)

    def inputs(self, images: Tensor) -> list[tuple[Tensor, ...]]:
        """Compute what each part encodes.

        Args:
            images: ``(B, 3, S, S)``, RGB 0..255; S is :attr:`image_size`.

        Returns:
            For each part its maps ``(B * V, C, h, w)``. Parts with the same views share their passes.
        """
        seen: dict[Hashable, dict[str, Tensor]] = {}
        found = []
        for part in self.each_part():
            views = part.config.views
            if views.relevant not in seen:
                seen[views.relevant] = self._see(images, views, part.views)
            found.append(part.select([seen[views.relevant][layer] for layer in part.layers]))
        return found

    def _see(self, images: Tensor, views: ViewsConfig, count: int) -> dict[str, Tensor]:
        """Send an image's views through the backbone: a map ``(B * V, C, h, w)`` by layer."""
        chunks = [self.backbone(views.cut(part, self.backbone.image_size)) for part in _chunks(images, count)]
        maps = chunks[0] if len(chunks) == 1 else [torch.cat(parts) for parts in zip(*chunks, strict=True)]
        return dict(zip(self.backbone.layers, maps, strict=True))

    def encode(self, part: Part, maps: tuple[Tensor, ...]) -> Tensor:
        """Make a part's share ``(B, part.out_features)`` of the representation."""
        vector: Tensor = part(*maps)
        return vector if len(self.parts) == 1 else vector * len(self.parts) ** -0.5

    def features(self, images: Tensor) -> Tensor:
        """Compute the image representation: ``(B, 3, S, S) -> (B, D)``, float32 or wider."""
        vectors = [self.encode(part, maps) for part, maps in zip(self.each_part(), self.inputs(images), strict=True)]
        return vectors[0] if len(vectors) == 1 else torch.cat(vectors, dim=1)

    def test_features(self, images: Tensor) -> Tensor:
        """Compute what is scored of an image: the mean of its test views' representations.

        Scores are linear in the representation, so this is the mean of the views' scores.

        Args:
            images: ``(B, 3, T, T)``, RGB 0..255; T is :attr:`test_size`.

        Returns:
            ``(B, D)``; of unit length only where there is one view.
        """
        if self.test_views == 1:
            return self.features(images)
        chunks = _chunks(images, self.test_views)
        found = [self.features(self.config.test_views.cut(chunk, self.image_size)) for chunk in chunks]
        return torch.cat(found).view(-1, self.test_views, self.out_features).mean(dim=1)

    def classify(self, features: Tensor) -> Tensor:
        """Score features: ``(B, D) -> (B, classes)``."""
        if self.classifier is None:
            raise CxlpError("the network has no classes yet: call set_classes first")
        # Full precision: half-precision scores of close classes tie.
        with torch.autocast(features.device.type, enabled=False):
            logits: Tensor = self.classifier(features.to(self.classifier.weight.dtype))
            return logits

    def forward(self, images: Tensor) -> Tensor:
        """Score images by one view: ``(B, 3, S, S)``, RGB 0..255 ``-> (B, classes)``."""
        return self.classify(self.features(images))

    def score(self, images: Tensor) -> Tensor:
        """Score images by the test views: ``(B, 3, T, T)``, RGB 0..255 ``-> (B, classes)``."""
        return self.classify(self.test_features(images))

    @classmethod
    def from_spec(cls, spec: Any) -> "Network":  # noqa: ANN401 (plain values)
        """Build a network from the plain values of :meth:`spec`, with random weights."""
        config = NetworkConfig.from_values(spec["config"])
        config = replace(config, backbone=replace(config.backbone, weights=None))
        return cls(config, spec["classes"] or None, spec["multi_label"])

    def spec(self) -> dict[str, Any]:
        """Plain values that :func:`load_network` builds the network from."""
        return {"config": asdict(self.config), "classes": list(self.classes), "multi_label": self.multi_label}


def _chunks(images: Tensor, views: int) -> Sequence[Tensor]:
    """Split a batch by how many views pass at a time; not one of any size, as export traces it."""
    if views == 1 or isinstance(images.shape[0], torch.SymInt):
        return (images,)
    return torch.split(images, max(1, _VIEWS_AT_A_TIME // views))
