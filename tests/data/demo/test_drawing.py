"""Drawing: frames are affine maps, curves pass through their points, and paint stays inside outlines."""

import numpy as np
import pytest

from cxlp.data.demo.drawing import SUPERSAMPLE, Array, Canvas, Frame, curve, hsv, vary

SQUARE = [(-1.0, -1.0), (1.0, -1.0), (1.0, 1.0), (-1.0, 1.0)]
PALETTE = {"back": (100, 100, 100), "dark": (0, 0, 0)}


def canvas() -> Canvas:
    """A canvas of 64 pixels with a rounded square body in the middle, 16 pixels from the border."""
    made = Canvas(64, PALETTE, unit=16.0)
    made.fill(Frame(16 * np.eye(2), np.array([32.0, 32.0])), SQUARE, PALETTE["back"])
    return made


def painted(made: Canvas) -> tuple[Array, Array]:
    """Colour (red only) and opacity, (64, 64) each."""
    layer = np.asarray(made.layer).astype(float)
    return layer[..., 0], layer[..., 3]


def test_a_child_frame_rotates_and_stretches_about_its_origin() -> None:
    body = Frame(np.array([[10.0, 0.0], [0.0, 20.0]]), np.array([3.0, 4.0]))
    assert body.map([(1, 0), (0, 1)]).tolist() == [[13, 4], [3, 24]]
    assert body.unit == pytest.approx(np.sqrt(200))
    tail = body.child((1.0, 1.0), np.pi / 2, (2.0, 0.5))
    # the hinge; 1 along x, scaled to 2 and rotated to y; 1 along y, scaled to 1/2 and rotated to -x
    expected = body.map([(1, 1), (1, 3), (0.5, 1)])
    np.testing.assert_allclose(tail.map([(0, 0), (1, 0), (0, 1)]), expected, atol=1e-12)
    mirrored = Frame(np.diag([-10.0, 10.0]), np.zeros(2))
    assert mirrored.unit == pytest.approx(10)


@pytest.mark.parametrize("steps", [1, 6])
def test_a_curve_passes_through_its_points_and_closes_smoothly(steps: int) -> None:
    corners = np.random.default_rng(0).normal(size=(7, 2))
    points = curve(corners, steps)
    assert points.shape == (7 * steps, 2)
    np.testing.assert_allclose(points[::steps], corners, atol=1e-12)
    # a closed curve does not depend on its first point
    np.testing.assert_allclose(
        curve(np.roll(corners, 2, axis=0), steps), np.roll(points, 2 * steps, axis=0), atol=1e-12
    )


def test_a_curve_is_as_round_as_a_catmull_rom_spline() -> None:
    fine = curve(SQUARE, 400)
    # halfway between the corners p1, p2 with neighbours p0, p3: (9 (p1 + p2) - p0 - p3) / 16
    np.testing.assert_allclose(fine[200], [0.0, -1.25], atol=1e-12)
    # the direction at a corner is from the previous neighbour to the next one
    ahead = fine[401] - fine[399]
    np.testing.assert_allclose(ahead / np.linalg.norm(ahead), np.array([1, 1]) / np.sqrt(2), atol=1e-2)


def test_colours_wrap_and_are_clipped() -> None:
    assert [hsv(h, 1, 1) for h in (0, 1 / 3, 2 / 3, 1, -1 / 3)] == [
        *((255, 0, 0), (0, 255, 0), (0, 0, 255)),
        *((255, 0, 0), (0, 0, 255)),
    ]
    assert vary((10, 128, 250), 20) == (30, 148, 255)
    assert vary((10, 128, 250), np.array([-20.0, 1.0, 10.0])) == (0, 129, 255)


def test_a_stain_stays_on_the_bird() -> None:
    made = canvas()
    _, before = painted(made)
    everywhere = np.array([(-20.0, -20.0), (90.0, -20.0), (90.0, 90.0), (-20.0, 90.0)])
    made.stain([everywhere], "dark")
    red, opacity = painted(made)
    assert np.array_equal(opacity, before)  # its outline does not change
    assert (red[opacity == 255] < 20).all()
    assert (red[opacity == 0] == 100).all()


def test_a_stain_stays_within_the_shapes_that_bound_it() -> None:
    made = canvas()
    left = np.array([(0.0, 0.0), (31.0, 0.0), (31.0, 63.0), (0.0, 63.0)])
    made.stain([np.array([(20.0, 24.0), (44.0, 24.0), (44.0, 40.0), (20.0, 40.0)])], "dark", within=[left])
    red, _ = painted(made)
    assert (red[26:38, 22:29] < 20).all()
    assert (red[:, 34:] == 100).all()
    assert (red[:20] == 100).all()


def test_a_stain_outside_the_picture_has_no_effect() -> None:
    made = canvas()
    before = np.asarray(made.layer).copy()
    made.stain([np.array([(100.0, 100.0), (120.0, 100.0), (110.0, 120.0)])], "dark")
    assert np.array_equal(np.asarray(made.layer), before)


def test_the_lit_side_faces_the_light() -> None:
    made = canvas()
    made.crease(np.array([(24.0, 32.0), (40.0, 32.0)]), -100)
    picture = np.asarray(made.finish(np.array([0.0, 1.0]))).astype(float)
    assert picture.shape == (64 // SUPERSAMPLE, 64 // SUPERSAMPLE, 4)
    column = picture[:, 12, 0]
    assert column[8] > 100 > column[23]  # above and below
    assert picture[16, 16, 0] < 70 < picture[14, 16, 0]  # a crease is dark wherever it is
