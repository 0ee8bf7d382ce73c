"""Which two layers of a network to pool: pairs ranked by cross-validation on a part of the training images."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import combinations, groupby

import torch
from torch import Tensor

from cxlp.backbones.backbone import Backbone
from cxlp.backbones.inventory import Layer
from cxlp.frozen.classifier import quality, split
from cxlp.frozen.svm import FoldScores
from cxlp.heads.cross_layer import CrossLayerPooling
from cxlp.metrics.intervals import Interval, wilson
from cxlp.utils.distributed import usable_cores
from cxlp.utils.errors import CxlpError
from cxlp.utils.labels import as_targets

#: Of each of the last map sizes so many layers are tried with each other.
LAYERS = 4
#: How many of the last map sizes are tried.
SIDES = 2
#: Size of a projected local feature, and of the count sketch of the pooled features.
PCA_DIM, SKETCH = 128, 8192
#: Cost C of the SVMs, and folds of the cross-validation.
COST, FOLDS = 10.0, 5


@dataclass(frozen=True)
class RankedPair:
    """What is known of a pair of layers.

    Attributes:
        lower: The layer of the local features.
        upper: The layer of the guide.
        accuracy: Cross-validated on the images that were tried.
        interval: Of 95 % confidence.
        values: Length of the pooled vector without the sketch.
        work: Multiply-adds of projection and pooling, per image.
    """

    lower: str
    upper: str
    accuracy: float
    interval: Interval
    values: int
    work: int


def candidate_pairs(layers: Sequence[Layer]) -> list[tuple[str, str]]:
    """Pair the last layers that have maps of one size, for each of the last such sizes.

    Args:
        layers: Of a network, from the image up, see :func:`~cxlp.backbones.inventory.inventory`.

    Returns:
        ``(lower, upper)``, the last ones first.

    Raises:
        CxlpError: If no two layers have maps of one size.
    """
    pairs: list[tuple[str, str]] = []
    sides = 0
    for _, group in groupby(reversed(layers), key=lambda layer: layer.side):
        last = [layer.name for layer in group][:LAYERS]
        if len(last) > 1 and sides < SIDES:
            sides += 1
            pairs += [(lower, upper) for upper, lower in combinations(last, 2)]
    if not pairs:
        raise CxlpError("no two layers of the network have maps of one size: there is nothing to rank")
    return pairs


@torch.no_grad()
def rank_pairs(
    backbone: Backbone, pairs: Sequence[tuple[str, str]], batches: Iterable[tuple[Tensor, Tensor]], classes: int
) -> list[RankedPair]:
    """Rank pairs of layers by the accuracy of cross-layer pooling, cross-validated.

    One pass over the images keeps the layers' maps in memory, in half precision. For each pair a PCA of the lower layer
    is fitted to them, what is pooled is sketched, and the SVMs are cross-validated on the Gram matrix. (The PCA sees
    the images of all folds, but no labels.)

    Args:
        backbone: Gives all layers of the pairs.
        pairs: ``(lower, upper)``.
        batches: Images and labels ``(b,)``, once.
        classes: How many there are.

    Returns:
        The best first; of equals the one with less work.

    Raises:
        CxlpError: If some class has fewer than two images.
    """
    kept: list[list[Tensor]] = []
    found: list[Tensor] = []
    device = backbone.mean.device
    with backbone.held():
        for images, labels in batches:
            kept.append([maps.half().cpu() for maps in backbone(images.to(device))])
            found.append(labels)
    labels = torch.cat(found)
    folds = min(FOLDS, int(torch.bincount(labels, minlength=classes).min()))
    if folds < 2:
        raise CxlpError("some class has fewer than two of the images that pairs of layers are tried on: take more")
    targets, fold = as_targets(labels, classes).numpy(), split(labels, folds)
    ranked = []
    for lower, upper in pairs:
        places = [backbone.layers.index(layer) for layer in (lower, upper)]
        maps = [tuple(batch[place] for place in places) for batch in kept]
        local, guide = (m.shape[1:] for m in maps[0])
        dim = min(PCA_DIM, local[0])
        values = guide[0] * dim
        head = CrossLayerPooling(pca_dim=dim, sketch=min(SKETCH, values)).connect(local, guide).to(device)
        head.fit_pca(([m.float().to(device) for m in both] for both in maps), images=len(labels))
        rows = torch.cat([head(*(m.float().to(device) for m in both)) for both in maps])
        gram = (rows @ rows.T).double().cpu().numpy()
        scores = FoldScores(gram, targets, fold, usable_cores()).held_out([COST])[COST]
        accuracy = quality(scores, labels)
        work = local[1] * local[2] * (local[0] * dim + values)
        interval = wilson(round(accuracy * len(labels)), len(labels))
        ranked.append(RankedPair(lower, upper, accuracy, interval, values, work))
    return sorted(ranked, key=lambda pair: (-pair.accuracy, pair.work))
