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

#: The most views that pass through the backbone together.
_VIEWS = 32
#: The fewest and the most rounds.
_ROUNDS = (2, 5)


@torch.no_grad()
def measure_cost(
    network: Network, data: ImageDataset, kind: FeatureType = "float32", budget: float = 4.0
) -> dict[str, float]:
    """Time a fitted network on images in memory, part by part, in a few seconds.

    First passes of one view tell how many views at a time, 32 at most, leave time for the rounds: one to warm up, then
    two at least, and five at most. A single image with many views, in a large network, may take longer than the budget:
    then there are two rounds, without one to warm up.

    Args:
        network: On the device to measure.
        data: The images are its first ones.
        kind: How features are stored.
        budget: Seconds for all of it, about.

    Returns:
        ``passes`` (forward passes per image), ``dimension`` of the vector and ``bytes`` of a stored one, and
        seconds per image, medians of the rounds: ``network`` (views and forward passes), ``encoding`` (from
        maps to the vector), ``classification``, and ``bare pass``: the backbone alone, up to the highest layer
        that the network takes, once over an image. How that was measured: ``rounds``; ``views``, how many passed
        through the backbone at a time.
    """
    network.eval()
    with network.backbone.held():  # as a run has it
        return _measure(network, data, kind, budget)


def _measure(network: Network, data: ImageDataset, kind: FeatureType, budget: float) -> dict[str, float]:
    start = PhaseTimes.now()
    device = network.backbone.mean.device
    side = network.backbone.image_size
    single = torch.rand(1, 3, side, side, device=device)
    probed = _rounds({"one view": lambda: network.backbone(single)}, budget=0.0)["one view"]
    fit = budget / ((1 + _ROUNDS[0]) * 2 * max(min(probed), 1e-9))  # in network and bare pass
    size = max(1, int(min(_VIEWS, fit)))
    count = min(len(data), max(1, size // network.passes))
    images = torch.stack([data.picture(Draw(i)) for i in range(count)]).to(device)
    bare = torch.rand(size, 3, side, side, device=device)
    views = network.test_views

    features = torch.rand(count, network.out_features, device=device)
    inputs: list[tuple[Tensor, ...]] = []

    def see() -> None:
        inputs[:] = network.inputs(views.cut(images, network.image_size))

    def encode() -> list[Tensor]:
        return [network.encode(head, maps) for head, maps in zip(network.each_head(), inputs, strict=True)]

    rounds = _rounds(
        {
            "network": see,
            "encoding": encode,
            "classification": lambda: network.classify(features),
            "bare pass": lambda: network.backbone(bare),
        },
        budget - (PhaseTimes.now() - start),
    )
    medians = {name: statistics.median(values) for name, values in rounds.items()}
    per_image = {name: value / (size if name == "bare pass" else count) for name, value in medians.items()}
    length = network.out_features
    return {
        **{"passes": network.passes, "dimension": length, "bytes": row_bytes(length, kind)},
        **per_image,
        **{"rounds": len(rounds["bare pass"]), "views": size},
    }


def _rounds(works: dict[str, Callable[[], Any]], budget: float) -> dict[str, list[float]]:
    """Time each work in turn, round by round, so that a slow moment of the machine hits all of them."""
    found: dict[str, list[float]] = {name: [] for name in works}
    fewest, most = _ROUNDS
    start = PhaseTimes.now()
    for number in range(most + 1):
        begun = PhaseTimes.now()
        for name, work in works.items():
            before = PhaseTimes.now()
            work()
            found[name].append(PhaseTimes.now() - before)
        now = PhaseTimes.now()
        if number == 0 and now - begun < budget / (1 + fewest):
            found = {name: [] for name in works}  # it has warmed up
        elif all(len(spent) >= fewest for spent in found.values()) and 2 * now - begun - start > budget:
            break  # another one would be too much
    return found
