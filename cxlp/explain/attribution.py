"""Exact decomposition of a network's class score over pooling channels and places.

The ``explain`` method of each head decomposes the head's part of a score, with the algebra in
:mod:`cxlp.heads.evidence`. This module combines these parts: the classifier's bias and the shares of all heads sum to
the score.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from cxlp.heads.base import Head
from cxlp.heads.views import Window
from cxlp.models.network import Network
from cxlp.utils.errors import CxlpError
from cxlp.utils.threads import one_thread

#: Bound on the rounding error of float32 in a head's part of a score, relative to the sum of its absolute terms.
_ROUNDING = 1e-3


@dataclass(frozen=True, repr=False)
class PartEvidence:
    """The contribution of one head of the network to an image's score.

    A place is a cell of the head's guide map, see the head.

    Attributes:
        shares: ``e_ik``: ``(V, K, h, w)``, float64, for V views, K pooling channels and h x w places. Zero at places
            that are not pooled.
        activations: ``a_ik``, of the same shape.
        windows: Positions of the views in the image.
        size: Size of a view in pixels.
        image_size: Size in pixels of the image that the views are cut from.
    """

    shares: Tensor
    activations: Tensor
    windows: tuple[Window, ...]
    size: int
    image_size: int

    def __repr__(self) -> str:
        views, channels, height, width = self.shares.shape
        return f"PartEvidence({channels:,} channels at {height} x {width} places of {views} views)"

    @property
    def channels(self) -> Tensor:
        """Shares of the pooling channels, summed over places: ``(K,)``."""
        return self.shares.sum(dim=(0, 2, 3))

    @property
    def places(self) -> Tensor:
        """Shares of the places, summed over pooling channels: ``(V, h, w)``."""
        return self.shares.sum(dim=1)

    @property
    def cell(self) -> float:
        """Area of a place, as a fraction of the image."""
        return (self.size / self.image_size) ** 2 / (self.shares.shape[2] * self.shares.shape[3])

    def lay_out(self, values: Tensor, pixels: int) -> Tensor:
        """Interpolate values of the places bilinearly over the image. Overlapping views are summed.

        Args:
            values: ``(V, h, w)``.
            pixels: Size S of the result.

        Returns:
            ``(S, S)``, whose mean is the sum of the values times :attr:`cell`.
        """
        canvas = values.new_zeros(pixels, pixels)
        side = self.size / self.image_size
        for view, window in zip(values, self.windows, strict=True):
            rows = _interpolation_weights(view.shape[0], window.top / self.image_size, side, pixels).to(values)
            columns = _interpolation_weights(view.shape[1], window.left / self.image_size, side, pixels).to(values)
            canvas += rows @ (view.flip(-1) if window.mirrored else view) @ columns.T
        return canvas

    def centre(self, place: int) -> tuple[float, float]:
        """Return the position in the image, y and x in [0, 1], of a place given by its index in ``(V, h, w)``."""
        height, width = self.shares.shape[-2:]
        view, row, column = place // (height * width), place // width % height, place % width
        window = self.windows[view]
        x = (column + 0.5) / width
        down, right = (row + 0.5) / height * self.size, (1 - x if window.mirrored else x) * self.size
        return (window.top + down) / self.image_size, (window.left + right) / self.image_size


@dataclass(frozen=True, repr=False)
class Explanation:
    """Decomposition of a class score of an image, or of the difference between the scores of two classes.

    Attributes:
        target: Index of the class.
        against: Index of the class whose score is subtracted, or ``None``.
        probabilities: Probabilities of all classes: ``(classes,)``.
        bias: The classifier's bias, the only term of the score that is not evidence.
        parts: The evidence of each head of the network.
    """

    target: int
    against: int | None
    probabilities: Tensor
    bias: float
    parts: tuple[PartEvidence, ...]

    @property
    def channels(self) -> Tensor:
        """Shares of the pooling channels, concatenated over all parts."""
        return torch.cat([part.channels for part in self.parts])

    @property
    def evidence(self) -> float:
        """Sum of all shares."""
        return float(sum(part.shares.sum() for part in self.parts))

    @property
    def score(self) -> float:
        """The score, bias plus evidence."""
        return self.bias + self.evidence

    @property
    def cell(self) -> float:
        """Area of a place of the first part as a fraction of the image, the unit of area of :meth:`map`."""
        return self.parts[0].cell

    def strongest(self, count: int) -> list[int]:
        """Return the indices in :attr:`channels` of the shares with the largest absolute values."""
        shares = self.channels.abs()
        found: list[int] = shares.topk(min(count, len(shares))).indices.tolist()
        return found

    def __repr__(self) -> str:
        against = "" if self.against is None else f", against={self.against}"
        parts = ", ".join(f"{tuple(part.shares.shape)}" for part in self.parts)
        evidence = f"score={self.score:.4g}, evidence={self.evidence:.4g}, bias={self.bias:.4g}"
        return f"Explanation(target={self.target}{against}, {evidence}, shares of {parts})"

    def map(self, pixels: int) -> Tensor:
        """Interpolate the evidence of all parts over the image.

        Args:
            pixels: Size S of the result.

        Returns:
            ``(S, S)``: score per area of a place of the first part. The mean is the evidence times :attr:`cell`.
        """
        densities = [part.lay_out(part.places, pixels) / part.cell for part in self.parts]
        return torch.stack(densities).sum(dim=0) * self.cell

    def activation(self, channel: int, pixels: int) -> Tensor:
        """Interpolate the activations of a channel, an index in :attr:`channels`, over the image: ``(S, S)``."""
        part, k = self.locate(channel)
        return self.parts[part].lay_out(self.parts[part].activations[:, k], pixels)

    def locate(self, channel: int) -> tuple[int, int]:
        """Convert a channel's index in :attr:`channels` to the index of its part and its index in that part."""
        for i, part in enumerate(self.parts):
            if channel < part.shares.shape[1]:
                return i, channel
            channel -= part.shares.shape[1]
        raise IndexError(channel)


