"""The attribution of a score: its shares follow the formula, add up, and are at the right places."""

import copy
from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from cxlp.backbones.backbone import Backbone, BackboneConfig
from cxlp.explain.attribution import Explanation, PartEvidence, explain, is_explainable
from cxlp.heads import (
    AveragePooling,
    BilinearPooling,
    CovariancePooling,
    CrossLayerPooling,
    FisherVector,
    Head,
    SparseFisherVector,
    TrainedGuidePooling,
)
from cxlp.heads.operator import sub_arrays
from cxlp.heads.views import Views, Window
from cxlp.models.network import Network
from cxlp.utils.errors import CxlpError
from tests import networks
from tests.networks import BACKBONE as UNEVEN
from tests.networks import CLASSES, EVEN

LARGE = replace(EVEN, image_size=160)  # both maps 10x10


def cross(**options: Any) -> CrossLayerPooling:
    return CrossLayerPooling(**{"pca_dim": 6, **options})


def build(*heads: Head, backbone: BackboneConfig = EVEN) -> Network:
    """Build a network with random weights, in float64."""
    trunk = copy.deepcopy(trunk_of(backbone))
    torch.manual_seed(0)
    return networks.randomise(Network(trunk, copy.deepcopy(heads), CLASSES).eval()).double()


@cache
def trunk_of(backbone: BackboneConfig) -> Backbone:
    torch.manual_seed(0)
    return Backbone.from_config(backbone)


def test_several_classes_of_an_image_are_explained_by_one_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    network = build(cross())
    images = photos(network, 3)
    passes: list[int] = []
    network.backbone.register_forward_hook(lambda _m, args, _o: passes.append(len(args[0])))
    found = list(explain(network, images, [[1, 0], [2], []]))
    assert passes == [3] and [each.target for each in found] == [1, 0, 2]
    for each, (i, k) in zip(found, [(0, 1), (0, 0), (1, 2)], strict=True):
        torch.testing.assert_close(each.channels, next(explain(network, images[i : i + 1], k)).channels)


def photos(network: Network, count: int = 2) -> Tensor:
    shape = (count, 3, network.image_size, network.image_size)
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


HEADS: dict[str, tuple[BackboneConfig, Head]] = {
    "cross": (EVEN, cross()),
    "cross, no PCA": (EVEN, cross(pca_dim=None)),
    "cross, fewer channels": (EVEN, cross(channels=5)),
    "3x3, valid": (EVEN, cross(size=3)),
    "3x3, same, stride 2": (LARGE, cross(size=3, stride=2, padding="same")),
    "3x3, no PCA, stride 2": (LARGE, cross(pca_dim=None, size=3, stride=2)),
    "to_local": (UNEVEN, cross(align="to_local")),
    "to_guide": (UNEVEN, cross(align="to_guide")),
    "bilinear": (EVEN, BilinearPooling(pca_dim=None)),
    "bilinear, PCA": (EVEN, BilinearPooling(pca_dim=6, channels=9)),
    "low rank": (EVEN, cross(guide_dim=5)),
    "compact": (EVEN, cross(sketch=100)),
    "low rank, compact, no PCA": (LARGE, cross(pca_dim=None, size=3, guide_dim=5, sketch=100, zscore=True)),
    "average of the lower layer": (EVEN, AveragePooling(layers=EVEN.layers[:1])),
    "average": (EVEN, AveragePooling()),
    "trained guide": (EVEN, TrainedGuidePooling(pca_dim=6, channels=7)),
    "zscore": (EVEN, cross(zscore=True)),
    "zscore of an average": (EVEN, AveragePooling(zscore=True)),
    "channel_l2": (EVEN, cross(channel_l2=True)),
    "sign": (EVEN, cross(sign=True)),
    "zscore, channel_l2, sign": (EVEN, cross(zscore=True, channel_l2=True, sign=True)),
    "no normalisation": (EVEN, cross(sqrt=False, l2=False)),
    "flip": (EVEN, cross(views=Views("flip"))),
    "crops": (EVEN, cross(views=Views("crops"))),
    "blocks": (EVEN, cross(views=Views("blocks"))),
    "regions": (EVEN, TrainedGuidePooling(pca_dim=6, views=Views("regions", stride=0.7))),
}


