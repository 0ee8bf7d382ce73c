"""The strongest places that are kept of each channel, and the positions of patches."""

import pytest
import torch
from torch import Tensor

from cxlp.explain.attribution import Explanation, PartEvidence
from cxlp.explain.patches import Patch, TopPlaces
from cxlp.heads.views import Views, Window


def seen(activations: Tensor, shares: Tensor | None = None) -> Explanation:
    """An explanation with one part, whose activations are ``(K, h, w)``."""
    a = activations.double()[None]
    part = PartEvidence(a if shares is None else shares.double()[None], a, (Window(0, 0, False),), 64, 64)
    return Explanation(0, None, torch.ones(1), 0.0, (part,))


def responding(*values: float, row: int = 3, column: int = 4) -> Tensor:
    """Channels that respond at one of 8 x 8 places."""
    maps = torch.zeros(len(values), 8, 8)
    maps[:, row, column] = torch.tensor(values)
    return maps


def test_the_strongest_are_kept_one_per_image() -> None:
    top = TopPlaces(kept=3)
    strengths = torch.rand(20, 5, generator=torch.Generator().manual_seed(0))
    for i, values in enumerate(strengths):
        maps = responding(*values.tolist(), row=i % 8, column=i % 5)
        maps[:, (i + 4) % 8, 7] = 0.9 * values  # the second place of the same image
        top.update(i, seen(maps))
    expected, order = strengths.topk(3, dim=0)
    for k in range(5):
        patches = top.patches(k)
        assert [p.image for p in patches] == order[:, k].tolist()
        assert [p.activation for p in patches] == pytest.approx(expected[:, k].tolist())
    assert top.images == 20


def test_fewer_images_give_fewer_patches() -> None:
    top = TopPlaces()
    top.update(7, seen(responding(2.0)))
    (patch,) = top.patches(0)
    # three of eight cells around the place in row 3, column 4
    assert (patch.image, patch.activation, patch.side) == (7, 2.0, 3 / 8)
    assert (patch.top, patch.left) == pytest.approx((2 / 8, 3 / 8))


@pytest.mark.parametrize(("row", "column", "corner"), [(0, 0, (0, 0)), (7, 7, (5 / 8, 5 / 8)), (0, 7, (0, 5 / 8))])
def test_patches_stay_inside_the_image(row: int, column: int, corner: tuple[float, float]) -> None:
    top = TopPlaces()
    top.update(0, seen(responding(1.0, row=row, column=column)))
    (patch,) = top.patches(0)
    assert (patch.top, patch.left) == pytest.approx(corner)
    image = torch.arange(160 * 160).view(1, 160, 160)
    cut = patch.cut(image)
    assert cut.shape == (1, 60, 60)
    assert int(cut[0, 0, 0]) == round(corner[0] * 160) * 160 + round(corner[1] * 160)


def test_ties_prefer_a_place_inside_the_response() -> None:
    maps = torch.zeros(1, 8, 8)
    maps[0, 2:5, 3:6] = 6  # a plateau, such as ReLU6 produces
    maps[0, 7, 7] = 6
    top = TopPlaces(kept=2)
    top.update(0, seen(responding(6.0)))
    top.update(1, seen(maps))
    patches = top.patches(0)
    assert [p.image for p in patches] == [1, 0], "the larger response comes first"
    assert [p.activation for p in patches] == [6.0, 6.0]
    assert (patches[0].top, patches[0].left) == pytest.approx((2 / 8, 3 / 8))


def test_channels_are_ordered_by_the_size_of_their_shares() -> None:
    top = TopPlaces()
    for shares in ((1.0, -4.0, 0.5), (1.0, 3.0, 0.5)):
        top.update(0, seen(responding(1, 1, 1), responding(*shares)))
    assert top.strongest(2) == [1, 0]
    assert top.strongest(10) == [1, 0, 2]
    assert [top.mean_share(k) for k in range(3)] == pytest.approx([1, -0.5, 0.5])


def test_places_of_several_parts_and_views() -> None:
    blocks = Views("blocks")
    a = torch.zeros(4, 2, 8, 8, dtype=torch.float64)
    a[3, 1, 2, 2] = 5
    (first,) = seen(responding(1.0)).parts
    second = PartEvidence(a, a, tuple(blocks.windows(64)), 64, 128)
    top = TopPlaces()
    top.update(0, Explanation(0, None, torch.ones(1), 0.0, (first, second)))
    (patch,) = top.patches(2)  # the second channel of the second part
    assert (patch.side, patch.top, patch.left) == pytest.approx((3 / 16, 9 / 16, 9 / 16))


def test_a_map_with_one_place_covers_the_whole_image() -> None:
    top = TopPlaces()
    top.update(0, seen(torch.ones(1, 1, 1)))
    assert top.patches(0) == [Patch(0, 1.0, 0.0, 0.0, 1.0)]


def test_a_patch_keeps_no_reference_to_its_image() -> None:
    image = torch.zeros(3, 64, 64, dtype=torch.uint8)
    cut = Patch(image=0, activation=1.0, top=0.5, left=0.5, side=0.125).cut(image)
    assert cut.shape == (3, 8, 8) and cut.untyped_storage().nbytes() == 3 * 8 * 8
