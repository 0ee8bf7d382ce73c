"""Ranking pairs of layers: the candidates and the criterion."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from cxlp.backbones.backbone import Backbone
from cxlp.backbones.inventory import Layer
from cxlp.backbones.library import Source, find
from cxlp.frozen.maps import MapStore
from cxlp.frozen.pairs import CONFIG as RANKING
from cxlp.frozen.pairs import PairFit, RankedPair, candidate_pairs, find_candidates, ranking_network, usable_pairs
from cxlp.heads import AveragePooling, CrossLayerPooling
from cxlp.metrics.intervals import Interval, precision_intervals
from cxlp.utils.errors import CxlpError
from cxlp.utils.profiling import PhaseTimes


def layers(*sides: int, activation: str = "ReLU") -> list[Layer]:
    return [Layer(f"l{k}", (), "Conv2d", 4, side, 1.0, activation, "") for k, side in enumerate(sides)]


# --- candidates


def test_the_last_layers_of_the_last_two_sides_are_paired() -> None:
    assert candidate_pairs(layers(8, 8, 8, 4, 2, 2)) == [("l4", "l5"), ("l1", "l2"), ("l0", "l2"), ("l0", "l1")]
    six = candidate_pairs(layers(*[8] * 9))  # the last four only
    assert len(six) == 6 and {layer for pair in six for layer in pair} == {"l5", "l6", "l7", "l8"}


def test_blocks_without_activation_get_the_last_activated_layer_as_a_guide() -> None:
    blocks = layers(4, 4, activation="")
    inside = replace(blocks[0], name="l1.mlp.fc1", activation="GELU")
    within = [blocks[0], inside, blocks[1]]
    assert candidate_pairs(blocks, within) == [
        ("l0", "l1"),
        ("l0", "l1.mlp.fc1"),
    ]  # l1 comes after its own hidden layer


@pytest.mark.parametrize(
    ("name", "pair"),
    [
        ("caffenet", ("conv4", "conv5")),
        ("squeezenet1_0", ("features.11", "features.12")),
        ("efficientnet_lite0", ("blocks.6", "conv_head")),  # the stage's only block is blocks.6.0
        ("resnet50", ("layer4.1", "layer4.2")),
        ("vgg16", ("features.26", "features.28")),
        ("timm/vit_tiny_patch16_224", ("blocks.10", "blocks.11.mlp.fc1")),
        ("timm/convnext_atto", ("stages.3.blocks.0", "stages.3.blocks.1.mlp.fc1")),
    ],
)
def test_recommended_pairs_are_candidates(name: str, pair: tuple[str, str]) -> None:
    assert pair in find_candidates(name).pairs


def test_a_network_is_built_once_for_its_candidates(monkeypatch: pytest.MonkeyPatch) -> None:
    built: list[str] = []

    def counted(name: str) -> Source:
        built.append(name)
        return find(name)

    monkeypatch.setattr("cxlp.backbones.inventory.find", counted)
    # its second map size has a single layer of two parts, so that a third depth is tried
    assert find_candidates("efficientnet_lite0").pairs and built == ["efficientnet_lite0"]


def test_layers_that_an_activation_follows_are_told() -> None:
    found = find_candidates("efficientnet_lite0")
    assert "conv_head" in found.activated and "blocks.6.0" not in found.activated


def test_a_network_without_pairs_is_refused() -> None:
    with pytest.raises(CxlpError, match="no two layers of the network have maps of one size"):
        candidate_pairs(layers(8, 4, 2))


# --- ranking


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


PAIRS = [("lower", "silent"), ("lower", "upper")]
LABELS = torch.arange(18) % 3


def told() -> Backbone:
    return Backbone(Told(), ["lower", "upper", "silent"], image_size=8, mean=(0, 0, 0), std=(1, 1, 1)).eval()


def pictures() -> Tensor:
    """Images whose class is their strongest channel."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 100, (18, 3, 8, 8), generator=generator, dtype=torch.uint8)
    images[torch.arange(18), LABELS] += 150
    return images


def fitted(folder: Path, pairs: list[tuple[str, str]], labels: Tensor, backbone: Backbone | None = None) -> PairFit:
    folder /= str(len(list(folder.iterdir())))  # it is removed in the end, being empty
    network = ranking_network(backbone or told(), pairs, len(labels), ["a", "b", "c"], labels.ndim == 2)
    fit = PairFit(network, RANKING, len(labels), folder, PhaseTimes(), progress=False)
    for part in torch.split(torch.arange(len(labels)), 10):
        fit.observe(pictures()[part], labels[part], part)
    assert fit.finish() == {}
    return fit