def check_explainable(network: Network) -> None:
    """Check that a network's scores are sums over places.

    Raises:
        CxlpError: If a head's scores are not, with the reason, or if the network has no classifier.
    """
    if network.classifier is None:
        raise CxlpError("the network has no classes yet, so there is no score to explain: fit it first")
    for i, head in enumerate(network.each_head()):
        if head.explanation_obstacle is not None:
            which = head.name if len(network.heads) == 1 else f"head {i + 1}, {head.name},"
            raise CxlpError(f"{which} cannot be explained, because {head.explanation_obstacle}")


def is_explainable(network: Network) -> bool:
    """Return whether :func:`check_explainable` accepts a network."""
    try:
        check_explainable(network)
    except CxlpError:
        return False
    return True


@torch.inference_mode(False)  # for derivatives, also within the inference mode of a Trainer
@torch.no_grad()
def explain(
    network: Network,
    images: Tensor,
    target: int | Sequence[Sequence[int]] | None = None,
    against: int | None = None,
) -> Iterator[Explanation]:
    """Decompose the scores of images over pooling channels and places, see the module.

    The scores are those of :meth:`~cxlp.models.network.Network.forward`, which sees the image as in training, without
    test views. Shares are computed in float64 from the backbone's maps, so they sum to the score up to the rounding of
    the score.

    Args:
        network: A fitted network in evaluation mode.
        images: ``(B, 3, S, S)``, RGB, uint8 or floating point in 0..1.
        target: The class to explain, or a sequence of classes for each image. ``None``: the class with the highest
            score of each image, other than ``against``.
        against: A class whose score is subtracted, to explain the difference of two scores.

    Yields:
        An explanation per image and class, on the CPU. Explanations are computed lazily, in one thread.

    Raises:
        CxlpError: If :func:`check_explainable` fails, or a head's shares do not sum to its part of the score.
    """
    check_explainable(network)
    classifier = network.classifier
    assert classifier is not None
    heads, found = list(network.each_head()), network.inputs(images)
    with _full_float32():
        vectors = [network.encode(head, maps) for head, maps in zip(heads, found, strict=True)]
    size = network.backbone.image_size
    for i, scores in enumerate(network.classify(torch.cat(vectors, dim=1)).float()):
        own_maps = [
            [_maps_of_image(m, i, head.view_count) for m in maps] for head, maps in zip(heads, found, strict=True)
        ]
        probabilities = (scores.sigmoid() if network.multi_label else scores.softmax(dim=0)).cpu()
        chosen = _best(scores, against) if target is None else target
        for k in (chosen,) if isinstance(chosen, int) else chosen[i]:
            weights, bias = classifier.weight[k].double(), classifier.bias[k].double()
            if against is not None:
                weights, bias = weights - classifier.weight[against].double(), bias - classifier.bias[against].double()
            split = torch.split(weights, [head.out_features for head in heads])
            evidence = []
            with one_thread():  # the operations for one image are too small for several threads
                for head, maps, own, vector in zip(heads, own_maps, split, vectors, strict=True):
                    shares, activations = head.explain(maps, own * len(heads) ** -0.5)
                    _check_sum(head, float(shares.sum()), own * vector[i].double())
                    part = shares.cpu(), activations.cpu(), tuple(head.views.windows(size)), size
                    evidence.append(PartEvidence(*part, head.views.image_size(size)))
            yield Explanation(k, against, probabilities, float(bias), tuple(evidence))