@pytest.mark.parametrize("name", HEADS)
def test_the_parts_add_up_to_the_score(name: str) -> None:
    backbone, head = HEADS[name]
    network = build(head, backbone=backbone)
    images = photos(network)
    with torch.no_grad():
        scores = network(images)
    for k in range(3):
        for explanation, score in zip(explain(network, images, k), scores[:, k], strict=True):
            assert explanation.score == pytest.approx(float(score), rel=1e-10)
            assert explanation.bias == float(network.classifier.bias.detach()[k])  # type: ignore[union-attr]
            (part,) = explanation.parts
            for parts in (part.places, part.channels, explanation.channels):
                assert float(parts.sum()) == pytest.approx(explanation.evidence, rel=1e-9)
            assert explanation.evidence != 0


def test_the_parts_add_up_in_single_precision() -> None:
    network = build(cross()).float()
    images = photos(network)
    with torch.no_grad():
        scores = network(images)
    for explanation, score in zip(explain(network, images, 1), scores[:, 1], strict=True):
        assert explanation.score == pytest.approx(float(score), rel=1e-4)


def test_several_heads_add_up_and_number_their_channels_in_turn() -> None:
    network = build(cross(channels=5), AveragePooling(layers=EVEN.layers[:1]), cross(pca_dim=4, views=Views("blocks")))
    images = photos(network, 1)
    (explanation,) = explain(network, images, 2)
    with torch.no_grad():
        assert explanation.score == pytest.approx(float(network(images)[0, 2]), rel=1e-10)
    assert [len(part.channels) for part in explanation.parts] == [5, 48, 192]
    assert [explanation.locate(k) for k in (0, 4, 5, 52, 53)] == [(0, 0), (0, 4), (1, 0), (1, 47), (2, 0)]
    assert float(explanation.channels[53]) == float(explanation.parts[2].channels[0])
    with pytest.raises(IndexError):
        explanation.locate(245)


def scale(pooled: Tensor) -> Tensor:
    """Return the factor by which square root and L2 multiply each entry."""
    root = pooled.abs().sqrt()
    factors: Tensor = 1 / (root * root.norm())
    return factors


@torch.no_grad()
def test_each_share_equals_the_formula() -> None:
    network = build(cross(size=3), backbone=LARGE)
    images = photos(network, 1)
    local, guide = network.backbone(images)
    (head,) = network.heads
    assert isinstance(head, CrossLayerPooling) and head.projection is not None and network.classifier is not None
    projection = head.projection
    assert projection.bias is not None
    x = sub_arrays(local, 3)[0] @ projection.weight.flatten(1).T + projection.bias  # (64, 6)
    a = guide[0, :, 1:-1, 1:-1].flatten(1)  # (192, 64)
    pooled = a @ x
    weights = network.classifier.weight[1].view_as(pooled) * scale(pooled)
    expected = torch.einsum("ki,kj,ij->ki", a, torch.where(pooled == 0, 0.0, weights), x)
    (explanation,) = explain(network, images, 1)
    shares = explanation.parts[0].shares[0]  # (192, 10, 10)
    torch.testing.assert_close(shares[:, 1:-1, 1:-1].flatten(1), expected)
    border = shares.clone()
    border[:, 1:-1, 1:-1] = 0
    assert not border.any(), "sub-arrays are not centred on the border"


@torch.no_grad()
def test_shares_of_an_average_are_those_of_its_channels() -> None:
    network = build(AveragePooling())
    images = photos(network, 1)
    (features,) = network.inputs(images)[0]
    mean = features[0].mean(dim=(1, 2))
    assert network.classifier is not None
    weights = network.classifier.weight[0] * torch.where(mean == 0, 0.0, scale(mean))
    (explanation,) = explain(network, images, 0)
    torch.testing.assert_close(explanation.parts[0].shares[0], features[0] * weights[:, None, None] / 16)
    torch.testing.assert_close(explanation.parts[0].activations[0], features[0])