def test_the_pair_that_tells_the_classes_comes_first(tmp_path: Path) -> None:
    best, worst = fitted(tmp_path, PAIRS, LABELS).ranked
    assert (best.layers, best.quality, best.values, best.activation) == (("lower", "upper"), 1.0, 9, "after")
    assert worst.upper == "silent" and worst.quality < 0.5
    assert best.work == 8 * 8 * (3 * 3 + 9)
    assert best.interval is not None and best.interval.low < 1.0 == best.interval.high
    assert worst.quality * 18 == pytest.approx(round(worst.quality * 18))


def test_several_labels_are_ranked_by_mean_average_precision(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    odd = LABELS.clone()
    odd[[0, 4]] = torch.tensor([1, 2])  # so that the best pair is wrong twice
    several = 2 * torch.nn.functional.one_hot(odd, 3) - 1
    scored: list[object] = []

    def kept(scores: Any, labels: Any, kinds: Any) -> dict[str, Interval]:
        scored.append(kinds)
        return precision_intervals(scores, labels, kinds)

    monkeypatch.setattr("cxlp.frozen.pairs.precision_intervals", kept)
    best, worst = fitted(tmp_path, PAIRS, several).ranked
    assert best.layers == ("lower", "upper") and 0.7 < best.quality < 1.0
    assert best.interval is not None and best.interval.by == "bootstrap"
    assert best.interval.low < best.quality < best.interval.high
    assert worst.quality == pytest.approx(1 / 3)
    assert worst.interval is None  # all images score alike, and so do all resamples
    assert scored == 2 * [{"mAP": "uninterpolated"}]


def test_ties_go_to_the_cheaper_pair_then_to_the_shorter_vector() -> None:
    one = RankedPair("a", "b", 0.5, None, 3, 9, 100, "after")
    dear, better, longer = replace(one, work=200), replace(one, quality=0.6, work=999), replace(one, values=10)
    assert sorted([dear, longer, one, better], key=RankedPair.order) == [better, one, longer, dear]


def test_large_activations_do_not_overflow(tmp_path: Path) -> None:
    trunk = Told()
    trunk.lower.weight.data.mul_(1e6)  # beyond the range of float16
    backbone = Backbone(trunk, ["lower", "upper", "silent"], image_size=8, mean=(0, 0, 0), std=(1, 1, 1)).eval()
    assert fitted(tmp_path, PAIRS, LABELS, backbone).ranked[0].quality == 1.0


def test_maps_beyond_the_bound_are_kept_on_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    inside = fitted(tmp_path, PAIRS, LABELS).ranked
    monkeypatch.setattr("cxlp.frozen.fit.memory_for_maps", lambda: 1)
    sizes: list[int] = []
    delete = MapStore.delete

    def measured(store: MapStore) -> None:
        sizes.extend(file.stat().st_size for file in tmp_path.rglob("maps-0.bin"))
        delete(store)

    monkeypatch.setattr("cxlp.frozen.maps.MapStore.delete", measured)
    assert fitted(tmp_path, PAIRS, LABELS).ranked == inside
    assert sizes[0] == 18 * 3 * 3 * 8 * 8 * 4  # three layers in single precision
    assert not list(tmp_path.iterdir())


def test_a_class_of_one_image_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CxlpError, match="a ranking of pairs of layers needs two training images of each class, but"):
        fitted(tmp_path, PAIRS, torch.tensor([0, 0, 1, 1, 2]))


def test_too_many_images_for_the_memory_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cxlp.frozen.solvers.free_memory", lambda: 1000)
    with pytest.raises(CxlpError, match=r"the SVMs of 18 images need more memory than is free: rank .* on fewer"):
        fitted(tmp_path, PAIRS, LABELS)


def test_pairs_that_heads_cannot_take_are_told() -> None:
    backbone = told()
    assert usable_pairs(backbone, PAIRS, [CrossLayerPooling(pca_dim=3)]) == (PAIRS, "")
    kept, why = usable_pairs(backbone, PAIRS, [AveragePooling(), CrossLayerPooling(pca_dim=4)])
    assert kept == [] and "pca_dim is 4" in why