@contextmanager
def _full_float32() -> Iterator[None]:
    """Context without TF32, whose rounding is too coarse after square roots and signs."""
    convolutions, products = torch.backends.cudnn.allow_tf32, torch.get_float32_matmul_precision()
    torch.backends.cudnn.allow_tf32 = False
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32 = convolutions
        torch.set_float32_matmul_precision(products)


def _check_sum(head: Head, evidence: float, terms: Tensor) -> None:
    """Raise :class:`CxlpError` if shares do not sum to the score, as with an inherited ``explain``."""
    score = float(terms.sum())
    allowed = _ROUNDING * float(terms.abs().sum()) + 1e-6
    if head.signs_only:  # rounding may flip a sign or two
        allowed += 4 * float(terms.abs().max())
    if abs(evidence - score) > allowed:
        raise CxlpError(
            f"{head.name} cannot be explained: the shares of its explain() sum to {evidence:.4g}, but its part of the "
            f"score is {score:.4g}. A class that overrides forward() must also override explain()"
        )


def _maps_of_image(maps: Tensor, image: int, views: int) -> Tensor:
    """Return a copy of an image's maps, since autograd does not accept inference tensors."""
    return maps[image * views : (image + 1) * views].to(torch.float64, copy=True)


def _best(scores: Tensor, besides: int | None) -> int:
    if besides is not None:
        scores = scores.clone()
        scores[besides] = -torch.inf
    return int(scores.argmax())


def _interpolation_weights(cells: int, start: float, length: float, pixels: int) -> Tensor:
    """Return weights of linear interpolation along one side of an image: ``(pixels, cells)``.

    Between the centre of an outermost cell and the edge, the weights are constant.

    Args:
        cells: Number of cells, which divide a segment of the side.
        start: Start of the segment, in [0, 1].
        length: Length of the segment as a fraction of the side. Outside the segment, the weights are zero.
        pixels: Number of pixels of the whole side.
    """
    at = ((torch.arange(pixels, dtype=torch.float64) + 0.5) / pixels - start) / length * cells - 0.5
    inside = (at >= -0.5) & (at < cells - 0.5)
    near = at.clamp(0, cells - 1)[:, None] - torch.arange(cells, dtype=torch.float64)
    return (1 - near.abs()).clamp_min(0) * inside[:, None]
