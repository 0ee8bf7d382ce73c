"""Views: their pixels, their number, and errors."""

from itertools import pairwise
from typing import get_args

import pytest
import torch
from torch import Tensor

from cxlp.heads.views import Kind, Views, resized
from cxlp.utils.errors import CxlpError

SIZE = 8


def numbered(side: int) -> Tensor:
    """Two images whose pixels encode image, row and column."""
    rows, columns = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    return torch.stack([torch.stack([rows, columns, torch.full_like(rows, i)]) for i in range(2)]).float()


def corners(views: Views, size: int = SIZE) -> list[tuple[int, int, int, int]]:
    """Return image, row and column at the top left of each view, and the column at its top right."""
    found = views.cut(numbered(views.image_size(size)), size)
    assert found.shape == (2 * views.count(size), 3, size, size)
    return [(int(v[2, 0, 0]), int(v[0, 0, 0]), int(v[1, 0, 0]), int(v[1, 0, -1])) for v in found]


def test_the_whole_view_is_the_unchanged_image() -> None:
    images = torch.randint(0, 256, (2, 3, SIZE, SIZE), dtype=torch.uint8)
    assert Views().cut(images, SIZE) is images


def test_flip_is_the_image_and_its_mirror() -> None:
    views = Views("flip")
    assert views.image_size(SIZE) == SIZE and views.count(SIZE) == 2
    assert corners(views) == [(i, 0, *sides) for i in range(2) for sides in ((0, 7), (7, 0))]


def test_blocks_tile_the_image() -> None:
    views = Views("blocks", blocks=3)
    assert views.image_size(SIZE) == 24 and views.count(SIZE) == 9
    assert corners(views) == [(i, y, x, x + 7) for i in range(2) for y in (0, 8, 16) for x in (0, 8, 16)]


def test_crops_are_four_corners_the_centre_and_their_mirrors() -> None:
    views = Views("crops", scale=1.5)
    places = [(0, 0), (0, 4), (4, 0), (4, 4), (2, 2)]
    expected = [(y, x, x + 7) for y, x in places] + [(y, x + 7, x) for y, x in places]
    assert corners(views) == [(i, *at) for i in range(2) for at in expected]


@pytest.mark.parametrize("kind", get_args(Kind))
def test_each_view_has_a_window_in_the_image(kind: Kind) -> None:
    views = Views(kind)
    windows, room = views.windows(64), views.image_size(64) - 64
    assert len(windows) == views.count(64)
    assert len(set(windows)) == len(windows)
    assert all(0 <= w.top <= room and 0 <= w.left <= room for w in windows)


def test_the_papers_sizes() -> None:
    assert Views("crops").image_size(227) == 256
    regions = Views("regions")
    assert regions.image_size(227) == 512
    assert regions.count(227) == 6 * 6  # 285 pixels in steps of at most 64
    assert Views("regions", stride=8 / 227).count(227) == 37**2


@pytest.mark.parametrize("stride", [0.25, 0.3, 1.0, 5.0])
def test_regions_reach_every_border_in_steps_of_at_most_the_stride(stride: float) -> None:
    views = Views("regions", scale=2.0, stride=stride)
    rows = sorted({row for _, row, _, _ in corners(views)})
    assert rows[0] == 0 and rows[-1] == 8
    assert max(b - a for a, b in pairwise(rows)) <= max(1, round(stride * 8 + 0.5))


def test_a_region_as_large_as_the_image_is_one_view() -> None:
    assert Views("regions", scale=1.0).count(SIZE) == 1


def test_images_of_another_size_are_resized_without_aliasing() -> None:
    stripes = (torch.arange(64) % 2 * 255).to(torch.uint8).expand(1, 3, 64, 64)
    small = Views().cut(stripes, 16)
    assert small.shape == (1, 3, 16, 16) and small.dtype == torch.float32
    assert (small[..., 2:-2] - 0.5).abs().max() < 0.004  # grey; plain sampling would return black or white
    torch.testing.assert_close(resized(stripes / 255, 16), small)  # bytes and values from 0 to 1 are the same image
    assert resized(torch.zeros(0, 3, 5, 5), 9).shape == (0, 3, 9, 9)
    bright = torch.ones(1, 3, 4, 4)
    bright[..., :2] = 0
    assert resized(bright, 9).amin() >= 0 and resized(bright, 9).amax() <= 1  # cubic interpolation overshoots


@pytest.mark.parametrize(
    ("wrong", "said"),
    [({"blocks": 0}, "blocks is 0"), ({"scale": 0.5}, "scale is 0.5"), ({"stride": 0}, "stride is 0")],
)
def test_invalid_option_values_are_refused(wrong: dict[str, float], said: str) -> None:
    with pytest.raises(CxlpError, match=said):
        Views(**wrong)  # type: ignore[arg-type]
