"""Ranking of pairs of a network's layers, by cross-validation on a part of the training images."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations, groupby

import numpy as np
import torch

from cxlp.backbones.backbone import Backbone
from cxlp.backbones.inventory import Layer, Maps
from cxlp.frozen.checks import check_lengths
from cxlp.frozen.classifier import Array, quality, split
from cxlp.frozen.config import FrozenConfig, count_folds
from cxlp.frozen.fit import FrozenFit
from cxlp.frozen.solvers import Plan, plan
from cxlp.frozen.svm import FoldScores
from cxlp.heads.base import Head
from cxlp.heads.cross_layer import CrossLayerPooling
from cxlp.metrics.intervals import Interval, precision_intervals, wilson
from cxlp.models.network import Network
from cxlp.utils.distributed import local_world_size, usable_cores
from cxlp.utils.errors import CxlpError
from cxlp.utils.labels import as_targets

#: Number of map sizes that are tried, from the last, and number of the last layers of each size.
SIDES, LAYERS = 2, 4
#: If fewer layers than this have maps of the last size, layers within blocks are tried, too.
FEW = 3
#: Length of a projected local feature, and of the count sketch of the pooled features.
PCA_DIM, SKETCH = 128, 8192
#: Options of the fit of each pair.
CONFIG = FrozenConfig(c=10.0, folds=5)

Pair = tuple[str, str]


@dataclass(frozen=True)
class RankedPair:
    """A pair of layers with its cross-validated quality and its cost.

    Attributes:
        lower: The layer of the local features.
        upper: The layer of the guide.
        quality: Cross-validated accuracy or, with several labels per image, mean average precision.
        interval: The 95 % interval of ``quality``: Wilson's for accuracy, a bootstrap interval for mean average
            precision; ``None`` if the bootstrap gives none.
        pca_dim: Dimension of a projected local feature in the ranking.
        values: Length of the pooled vector without the sketch.
        work: Multiply-adds of projection and pooling, per image.
        activation: ``after`` or ``before``: where the layers were tapped if an activation follows them.
    """

    lower: str
    upper: str
    quality: float
    interval: Interval | None
    pca_dim: int
    values: int
    work: int
    activation: str

    @property
    def layers(self) -> Pair:
        """The value of ``model.backbone.layers``."""
        return self.lower, self.upper

    def order(self) -> tuple[float, int, int]:
        """Sort key: higher quality first; ties are broken by fewer multiply-adds, then by a shorter vector."""
        return -self.quality, self.work, self.values


@dataclass(frozen=True)
class Candidates:
    """Candidate pairs of a network's layers.

    Attributes:
        pairs: ``(lower, upper)``, the last layers first.
        image_size: Side of the images, pixels.
        activated: Layers that are followed by an activation.
    """

    pairs: list[Pair]
    image_size: int
    activated: frozenset[str]


def find_candidates(name: str, image_size: int | None = None, depth: int | None = None) -> Candidates:
    """List candidate pairs of a network's layers.

    The candidates are all pairs among the last four layers whose maps have one size, for each of the last two such
    sizes. Only layers whose names have at most ``depth`` parts count, which are stages or blocks in most networks. If
    none of the four is followed by an activation, as in transformers, the last layer at any depth that is followed by
    one is also paired, as the guide, with those of the four that come before it.

    Args:
        name: Name of the network, see :class:`~cxlp.backbones.backbone.BackboneConfig`.
        image_size: Side of the images, pixels; ``None``: the network's own.
        depth: Maximum number of parts of a name; ``None``: 2, or more if fewer than three of these layers have maps of
            the last size.

    Raises:
        CxlpError: If no two layers have maps of one size, or there is no such network.
    """
    maps = Maps(name, image_size)
    layers = maps.layers()
    deepest = max((layer.name.count(".") + 1 for layer in layers), default=1)
    for parts in [depth] if depth is not None else range(2, max(2, deepest) + 1):
        shallow = maps.layers(parts)
        if any(len(last) >= FEW for last in _by_side(shallow)[:1]):
            break
    activated = {called for layer in layers if layer.activation for called in (layer.name, *layer.also)}
    return Candidates(candidate_pairs(shallow, layers), maps.image_size, frozenset(activated))


def candidate_pairs(layers: Sequence[Layer], within: Sequence[Layer] = ()) -> list[Pair]:
    """Pair layers, see :func:`find_candidates`.

    Args:
        layers: Layers of a network, from the image up, see :func:`~cxlp.backbones.inventory.inventory`.
        within: Layers at any depth.

    Raises:
        CxlpError: If no two layers have maps of one size.
    """
    pairs: list[Pair] = []
    order = {name: number for number, layer in enumerate(within) for name in (layer.name, *layer.also)}
    for group in _by_side(layers)[:SIDES]:
        last = group[:LAYERS]
        pairs += [(lower.name, upper.name) for upper, lower in combinations(last, 2)]
        if not any(layer.activation for layer in last):
            guides = [layer for layer in within if layer.side == last[0].side and layer.activation]
            lower = [layer for layer in last if guides and order[layer.name] < order[guides[-1].name]]
            pairs += [(layer.name, guides[-1].name) for layer in lower]
    if not pairs:
        raise CxlpError(
            "no two layers of the network have maps of one size, so there are no pairs to rank: name layers, "
            "model.backbone.layers, and set model.head.align, or choose a head that takes one layer"
        )
    return pairs


def _by_side(layers: Sequence[Layer]) -> list[list[Layer]]:
    """Group layers by the size of their maps, the last layers first, and omit groups of a single layer."""
    groups = [list(group) for _, group in groupby(reversed(layers), key=lambda layer: layer.side)]
    return [group for group in groups if len(group) > 1]


def usable_pairs(backbone: Backbone, pairs: Sequence[Pair], heads: Sequence[Head]) -> tuple[list[Pair], str]:
    """Select the pairs that all heads accept.

    Args:
        backbone: A backbone with all layers of the pairs.
        pairs: ``(lower, upper)``.
        heads: The heads; each takes the last layers of a pair.

    Returns:
        The accepted pairs, and the error for the last pair that was not accepted, empty if all were.
    """
    kept, why = [], ""
    for pair in pairs:
        places = {layer: backbone.layers.index(layer) for layer in pair}
        try:
            for head in heads:
                shapes = [
                    (backbone.channels[places[layer]], *backbone.map_sizes[places[layer]])
                    for layer in head.layers_of(pair)
                ]
                # A copy, because a head is connected only once.
                Head.from_spec(head.spec()).connect(*shapes, views=head.views.count(backbone.image_size))
        except CxlpError as error:
            why = str(error)
        else:
            kept.append(pair)
    return kept, why


def ranking_network(
    backbone: Backbone, pairs: Sequence[Pair], images: int, classes: Sequence[str], multi_label: bool
) -> Network:
    """Build the network that ranks pairs: for each of them a cross-layer pooling with PCA and count sketch.

    Args:
        backbone: A backbone with all layers of the pairs.
        pairs: ``(lower, upper)``.
        images: Number of images that it will be fitted to; bounds the dimension of the PCAs.
        classes: Names of the classes.
        multi_label: Whether an image may show several of them.
    """
    heads = []
    for lower, upper in pairs:
        (channels, places), (guides, _) = (_shape(backbone, layer) for layer in (lower, upper))
        dim = min(PCA_DIM, channels, max(1, images * places - 1))
        sketch = min(SKETCH, guides * dim)
        heads.append(CrossLayerPooling(pca_dim=dim, sketch=sketch, layers=(lower, upper)))
    return Network(backbone, heads, list(classes), multi_label)


class PairFit(FrozenFit):
    """Fits the PCAs of :func:`ranking_network` in one pass over the images, and cross-validates SVMs for each head.

    The PCAs see the images of all folds, but no labels. As in any frozen fit, at most 2 GiB of maps, or a quarter of
    the free memory, are kept in memory, and the others on disk.

    Attributes:
        ranked: After :meth:`finish`, the pairs, best first, see :meth:`RankedPair.order`.
    """

    ranked: list[RankedPair]

    def _plan(self) -> Plan:
        try:
            return plan("kernel", self.images, SKETCH, len(self.network.classes), CONFIG.folds, self.device)
        except CxlpError as error:
            raise CxlpError(
                f"the SVMs of {self.images:,} images need more memory than is free: rank the pairs of layers on fewer"
            ) from error

    def _fit_classifier(self) -> dict[str, float]:
        folds = count_folds(self.labels, self.network.classes, CONFIG, "a ranking of pairs of layers")
        targets, fold = as_targets(self.labels, len(self.network.classes)).numpy(), split(self.labels, folds)
        threads = max(1, usable_cores() // local_world_size())
        found = []
        for head, column in zip(self.network.each_head(), self.columns, strict=True):
            rows = self.features.read_columns(column, column + head.out_features).to(self.device, torch.float32)
            gram = (rows @ rows.T).double().cpu().numpy()
            check_lengths(gram.diagonal())
            gram /= gram.diagonal().mean() or 1.0  # each of many heads has a shorter vector
            scores = FoldScores(np.ascontiguousarray(gram), targets, fold, threads).held_out([float(CONFIG.c)])
            found.append(self._ranked(head, next(iter(scores.values()))))
        self.ranked = sorted(found, key=RankedPair.order)
        return {}

    def _ranked(self, head: Head, scores: Array) -> RankedPair:
        assert isinstance(head, CrossLayerPooling) and head.layers is not None and head.pca_dim is not None
        lower, upper = head.layers
        (channels, places), (guides, _) = (_shape(self.network.backbone, layer) for layer in (lower, upper))
        values = guides * head.pca_dim
        work = places * (channels * head.pca_dim + values)
        found = quality(scores, self.labels)
        interval: Interval | None
        if self.labels.ndim == 1:
            interval = wilson(round(found * len(scores)), len(scores))
        else:
            interval = precision_intervals(scores, self.labels, {"mAP": "uninterpolated"}).get("mAP")
        activation = self.network.backbone.spec()["activation"]
        return RankedPair(lower, upper, found, interval, head.pca_dim, values, work, activation)


def _shape(backbone: Backbone, layer: str) -> tuple[int, int]:
    """Channels and number of places of a layer."""
    index = backbone.layers.index(layer)
    height, width = backbone.map_sizes[index]
    return backbone.channels[index], height * width


def layers_of(pairs: Sequence[Pair]) -> list[str]:
    """List the layers of some pairs, each once."""
    return list(dict.fromkeys(layer for pair in pairs for layer in pair))
