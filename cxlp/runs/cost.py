"""What the representation of an image costs: forward passes, time, memory."""

import statistics
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from cxlp.data.dataset import Draw, ImageDataset
from cxlp.frozen.store import FeatureType, row_bytes
from cxlp.models.network import Network
from cxlp.utils.profiling import PhaseTimes

#: About how many views pass through the backbone per measurement.
_VIEWS = 32
_ROUNDS = 5


@torch.no_grad()
def measure_cost(network: Network, data: ImageDataset, kind: FeatureType = "float32") -> dict[str, float]:
    """Time a fitted network on images in memory, part by part.

    Args:
        network: On the device to measure.
        data: The images are its first ones, as many as make up a batch of about 32 views.
        kind: How features are stored.

    Returns:
        ``passes`` (forward passes per image), ``dimension`` of the vector and ``bytes`` of a stored one, and
        seconds per image, medians of five rounds: ``network`` (views and forward passes), ``encoding`` (from
        maps to the vector), ``classification``, and ``bare pass``: the backbone alone, up to the highest layer
        that the network takes, once over an image, in a batch of 32.
    """
    network.eval()
    device = network.backbone.mean.device
    count = min(len(data), max(1, _VIEWS // network.passes))
    images = torch.stack([data.picture(Draw(i)) for i in range(count)]).to(device)
    side = network.backbone.image_size
    bare = torch.rand(_VIEWS, 3, side, side, device=device)
    views = network.test_views

    def see() -> list[tuple[Tensor, ...]]:
        return network.inputs(views.cut(images, network.image_size))

    inputs, features = see(), network.test_features(images)

    def encode() -> list[Tensor]:
        return [network.encode(head, maps) for head, maps in zip(network.each_head(), inputs, strict=True)]

    seconds = _interleaved(
        {
            "network": see,
            "encoding": encode,
            "classification": lambda: network.classify(features),
            "bare pass": lambda: network.backbone(bare),
        }
    )
    per_image = {name: value / (_VIEWS if name == "bare pass" else count) for name, value in seconds.items()}
    size = network.out_features
    return {"passes": network.passes, "dimension": size, "bytes": row_bytes(size, kind), **per_image}


def _interleaved(works: dict[str, Callable[[], Any]]) -> dict[str, float]:
    """Time each work in turn, round by round, so that a slow moment of the machine hits all of them."""
    found: dict[str, list[float]] = {name: [] for name in works}
    for number in range(_ROUNDS + 1):
        for name, work in works.items():
            start = PhaseTimes.now()
            work()
            if number:  # the first round warms up
                found[name].append(PhaseTimes.now() - start)
    return {name: statistics.median(values) for name, values in found.items()}
