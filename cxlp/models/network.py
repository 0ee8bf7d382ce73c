"""The network of backbone, heads and linear classifier, which both modes fit."""

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
from cxlp.models.classes import check_class_names, class_names, first_names
from cxlp.utils.errors import CxlpError

#: Maximum number of views per forward pass of the backbone: large enough for a GPU, small enough to bound memory.
_VIEWS_AT_A_TIME = 128
#: Bytes of vectors that are encoded at a time, see :meth:`Network.encode`. The C library does not cache larger blocks.
_BYTES_AT_A_TIME = 16 << 20


class Network(nn.Module):
    """Network of backbone, heads and linear classifier, which computes one score per class from images.

    The frozen mode and the fine-tuning mode fit the same heads and classifier. Images are RGB, uint8 in 0..255 or
    floating point in 0..1.

    Args:
        backbone: The backbone, ``images -> maps``. Layers that no head uses are removed, with everything that only they
            need.
        head: One head, or several heads whose vectors are concatenated. If the same head is passed to two networks, the
            networks share its weights, as for any module.
        classes: Names of the classes, or their number (names ``"0"``, ``"1"``, ...). ``None``: the network has no
            classifier until :meth:`set_classes` is called.
        multi_label: Whether an image can have several classes.
        test_views: Views of an image for validation, test and prediction, whose scores are averaged. Training uses
            whole images.

    Attributes:
        backbone: The backbone, with only the layers that heads use.
        heads: The heads. The image representation is the concatenation of their vectors, divided by the square root of
            the number of heads, so that it has unit length if the vectors have unit length.
        image_size: Size in pixels of the square training images, from which the heads' views are cut.
        test_size: Size in pixels of the square images for :meth:`score`, from which the test views are cut.
        out_features: Length D of the representation.
        classifier: Linear layer ``(B, D) -> (B, classes)`` that returns logits. If it is fitted as SVMs, the logits are
            the margins times one fitted scale, so that their softmax (sigmoid for multi-label data) gives reasonable
            probabilities.

    Raises:
        CxlpError: If a head does not fit the backbone's layers, or has an option that cannot be saved in a checkpoint.

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
            raise CxlpError(f"head is {head!r}: pass a head, such as CrossLayerPooling(), or a list of heads")
        if not isinstance(backbone, Backbone):
            raise CxlpError(f"backbone is a {type(backbone).__name__}: pass a Backbone(..., layers=[...])")
        if len({id(each) for each in heads}) < len(heads):
            raise CxlpError("head contains the same object twice: build two heads, or use copy.deepcopy")
        self._named = {layer for each in heads for layer in each.layers or ()}
        # Distributed training would wait for the gradients of parameters that no score depends on.
        self.backbone = backbone.narrowed(
            {layer for each in heads for layer in each.layers_of(backbone.layers, self._named)}
        )
        for each in heads:
            self._connect(each)
        self.heads = nn.ModuleList(heads)
        if not isinstance(test_views, Views):
            raise CxlpError(f"test_views is {test_views!r}: pass a Views(...) object")
        self.test_views = test_views
        self.image_size = max(each.views.image_size(backbone.image_size) for each in heads)
        self.test_size = test_views.image_size(self.image_size)
        self.out_features = sum(each.out_features for each in heads)
        self.classifier: nn.Linear | None = None
        self.classes: tuple[str, ...] = ()
        self.multi_label = multi_label
        if classes is not None:
            self.set_classes(class_names(classes), multi_label)
        name = backbone.spec()["name"]
        self._registered_by = None if name is None else registered_by(name)
        if self._registered_by == "__main__":
            warnings.warn(
                f"backbone {name!r} is registered in timm by the running script, so only scripts that register it can "
                "load its checkpoints: register it in an importable module",
                stacklevel=2,
            )
        self.spec()  # raises now, not after training, for options that a checkpoint cannot contain

    def __repr__(self) -> str:
        heads = "".join(f"\n  {head!r}" for head in self.each_head())
        classes = f"{len(self.classes)} classes ({first_names(self.classes)})" if self.classes else "no classes yet"
        return f"Network(\n  {self.backbone!r}{heads}\n  {self.out_features:,} features -> {classes}\n)"

    def _connect(self, head: Head) -> None:
        backbone = self.backbone
        places = self._places(head)
        if len({backbone.same[i] for i in places}) < len(places):
            names = " and ".join(repr(backbone.layers[i]) for i in places)
            raise CxlpError(f"layers {names} are the same map: choose different layers for {head.name}")
        shapes = [(backbone.channels[i], *backbone.map_sizes[i]) for i in places]
        head.connect(*shapes, views=head.views.count(backbone.image_size))

    def _places(self, head: Head) -> list[int]:
        """Return the indices of the head's layers among the backbone's layers."""
        return [self.backbone.layers.index(layer) for layer in head.layers_of(self.backbone.layers, self._named)]

    def each_head(self) -> Iterator[Head]:
        """Iterate over the heads, typed as heads (a ModuleList types them as modules)."""
        for head in self.heads:
            assert isinstance(head, Head)
            yield head

    @property
    def test_view_count(self) -> int:
        """Number of test views per image."""
        return self.test_views.count(self.image_size)

    @property
    def passes(self) -> int:
        """Number of forward passes of the backbone per test image."""
        views = {head.views.relevant: head.view_count for head in self.each_head()}
        return sum(views.values()) * self.test_view_count

    def set_classes(self, classes: Sequence[str], multi_label: bool = False) -> None:
        """Create the classifier. A second call with the same arguments does nothing.

        Raises:
            CxlpError: If the network already has other classes, or class names are not unique.
        """
        names = check_class_names(classes)
        if self.classifier is None:
            self.classes, self.multi_label = names, multi_label
            like = self.backbone.mean
            self.classifier = nn.Linear(self.out_features, len(names), device=like.device, dtype=like.dtype)
            self.reset_classifier()
        elif (self.classes, self.multi_label) != (names, multi_label):
            raise CxlpError(
                f"the network was fitted to {len(self.classes)} classes ({', '.join(self.classes[:3])}, ...), but "
                f"the data has {len(names)} ({', '.join(names[:3])}, ...): use data with the same classes"
            )

    def reset_classifier(self) -> None:
        """Set the classifier's weights and biases to zero, so that all classes have the same score."""
        assert self.classifier is not None  # zeros, since features have unit length and 10^4 to 10^6 entries
        nn.init.zeros_(self.classifier.weight)
        nn.init.zeros_(self.classifier.bias)

    def inputs(self, images: Tensor) -> list[tuple[Tensor, ...]]:
        """Compute the input maps of each head.

        Args:
            images: ``(B, 3, S, S)``, where S is :attr:`image_size`.

        Returns:
            The maps ``(B * V, C, h, w)`` of each head. Heads with the same views share the forward passes.
        """
        seen: dict[Hashable, tuple[Tensor, ...]] = {}
        found = []
        for head in self.each_head():
            views = head.views
            if views.relevant not in seen:
                seen[views.relevant] = self._maps_of_views(images, views, head.view_count)
            found.append(tuple(seen[views.relevant][i] for i in self._places(head)))
        return found

    def map_names(self, head: Head) -> list[tuple[Hashable, str]]:
        """Return a key of views and layer for each input map of a head. Equal keys mean the same map."""
        return [(head.views.relevant, self.backbone.same[i]) for i in self._places(head)]

    def _maps_of_views(self, images: Tensor, views: Views, count: int) -> tuple[Tensor, ...]:
        """Compute the backbone's maps of all views of the images: ``(B * V, C, h, w)`` for each layer."""
        chunks = [self.backbone(views.cut(part, self.backbone.image_size)) for part in _chunks(images, count)]
        return chunks[0] if len(chunks) == 1 else tuple(torch.cat(parts) for parts in zip(*chunks, strict=True))

    def encode(self, head: Head, maps: tuple[Tensor, ...]) -> Tensor:
        """Compute a head's part ``(B, head.out_features)`` of the representation, in float32 or float64.

        Raises:
            CxlpError: If the head returns another shape.
        """
        images = maps[0].shape[0] // head.view_count
        together = self._images_per_encoding(head, maps[0])
        if together is not None and images > together:
            parts = zip(*(torch.split(m, together * head.view_count) for m in maps), strict=True)
            vector = torch.cat([head(*part, views=head.view_count) for part in parts])
        else:
            vector = head(*maps, views=head.view_count)
        if vector.ndim != 2 or vector.shape[1] != head.out_features or not _counts_agree(vector.shape[0], images):
            raise CxlpError(
                f"{head.name} returns a tensor {tuple(vector.shape)} for {images} images of {head.view_count} views, "
                f"but has out_features = {head.out_features}: its forward must return (B, out_features)"
            )
        vector = vector.to(torch.promote_types(vector.dtype, torch.float32))
        return vector if len(self.heads) == 1 else vector * len(self.heads) ** -0.5

    def _images_per_encoding(self, head: Head, maps: Tensor) -> int | None:
        """Return the number of images that a head encodes at a time, or ``None`` for all images.

        The number is limited on the CPU without gradients. There, larger vectors are newly allocated pages at each
        operation, which takes longer than the computation.
        """
        if torch.is_grad_enabled() or torch.compiler.is_compiling() or maps.device.type != "cpu":
            return None
        return max(1, _BYTES_AT_A_TIME // (4 * head.out_features))

    def features(self, images: Tensor) -> Tensor:
        """Compute the image representation: ``(B, 3, S, S) -> (B, D)``, in float32 or float64."""
        vectors = [self.encode(head, maps) for head, maps in zip(self.each_head(), self.inputs(images), strict=True)]
        return vectors[0] if len(vectors) == 1 else torch.cat(vectors, dim=1)

    def test_features(self, images: Tensor) -> Tensor:
        """Compute the mean representation of an image's test views.

        Scores are linear in the representation, so its score is the mean of the views' scores.

        Args:
            images: ``(B, 3, T, T)``, where T is :attr:`test_size`.

        Returns:
            ``(B, D)``. The vectors have unit length only with a single test view.
        """
        views = self.test_view_count
        if views == 1:
            return self.features(images)
        found = [self.features(self.test_views.cut(chunk, self.image_size)) for chunk in _chunks(images, views)]
        return torch.cat(found).view(-1, views, self.out_features).mean(dim=1)

    def classify(self, features: Tensor) -> Tensor:
        """Compute the scores of representations: ``(B, D) -> (B, classes)``."""
        if self.classifier is None:
            raise CxlpError("the network has no classes yet: call set_classes first")
        # In float32, because similar classes would have equal scores in half precision.
        with torch.autocast(features.device.type, enabled=False):
            logits: Tensor = self.classifier(features.to(self.classifier.weight.dtype))
            return logits

    def forward(self, images: Tensor) -> Tensor:
        """Compute the scores of images as in training, without test views: ``(B, 3, S, S) -> (B, classes)``."""
        return self.classify(self.features(images))

    def score(self, images: Tensor) -> Tensor:
        """Compute the mean scores of the images' test views: ``(B, 3, T, T) -> (B, classes)``."""
        return self.classify(self.test_features(images))

    def spec(self) -> dict[str, Any]:
        """Return the specification for :func:`~cxlp.models.checkpoint.network_from_spec` as plain values.

        Raises:
            CxlpError: If an option of a head is not a plain value, or not stored as an attribute.
        """
        return {
            "backbone": plain(self.backbone.spec()),
            "registered_by": self._registered_by,
            "heads": [head.spec() for head in self.each_head()],
            "test_views": asdict(self.test_views),
            "classes": list(self.classes),
            "multi_label": self.multi_label,
        }


def _counts_agree(found: int, expected: int) -> bool:
    # During export, the number of images is a symbol, and a comparison would turn it into a constant.
    return isinstance(found, torch.SymInt) or isinstance(expected, torch.SymInt) or found == expected


def _chunks(images: Tensor, views: int) -> Sequence[Tensor]:
    """Split a batch into parts with a bounded number of views, unless its size is symbolic."""
    if views == 1 or isinstance(images.shape[0], torch.SymInt):
        return (images,)
    return torch.split(images, max(1, _VIEWS_AT_A_TIME // views))
