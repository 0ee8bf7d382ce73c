"""The scenery: a perch, and a foreground that does not hide the bird."""

import numpy as np
import pytest
from PIL import Image

from cxlp.data.demo.scenery import leaf, paint_background, paint_branch, paint_foreground


def test_a_leaf_hangs_at_its_stalk_and_is_as_long_as_asked() -> None:
    rng = np.random.default_rng(0)
    place = np.array([5.0, 7.0])
    for length in (10.0, 30.0):
        outline = leaf(rng, place, length)
        np.testing.assert_allclose(outline[0], place)
        assert np.linalg.norm(outline[3] - place) == pytest.approx(length)


@pytest.mark.parametrize("seed", range(5))
def test_the_branch_passes_under_the_bird(seed: int) -> None:
    picture = Image.new("RGB", (200, 200))
    perch = np.array([120.0, 90.0])
    paint_branch(np.random.default_rng(seed), picture, perch, 80.0, (96, 78, 60))
    wood = np.asarray(picture).max(axis=2) > 0
    column = np.flatnonzero(wood[:, 120])
    assert abs(column[0] - 90) <= 3 and column[-1] > 92  # below the perch
    assert wood.any(axis=0).all()  # from border to border


@pytest.mark.parametrize("size", [64, 101])
def test_a_background_fills_the_picture(size: int) -> None:
    perch = np.array([size / 2, size / 2])
    pictures = [paint_background(np.random.default_rng(seed), size, perch, size / 2) for seed in (0, 0, 1)]
    assert all(p.mode == "RGB" and p.size == (size, size) for p in pictures)
    assert pictures[0].tobytes() == pictures[1].tobytes() != pictures[2].tobytes()


def test_a_foreground_covers_little() -> None:
    covers = [np.asarray(paint_foreground(np.random.default_rng(seed), 64))[..., 3] / 255 for seed in range(100)]
    assert covers[0].shape == (64, 64)
    assert 0.02 < np.mean(covers) < 0.25
    assert np.max([cover.mean() for cover in covers]) < 0.5  # at most half of any picture
