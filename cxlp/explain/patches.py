"""Places of a data set with the strongest activations of each pooling channel."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from cxlp.explain.attribution import Explanation

#: Side of a patch in cells of the guide's map: the place and its neighbours. The receptive field of a cell of a deep
#: layer is much larger, often the whole image, but its effective part is near the centre (Luo et al., NIPS 2016).
PATCH_CELLS = 3
#: Weight of the patch's mean activation, added to the activation to break ties, such as those of ReLU6 at its limit 6.
_TIE = 1e-6


@dataclass(frozen=True)
class Patch:
    """Place of an image with a strong activation of a channel.

    Attributes:
        image: Index of the image.
        activation: The channel's activation at the place.
        top, left, side: The square around the place, as fractions of the image's side. A square that would cross the
            border is moved inside the image.
    """

    image: int
    activation: float
    top: float
    left: float
    side: float

    def cut(self, image: Tensor) -> Tensor:
        """Cut the patch out of the image: ``(3, S, S) -> (3, s, s)``."""
        pixels = image.shape[-1]
        side = max(1, round(self.side * pixels))
        top, left = (min(round(at * pixels), pixels - side) for at in (self.top, self.left))
        return image[
            :, top : top + side, left : left + side
        ].clone()  # not a view, which would keep the whole image in memory


class TopPlaces:
    """Accumulator of each channel's strongest places, at most one per image, and of the channels' shares.

    Memory does not depend on the number of images.

    Args:
        kept: Number of places per channel.

    Attributes:
        images: Number of images so far.
    """

    def __init__(self, kept: int = 9) -> None:
        self.kept, self.images = kept, 0
        self._last: Explanation | None = None

    def update(self, number: int, explanation: Explanation) -> None:
        """Add an image.

        Args:
            number: Index of the image.
            explanation: Explanation of the image, from the same network as those of the other images.
        """
        found = [_strongest(part.activations) for part in explanation.parts]
        ranks, places, values = (torch.cat(own)[None] for own in zip(*found, strict=True))  # (1, K)
        shares = explanation.channels
        if self._last is None:
            self._shares, self._sizes = torch.zeros_like(shares), torch.zeros_like(shares)
            self._ranks, self._values, self._places, self._numbers = ranks[:0], values[:0], places[:0], places[:0]
        self._shares += shares
        self._sizes += shares.abs()
        merged = torch.cat([self._ranks, ranks])  # (kept + 1, K)
        self._ranks, order = merged.topk(min(self.kept, len(merged)), dim=0)
        self._values = torch.cat([self._values, values]).gather(0, order)
        self._places = torch.cat([self._places, places]).gather(0, order)
        self._numbers = torch.cat([self._numbers, torch.full_like(places, number)]).gather(0, order)
        self.images += 1
        self._last = explanation

    def strongest(self, count: int) -> list[int]:
        """Return the channels with the largest :meth:`mean_size`, in descending order."""
        return self._sizes.topk(min(count, len(self._sizes))).indices.tolist()

    def mean_share(self, channel: int) -> float:
        """Return the mean share of a channel in the explained scores."""
        return float(self._shares[channel]) / self.images

    def mean_size(self, channel: int) -> float:
        """Return a channel's mean absolute share, in which shares of opposite sign do not cancel."""
        return float(self._sizes[channel]) / self.images

    def patches(self, channel: int) -> list[Patch]:
        """Return a channel's patches in descending order of activation."""
        assert self._last is not None
        part = self._last.parts[self._last.locate(channel)[0]]
        cell = part.size / part.image_size / min(part.shares.shape[-2:])
        side = min(1.0, PATCH_CELLS * cell)
        found = []
        for row in range(len(self._values)):
            y, x = part.centre(int(self._places[row, channel]))
            top, left = (min(max(at - side / 2, 0.0), 1 - side) for at in (y, x))
            found.append(Patch(int(self._numbers[row, channel]), float(self._values[row, channel]), top, left, side))
        return found


def _strongest(activations: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return value for ranking, index and activation of each channel's strongest place."""
    around = F.avg_pool2d(activations, PATCH_CELLS, stride=1, padding=PATCH_CELLS // 2)
    ranks, places = (activations + _TIE * around).transpose(0, 1).flatten(1).max(dim=1)  # (K,)
    return ranks, places, activations.transpose(0, 1).flatten(1).gather(1, places[:, None])[:, 0]