@torch.no_grad()
def test_the_shares_of_a_trained_guide_equal_the_formula() -> None:
    network = build(TrainedGuidePooling(pca_dim=6, channels=7, sqrt=False, l2=False))
    images = photos(network, 1)
    (head,) = network.heads
    assert isinstance(head, TrainedGuidePooling) and head.projection is not None
    x = head.projection(network.inputs(images)[0][0])[0].flatten(1).T  # (16, 6)
    a = head.activations(x)  # (16, 7)
    assert network.classifier is not None
    expected = a.T * (network.classifier.weight[1].view(7, 6) @ x.T)
    (explanation,) = explain(network, images, 1)
    torch.testing.assert_close(explanation.parts[0].shares[0].flatten(1), expected)


def test_silent_channels_contribute_nothing() -> None:
    class Silenced(nn.Module):
        def forward(self, images: Tensor) -> tuple[Tensor, ...]:
            local, guide = backbone(images)
            return local, torch.cat([guide[:, :-1], torch.zeros_like(guide[:, -1:])], dim=1)

    for options in ({}, {"zscore": True}, {"sign": True}, {"channel_l2": True}):
        network = build(cross(**options))
        backbone = network.backbone
        silenced = Silenced()
        silenced.layers, silenced.image_size = backbone.layers, backbone.image_size  # type: ignore[assignment]
        network.backbone = silenced  # type: ignore[assignment]
        (explanation,) = explain(network, photos(network, 1), 0)
        assert float(explanation.parts[0].shares[:, -1].abs().max()) == 0
        assert float(explanation.channels[:-1].abs().max()) > 0


def test_against_is_the_difference_of_two_explanations() -> None:
    network = build(cross())
    images = photos(network, 1)
    gull, tern, both = (next(explain(network, images, *pair)) for pair in ((0,), (1,), (0, 1)))
    torch.testing.assert_close(both.parts[0].shares, gull.parts[0].shares - tern.parts[0].shares)
    assert both.bias == pytest.approx(gull.bias - tern.bias)
    assert both.score == pytest.approx(gull.score - tern.score)
    assert (both.target, both.against) == (0, 1)


def test_the_best_class_is_explained_unless_told_otherwise() -> None:
    network = build(cross())
    images = photos(network, 2)
    with torch.no_grad():
        scores = network(images)
    order = scores.argsort(dim=1, descending=True).tolist()
    for i, explanation in enumerate(explain(network, images)):
        assert explanation.target == order[i][0] and explanation.against is None
        torch.testing.assert_close(explanation.probabilities.double(), scores[i].softmax(dim=0))
    for first in {row[0] for row in order}:
        for i, explanation in enumerate(explain(network, images, against=first)):
            assert explanation.target == next(k for k in order[i] if k != first)


def test_probabilities_of_several_labels_are_sigmoids() -> None:
    network = build(cross())
    network.multi_label = True
    images = photos(network, 1)
    with torch.no_grad():
        expected = network(images)[0].sigmoid()
    torch.testing.assert_close(next(explain(network, images)).probabilities.double(), expected)


@pytest.mark.parametrize(
    ("head", "why"),
    [
        (CovariancePooling(pca_dim=4), "matrix root"),
        (FisherVector(pca_dim=4, atoms=3), "generative model"),
        (SparseFisherVector(pca_dim=4, atoms=3), "generative model"),
        (cross(spectral=True), "spectral is true: .*matrix root"),
    ],
)
def test_heads_that_are_not_sums_are_refused(head: Head, why: str) -> None:
    for network, which in ((build(head), head.name), (build(AveragePooling(), head), f"head 2, {head.name},")):
        assert not is_explainable(network)
        with pytest.raises(CxlpError, match=f"{which} cannot be explained.*{why}"):
            next(explain(network, photos(network, 1)))
    with pytest.raises(CxlpError, match=why):
        head.explain([], torch.zeros(0))


def test_a_network_without_classes_has_no_score() -> None:
    network = build(cross())
    network.classifier = None
    with pytest.raises(CxlpError, match="no classes yet"):
        next(explain(network, photos(network, 1)))


def test_it_works_without_grad_mode_and_leaves_no_gradients() -> None:
    network = build(cross(), TrainedGuidePooling(pca_dim=4, channels=3))
    images = photos(network, 1)
    expected = next(explain(network, images, 0)).channels
    with torch.inference_mode():
        (found,) = explain(network, images.clone(), 0)
        assert torch.is_inference_mode_enabled()
    torch.testing.assert_close(found.channels, expected)
    assert not found.channels.requires_grad
    assert all(p.grad is None for p in network.parameters())


