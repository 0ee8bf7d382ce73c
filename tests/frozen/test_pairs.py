"""Ranking pairs of layers: the candidates and the criterion."""

import numpy as np
import pytest
import torch
from torch import Tensor

from cxlp.backbones.backbone import Backbone
from cxlp.backbones.inventory import Layer, inventory
from cxlp.frozen.pairs import candidate_pairs, rank_pairs
from cxlp.utils.errors import CxlpError


def layers(*sides: int) -> list[Layer]:
    return [Layer(f"l{k}", (), "Conv2d", 4, side, 1.0, "", "") for k, side in enumerate(sides)]


def test_the_last_layers_of_the_last_two_sides_are_paired() -> None:
    assert candidate_pairs(layers(8, 8, 8, 4, 2, 2)) == [("l4", "l5"), ("l1", "l2"), ("l0", "l2"), ("l0", "l1")]
    six = candidate_pairs(layers(*[8] * 9))  # the last four only
    assert len(six) == 6 and {layer for pair in six for layer in pair} == {"l5", "l6", "l7", "l8"}


@pytest.mark.parametrize(
    ("name", "pair"),
    [
        ("caffenet", ("conv4", "conv5")),
        ("squeezenet1_0", ("features.11", "features.12")),
        ("efficientnet_lite0", ("blocks.6.0", "conv_head")),
    ],
)
def test_the_shipped_pairs_are_candidates(name: str, pair: tuple[str, str]) -> None:
    found = inventory(name, depth=2)[0]
    names = {layer.name: {layer.name, *layer.also} for layer in found} | {"blocks.6": {"blocks.6", "blocks.6.0"}}
    assert any(pair[0] in names[lower] and pair[1] in names[upper] for lower, upper in candidate_pairs(found))


def test_a_network_without_pairs_is_refused() -> None:
    with pytest.raises(CxlpError, match="no two layers of the network have maps of one size"):
        candidate_pairs(layers(8, 4, 2))


class Told(torch.nn.Module):
    """Layers that distinguish the classes, and a layer that does not."""

    def __init__(self) -> None:
        super().__init__()
        self.lower, self.upper, self.silent = (torch.nn.Conv2d(3, 3, 1, bias=False) for _ in range(3))
        for convolution, scale in ((self.lower, 1.0), (self.upper, 1.0), (self.silent, 0.0)):
            torch.nn.init.dirac_(convolution.weight)
            convolution.weight.data.mul_(scale)

    def forward(self, x: Tensor) -> Tensor:
        lower = self.lower(x)
        upper: Tensor = self.upper(lower)
        found: Tensor = self.silent(upper) + upper
        return found


def told() -> tuple[Backbone, list[tuple[Tensor, Tensor]]]:
    """Images whose class is their strongest channel."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(18) % 3
    images = torch.randint(0, 100, (18, 3, 8, 8), generator=generator, dtype=torch.uint8)
    images[torch.arange(18), labels] += 150
    backbone = Backbone(Told(), ["lower", "upper", "silent"], image_size=8, mean=(0, 0, 0), std=(1, 1, 1)).eval()
    return backbone, [(images[:10], labels[:10]), (images[10:], labels[10:])]


def test_the_pair_that_tells_the_classes_comes_first() -> None:
    backbone, batches = told()
    pairs = [("lower", "silent"), ("lower", "upper")]
    best, worst = rank_pairs(backbone, pairs, batches, 3)
    assert (best.lower, best.upper, best.accuracy, best.values) == ("lower", "upper", 1.0, 9)
    assert worst.upper == "silent" and worst.accuracy < 0.5
    assert best.work == 8 * 8 * (3 * 3 + 9) and best.interval.low < 1.0 == best.interval.high
    assert np.isclose(worst.accuracy * 18, round(worst.accuracy * 18))


def test_ties_prefer_the_cheaper_pair(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cxlp.frozen.pairs.quality", lambda scores, labels: 0.5)
    _, batches = told()
    monkeypatch.setattr("cxlp.frozen.pairs.PCA_DIM", 2)
    narrow = Backbone(
        torch.nn.Sequential(torch.nn.Conv2d(3, 6, 1), torch.nn.Conv2d(6, 4, 1), torch.nn.Conv2d(4, 3, 1)),
        ["0", "1", "2"], image_size=8, mean=(0, 0, 0), std=(1, 1, 1),
    ).eval()  # fmt: skip
    works = [pair.work for pair in rank_pairs(narrow, [("0", "1"), ("0", "2"), ("1", "2")], batches, 3)]
    assert works == sorted(works) and len(set(works)) == 3


def test_a_class_of_one_image_is_refused() -> None:
    backbone, batches = told()
    with pytest.raises(CxlpError, match="some class has fewer than two"):
        rank_pairs(backbone, [("lower", "upper")], [(images[:3], labels[:3]) for images, labels in batches[:1]], 3)
