"""Cost of an image's representation: forward passes, time and memory."""

import statistics
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from cxlp.data.dataset import Draw, ImageDataset
from cxlp.frozen.store import FeatureType, row_bytes
from cxlp.models.network import Network
from cxlp.utils.profiling import PhaseTimes

#: Maximum number of views per forward pass of the backbone.
_VIEWS = 32
#: Minimum and maximum number of rounds.
_ROUNDS = (2, 5)


@torch.no_grad()
def measure_cost(
    network: Network, data: ImageDataset, kind: FeatureType = "float32", budget: float = 4.0
) -> dict[str, float]:
    """Time the parts of a fitted network on images in memory, within a few seconds.

    Forward passes of a single view determine the number of views per pass, at most 32, that leaves time for one
    warm-up round and two to five measured rounds. If a single image with many views exceeds the budget in a large
    network, there are two rounds without warm-up.

    Args:
        network: The network, on the device to measure.
        data: The data set; its first images are used.
        kind: The type in which features are stored.
        budget: Approximate total time, in seconds.

    Returns:
        ``passes`` (forward passes per image), ``dimension`` of the vector, and ``bytes`` of a stored vector. Median
        seconds per image: ``network`` (views and forward passes), ``encoding`` (from maps to the vector),
        ``classification``, and ``bare pass`` (one forward pass of the backbone alone, up to the highest layer that
        the network uses). Details of the measurement: ``rounds``, and ``views``, the number of views per forward pass.
    """
    network.eval()
    with network.backbone.held():  # as in a run
        return _measure(network, data, kind, budget)


def _measure(network: Network, data: ImageDataset, kind: FeatureType, budget: float) -> dict[str, float]:
    start = PhaseTimes.now()
    device = network.backbone.mean.device
    side = network.backbone.image_size
    single = torch.rand(1, 3, side, side, device=device)
    probed = _rounds({"one view": lambda: network.backbone(single)}, budget=0.0)["one view"]
    fit = budget / ((1 + _ROUNDS[0]) * 2 * max(min(probed), 1e-9))  # both "network" and "bare pass" include it
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
    """Time each function once per round, so that a slow period of the machine affects all of them."""
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
            found = {name: [] for name in works}  # that was the warm-up round
        elif all(len(spent) >= fewest for spent in found.values()) and 2 * now - begun - start > budget:
            break  # another round would exceed the budget
    return found