# --- where evidence lies --------------------------------------------------------------------------


def evidence(shares: Tensor, *windows: Window, size: int, image_size: int) -> PartEvidence:
    return PartEvidence(shares.double(), shares.double().abs(), windows, size, image_size)


def at(view: int, row: int, column: int, views: int = 1) -> Tensor:
    """Return the shares of one channel: 1 at one of ``views`` x 4 x 4 places."""
    shares = torch.zeros(views, 1, 4, 4)
    shares[view, 0, row, column] = 1
    return shares


def peak(picture: Tensor) -> tuple[int, int]:
    """Return the first place: from a place at the border outwards, the picture is constant."""
    return divmod(int(picture.argmax()), picture.shape[1])


def test_a_place_is_drawn_at_its_position() -> None:
    part = evidence(at(0, 1, 3), Window(0, 0, False), size=64, image_size=64)
    picture = part.lay_out(part.places, 44)  # a cell is 11 pixels wide
    assert peak(picture) == (16, 43 - 5)
    assert part.centre(1 * 4 + 3) == pytest.approx((1.5 / 4, 3.5 / 4))
    assert float(picture.mean()) == pytest.approx(part.cell) == 1 / 16
    assert float(picture.max()) == pytest.approx(1)
    assert float(picture[:, :22].abs().max()) == 0, "two cells away there is no evidence"
    torch.testing.assert_close(picture[:, -1], picture[:, -5])  # at the edge as at the centre of the last cell


def test_a_mirrored_view_is_mirrored_back() -> None:
    part = evidence(at(1, 1, 3, views=2), Window(0, 0, False), Window(0, 0, True), size=64, image_size=64)
    plain = evidence(at(0, 1, 3), Window(0, 0, False), size=64, image_size=64)
    torch.testing.assert_close(part.lay_out(part.places, 44), plain.lay_out(plain.places, 44).flip(1))
    assert part.centre(16 + 1 * 4 + 3) == pytest.approx((1.5 / 4, 0.5 / 4))


def test_a_view_covers_its_part_of_the_image() -> None:
    views = Views("blocks")
    part = evidence(at(1, 3, 0, views=4), *views.windows(64), size=64, image_size=128)
    picture = part.lay_out(part.places, 88)
    assert peak(picture) == (3 * 11 + 5, 44)
    assert float(picture[:, :44].abs().max()) == 0 and float(picture[44:].abs().max()) == 0, "the blocks differ"
    assert float(picture.mean()) == pytest.approx(part.cell) == 1 / 64
    assert part.centre(16 + 3 * 4) == pytest.approx((3.5 / 8, 4.5 / 8))


def test_views_that_overlap_add_up_and_parts_by_their_area() -> None:
    once = evidence(torch.ones(1, 1, 4, 4), Window(0, 0, False), size=64, image_size=64)
    twice = evidence(torch.ones(2, 1, 4, 4), Window(0, 0, False), Window(0, 0, True), size=64, image_size=64)
    torch.testing.assert_close(twice.lay_out(twice.places, 8), 2 * once.lay_out(once.places, 8))
    fine = evidence(torch.ones(4, 1, 4, 4), *Views("blocks").windows(64), size=64, image_size=128)
    explanation = Explanation(0, None, torch.ones(1), 0.0, (once, fine))
    # A place of the first part has its own share and those of four places of the second part.
    torch.testing.assert_close(explanation.map(8), torch.full((8, 8), 5.0, dtype=torch.float64))
    assert explanation.evidence == pytest.approx(float(explanation.map(8).mean()) / explanation.cell)


@torch.no_grad()
def test_activations_are_drawn_from_the_channels_own_map() -> None:
    network = build(cross(pca_dim=4, channels=3), cross(pca_dim=4))
    images = photos(network, 1)
    (explanation,) = explain(network, images, 0)
    guide = network.backbone(images)[1][0]
    torch.testing.assert_close(explanation.activation(3 + 7, 4), guide[7])
