"""The one network that both modes fit: backbone, heads, linear classifier."""

import warnings
from collections.abc import Hashable, Iterable, Iterator, Sequence
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor, nn

from cxlp.backbones.backbone import Backbone
from cxlp.backbones.library import registered_by
from cxlp.heads.base import Head
from cxlp.heads.description import plain
from cxlp.heads.views import Views
from cxlp.models.classes import checked, numbered, some
from cxlp.utils.errors import CxlpError

#: How many views pass through the backbone at a time: many to keep it busy, few to bound memory.
_VIEWS_AT_A_TIME = 128
#: How many bytes of vectors are encoded at a time, see :meth:`Network.encode`: the C library keeps no larger blocks.
_BYTES_AT_A_TIME = 16 << 20


class Network(nn.Module):
    """Images in, one score per class out; heads and classifier are fitted by either mode.

    Images are RGB: uint8 of 0..255, or floating point of 0..1.

    Args:
        backbone: ``images -> maps``; layers that no head takes are cut off, with what only they need.
        head: What is made of the maps: a head, or several, whose vectors are concatenated. As any module, a head that
            is given to two networks shares its weights between them.
        classes: Names of the classes, or how many (then named ``"0"``, ``"1"``, ...); ``None``: the classifier comes
            with :meth:`set_classes`.
        multi_label: Whether an image may show several of them.
        test_views: Views of an image that is scored (validation, test, prediction): the mean of their scores counts.
            Training sees whole images.

    Attributes:
        backbone: With the layers that heads take.
        heads: Each makes a vector; the representation is their concatenation, divided by the square root of their
            number, so that vectors of unit length make one of unit length.
        image_size: Side of the square images that it is trained on, of which the heads' views are cut, pixels.
        test_size: Side of the square images that :meth:`score` takes, of which the test views are cut, pixels.
        out_features: Length D of the representation.
        classifier: ``(B, D) -> (B, classes)``: logits. Fitted as SVMs, they are the margins times one
            fitted number, so that their softmax (or sigmoid, with several labels) is a sensible probability.

    Raises:
        CxlpError: If a head does not fit the backbone's layers, or has an option that a checkpoint cannot hold.

    Example:
        >>> from cxlp.heads import CrossLayerPooling
        >>> backbone = Backbone("timm/test_resnet", ("layer3.0.conv2", "layer3"), weights=None, image_size=64)
        >>> network = Network(backbone, CrossLayerPooling(pca_dim=6), classes=["gull", "tern", "wren"])
        >>> network(torch.rand(2, 3, 64, 64)).shape
        torch.Size([2, 3])
    """

    def __init__(
        self,
        backbone: Backbone,
        head: Head | Sequence[Head],
        classes: int | Sequence[str] | None = None,
        multi_label: bool = False,
        test_views: Views = Views(),
    ) -> None:
        super().__init__()
        heads = list(head) if isinstance(head, Iterable) else [head]
        if not heads or not all(isinstance(each, Head) for each in heads):
            raise CxlpError(f"head is {head!r}: give a head, such as CrossLayerPooling(), or several")
        if not isinstance(backbone, Backbone):
            raise CxlpError(
                f"backbone is a {type(backbone).__name__}: cut it after layers, Backbone(..., layers=[...])"
            )
        if len({id(each) for each in heads}) < len(heads):
            raise CxlpError("a head is given twice: make one for each place, or copy it by copy.deepcopy")
        self._named = {layer for each in heads for layer in each.layers or ()}
        # Parameters of which no score depends would have distributed training wait for their gradients.
        self.backbone = backbone.narrowed(
            {layer for each in heads for layer in each.layers_of(backbone.layers, self._named)}
        )
        for each in heads:
            self._connect(each)
        self.heads = nn.ModuleList(heads)
        if not isinstance(test_views, Views):
            raise CxlpError(f"test_views is {test_views!r}: give Views(...)")
        self.test_views = test_views
        self.image_size = max(each.views.image_size(backbone.image_size) for each in heads)
        self.test_size = test_views.image_size(self.image_size)
        self.out_features = sum(each.out_features for each in heads)
        self.classifier: nn.Linear | None = None
        self.classes: tuple[str, ...] = ()
        self.multi_label = multi_label
        if classes is not None:
            self.set_classes(numbered(classes), multi_label)
        name = backbone.spec()["name"]
        self._registered_by = None if name is None else registered_by(name)
        if self._registered_by == "__main__":
            warnings.warn(
                f"backbone {name!r} is registered in timm by the script that runs: only a script that registers it, "
                "too, can load its checkpoints. Register it in a module that Python can import",
                stacklevel=2,
            )
        self.spec()  # what a checkpoint cannot hold shows now, not after training

    def __repr__(self) -> str:
        heads = "".join(f"\n  {head!r}" for head in self.each_head())
        classes = f"{len(self.classes)} classes ({some(self.classes)})" if self.classes else "no classes yet"
        return f"Network(\n  {self.backbone!r}{heads}\n  {self.out_features:,} features -> {classes}\n)"

    def _connect(self, head: Head) -> None:
        backbone = self.backbone
        places = self._places(head)
        if len({backbone.same[i] for i in places}) < len(places):
            names = " and ".join(repr(backbone.layers[i]) for i in places)
            raise CxlpError(f"layers {names} are one and the same map: {head.name} takes different ones")
        shapes = [(backbone.channels[i], *backbone.map_sizes[i]) for i in places]
        head.connect(*shapes, views=head.views.count(backbone.image_size))

    def _places(self, head: Head) -> list[int]:
        """The head's layers, by their places among the backbone's."""
        return [self.backbone.layers.index(layer) for layer in head.layers_of(self.backbone.layers, self._named)]

    def each_head(self) -> Iterator[Head]:
        """Go through the heads (which a ModuleList knows as modules only)."""
        for head in self.heads:
            assert isinstance(head, Head)
            yield head

    @property
    def test_view_count(self) -> int:
        """Views of an image that is scored."""
        return self.test_views.count(self.image_size)

    @property
    def passes(self) -> int:
        """Forward passes of the backbone per image that is scored."""
        views = {head.views.relevant: head.view_count for head in self.each_head()}
        return sum(views.values()) * self.test_view_count

    def set_classes(self, classes: Sequence[str], multi_label: bool = False) -> None:
        """Give the network its classifier; done once, repeated calls must agree.

        Raises:
            CxlpError: If there is a classifier for other classes already, or two have one name.
        """
        names = checked(classes)
        if self.classifier is None:
            self.classes, self.multi_label = names, multi_label
            like = self.backbone.mean
            self.classifier = nn.Linear(self.out_features, len(names), device=like.device, dtype=like.dtype)
            self.reset_classifier()
        elif (self.classes, self.multi_label) != (names, multi_label):
            raise CxlpError(
                f"the network was fitted to {len(self.classes)} classes ({', '.join(self.classes[:3])}, ...), "
                f"the data has {len(names)} ({', '.join(names[:3])}, ...)"
            )

    def reset_classifier(self) -> None:
        """Put the classifier back to no opinion at all: features have unit length and 10^4 to 10^6 entries."""
        assert self.classifier is not None
        nn.init.zeros_(self.classifier.weight)
        nn.init.zeros_(self.classifier.bias)

    def inputs(self, images: Tensor) -> list[tuple[Tensor, ...]]:
        """Compute what each head takes.

        Args:
            images: ``(B, 3, S, S)``; S is :attr:`image_size`.

        Returns:
            For each head its maps ``(B * V, C, h, w)``. Heads with the same views share their passes.
        """
        seen: dict[Hashable, tuple[Tensor, ...]] = {}
        found = []
        for head in self.each_head():
            views = head.views
            if views.relevant not in seen:
                seen[views.relevant] = self._see(images, views, head.view_count)
            found.append(tuple(seen[views.relevant][i] for i in self._places(head)))
        return found

    def map_names(self, head: Head) -> list[tuple[Hashable, str]]:
        """Tell the maps that :meth:`inputs` gives a head from those of others, by views and layer."""
        return [(head.views.relevant, self.backbone.same[i]) for i in self._places(head)]

    def _see(self, images: Tensor, views: Views, count: int) -> tuple[Tensor, ...]:
        """Send an image's views through the backbone: a map ``(B * V, C, h, w)`` by layer."""
        chunks = [self.backbone(views.cut(part, self.backbone.image_size)) for part in _chunks(images, count)]
        return chunks[0] if len(chunks) == 1 else tuple(torch.cat(parts) for parts in zip(*chunks, strict=True))

    def encode(self, head: Head, maps: tuple[Tensor, ...]) -> Tensor:
        """Make a head's share ``(B, head.out_features)`` of the representation, float32 or wider.

        Raises:
            CxlpError: If the head gives another shape.
        """
        images = maps[0].shape[0] // head.view_count
        together = self._encoded_together(head, maps[0])
        if together is not None and images > together:
            parts = zip(*(torch.split(m, together * head.view_count) for m in maps), strict=True)
            vector = torch.cat([head(*part, views=head.view_count) for part in parts])
        else:
            vector = head(*maps, views=head.view_count)
        if vector.ndim != 2 or vector.shape[1] != head.out_features or not _as_many(vector.shape[0], images):
            raise CxlpError(
                f"{head.name} gives a tensor {tuple(vector.shape)} for {images} images of {head.view_count} views, but "
                f"says out_features = {head.out_features}: its forward must return (B, out_features)"
            )
        vector = vector.to(torch.promote_types(vector.dtype, torch.float32))
        return vector if len(self.heads) == 1 else vector * len(self.heads) ** -0.5

    def _encoded_together(self, head: Head, maps: Tensor) -> int | None:
        """How many images a head encodes at a time: all (``None``), but without gradients on the CPU a few.

        There, larger vectors come from the system as new pages at each operation, which takes longer than to compute
        them.
        """
        if torch.is_grad_enabled() or torch.compiler.is_compiling() or maps.device.type != "cpu":
            return None
        return max(1, _BYTES_AT_A_TIME // (4 * head.out_features))

    def features(self, images: Tensor) -> Tensor:
        """Compute the image representation: ``(B, 3, S, S) -> (B, D)``, float32 or wider."""
        vectors = [self.encode(head, maps) for head, maps in zip(self.each_head(), self.inputs(images), strict=True)]
        return vectors[0] if len(vectors) == 1 else torch.cat(vectors, dim=1)

    def test_features(self, images: Tensor) -> Tensor:
        """Compute what is scored of an image: the mean of its test views' representations.

        Scores are linear in the representation, so this is the mean of the views' scores.

        Args:
            images: ``(B, 3, T, T)``; T is :attr:`test_size`.

        Returns:
            ``(B, D)``; of unit length only where there is one view.
        """
        views = self.test_view_count
        if views == 1:
            return self.features(images)
        found = [self.features(self.test_views.cut(chunk, self.image_size)) for chunk in _chunks(images, views)]
        return torch.cat(found).view(-1, views, self.out_features).mean(dim=1)

    def classify(self, features: Tensor) -> Tensor:
        """Score features: ``(B, D) -> (B, classes)``."""
        if self.classifier is None:
            raise CxlpError("the network has no classes yet: call set_classes first")
        # Full precision: half-precision scores of close classes tie.
        with torch.autocast(features.device.type, enabled=False):
            logits: Tensor = self.classifier(features.to(self.classifier.weight.dtype))
            return logits

    def forward(self, images: Tensor) -> Tensor:
        """Score images by one view: ``(B, 3, S, S) -> (B, classes)``."""
        return self.classify(self.features(images))

    def score(self, images: Tensor) -> Tensor:
        """Score images by the test views: ``(B, 3, T, T) -> (B, classes)``."""
        return self.classify(self.test_features(images))

    def spec(self) -> dict[str, Any]:
        """Describe the network by plain values, for :func:`~cxlp.models.checkpoint.network_from_spec`.

        Raises:
            CxlpError: If an option of a head is no plain value, or not kept as an attribute.
        """
        return {
            "backbone": plain(self.backbone.spec()),
            "registered_by": self._registered_by,
            "heads": [head.spec() for head in self.each_head()],
            "test_views": asdict(self.test_views),
            "classes": list(self.classes),
            "multi_label": self.multi_label,
        }


def _as_many(found: int, expected: int) -> bool:
    # While it is exported, the number of images is a symbol, and to compare it would fix it.
    return isinstance(found, torch.SymInt) or isinstance(expected, torch.SymInt) or found == expected


def _chunks(images: Tensor, views: int) -> Sequence[Tensor]:
    """Split a batch by how many views pass at a time; not one of any size, as export traces it."""
    if views == 1 or isinstance(images.shape[0], torch.SymInt):
        return (images,)
    return torch.split(images, max(1, _VIEWS_AT_A_TIME // views))
