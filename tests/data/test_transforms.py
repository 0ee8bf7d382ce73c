"""From images to the network's input: size, geometry, aliasing, and random augmentation."""

from typing import Any

import cv2
import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from cxlp.data.transforms import Aspect, AugmentConfig, Transform
from cxlp.utils.errors import CxlpError
from tests.generate import Pixels, texture

STILL = AugmentConfig(crop_scale=1.0, flip=0.0, colour=0.0)
ASPECTS: tuple[Aspect, ...] = ("warp", "crop")
SEEDS = range(20)


def picture(width: int = 60, height: int = 40) -> Pixels:
    return texture(0, 1, np.random.default_rng(0), width, height)


def applied(pixels: NDArray[Any], augment: AugmentConfig, seed: int | None, aspect: Aspect = "warp") -> NDArray[Any]:
    """Return the input for a picture, (H, W, 3)."""
    result: NDArray[Any] = Transform(32, aspect, augment)(pixels, seed).permute(1, 2, 0).numpy()
    return result


def disc(width: int, height: int, radius: float) -> Pixels:
    """Draw a white disc in the middle, on black."""
    y, x = np.mgrid[:height, :width]
    inside = np.hypot(x - (width - 1) / 2, y - (height - 1) / 2) <= radius
    return np.repeat(255 * inside[..., None], 3, axis=2).astype(np.uint8)


@pytest.mark.parametrize("aspect", ASPECTS)
@pytest.mark.parametrize("seed", [None, 7])
@pytest.mark.parametrize(("width", "height"), [(60, 40), (31, 90), (32, 32), (5, 5), (1, 50), (333, 2)])
def test_output_is_a_square_of_bytes(aspect: Aspect, seed: int | None, width: int, height: int) -> None:
    output = Transform(32, aspect, AugmentConfig())(picture(width, height), seed)
    assert output.shape == (3, 32, 32)
    assert output.dtype == torch.uint8
    assert output.is_contiguous()


def test_channels_stay_red_green_blue() -> None:
    pixels = np.full((40, 60, 3), (200, 100, 50), np.uint8)
    for seed in (None, 3):
        output = Transform(32, "warp", AugmentConfig(colour=0))(pixels, seed)
        assert output.float().mean((1, 2)).tolist() == [200, 100, 50]


@pytest.mark.parametrize("aspect", ASPECTS)
def test_without_seed_nothing_is_random(aspect: Aspect) -> None:
    transform = Transform(32, aspect, AugmentConfig())
    first = transform(picture(), None)
    transform(picture(), 5)  # random draws between the calls have no effect
    assert torch.equal(first, transform(picture(), None))
    assert torch.equal(first, Transform(32, aspect, STILL)(picture(), None))


def test_seed_decides_the_draw() -> None:
    transform = Transform(32, "warp", AugmentConfig())
    first = transform(picture(), 5)
    others = [transform(picture(), seed) for seed in range(6, 12)]
    assert torch.equal(first, transform(picture(), 5))
    assert torch.equal(first, Transform(32, "warp", AugmentConfig())(picture(), 5))
    assert len({image.numpy().tobytes() for image in [first, *others]}) == 7


def test_largest_seed_is_accepted() -> None:
    Transform(32, "warp", AugmentConfig())(picture(), 2**32 - 1)


def test_the_input_is_not_modified() -> None:
    pixels = picture(32, 32)  # nothing to resize: the output could be a view of the input
    before = pixels.copy()
    Transform(32, "warp", STILL)(pixels, None).zero_()
    Transform(32, "warp", AugmentConfig())(pixels, 1).zero_()
    assert np.array_equal(pixels, before)


def test_crop_keeps_the_aspect_ratio_and_warp_does_not() -> None:
    pixels = disc(120, 60, radius=24)
    extents = {}
    for aspect in ASPECTS:
        rows, columns = np.nonzero(applied(pixels, STILL, None, aspect)[..., 0] > 127)
        extents[aspect] = (np.ptp(columns) + 1, np.ptp(rows) + 1)
    width, height = extents["crop"]
    assert abs(width - height) <= 1
    assert height == pytest.approx(48 * 32 / 60, abs=1.5)
    width, height = extents["warp"]
    assert height / width == pytest.approx(2, abs=0.2)


def test_warp_shows_the_whole_image_and_crop_its_centre() -> None:
    pixels = np.zeros((60, 120, 3), np.uint8)
    pixels[:, :30], pixels[:, 90:] = (255, 0, 0), (0, 0, 255)  # both are outside the middle square
    warped, cropped = applied(pixels, STILL, None, "warp"), applied(pixels, STILL, None, "crop")
    assert (warped[:, :7] == (255, 0, 0)).all()
    assert (warped[:, -7:] == (0, 0, 255)).all()
    assert (cropped[:, 1:-1] == 0).all()


@pytest.mark.parametrize("aspect", ASPECTS)
def test_disabled_augmentation_gives_the_plain_image(aspect: Aspect) -> None:
    plain = applied(picture(), STILL, None, aspect)
    for seed in SEEDS:
        assert np.array_equal(applied(picture(), STILL, seed, aspect), plain)


def test_flip_is_a_mirror_image_with_its_probability() -> None:
    plain = applied(picture(), STILL, None)
    mirrored = plain[:, ::-1]
    assert not np.array_equal(plain, mirrored)
    for flip, count in ((1.0, 20), (0.0, 0)):
        flipped = [applied(picture(), AugmentConfig(1.0, flip, 0.0), seed) for seed in SEEDS]
        assert sum(np.array_equal(image, mirrored) for image in flipped) == count
    half = [applied(picture(), AugmentConfig(1.0, 0.5, 0.0), seed) for seed in SEEDS]
    assert all(np.array_equal(image, plain) or np.array_equal(image, mirrored) for image in half)
    assert 4 <= sum(np.array_equal(image, mirrored) for image in half) <= 16


def test_colour_changes_brightness_and_no_positions() -> None:
    pixels = np.full((40, 60, 3), (180, 90, 60), np.uint8)
    means = []
    for seed in SEEDS:
        image = applied(pixels, AugmentConfig(1.0, 0.0, 0.2), seed)
        assert (image == image[0, 0]).all(), "a uniform picture stays uniform"
        means.append(image.mean())
        red, green, blue = image[0, 0].astype(float)
        assert (red - green) / (red - blue) == pytest.approx(0.75, abs=0.05), "the hue is kept"
    assert np.std(means) > 3
    assert 0.6 < min(means) / 110 < max(means) / 110 < 1.45


def test_random_crop_keeps_at_least_the_scale() -> None:
    # Each pixel encodes its position: red is x, green is y.
    y, x = np.mgrid[:200, :200]
    pixels = np.stack([x, y, 0 * x], axis=2).astype(np.uint8)
    areas, ratios = [], []
    for seed in SEEDS:
        image = applied(pixels, AugmentConfig(0.5, 0.0, 0.0), seed).astype(float)
        width, height = np.ptp(image[..., 0]), np.ptp(image[..., 1])
        areas.append(width * height / 200**2)
        ratios.append(width / height)
    # Outer pixels are means of their areas, so the range is slightly smaller.
    assert min(areas) > 0.5 * 0.92
    assert max(areas) < 1
    assert np.std(areas) > 0.05
    assert 0.7 < min(ratios) < 0.9
    assert 1.1 < max(ratios) < 1.4


@pytest.mark.parametrize("aspect", ASPECTS)
@pytest.mark.parametrize("seed", [None, 3])
def test_shrinking_does_not_alias(aspect: Aspect, seed: int | None) -> None:
    # 15 pixels become one: plain interpolation would use the middle one only.
    checkerboard = np.repeat(np.indices((480, 480)).sum(0)[..., None] % 2 * 255, 3, axis=2).astype(np.uint8)
    augment = AugmentConfig(0.5, 0.5, 0.0)
    grey = applied(checkerboard, augment, seed, aspect)
    assert np.abs(grey.astype(int) - 127.5).max() < 20


@pytest.mark.parametrize("aspect", ASPECTS)
def test_without_random_crop_the_needed_size_is_the_output_size(aspect: Aspect) -> None:
    assert Transform(32, aspect, AugmentConfig(crop_scale=0.5)).needed(None) == 32
    assert Transform(32, aspect, STILL).needed(7) == 32


@pytest.mark.parametrize("scale", [0.1, 0.5, 0.9])
def test_random_crops_of_a_sufficient_image_are_not_enlarged(scale: float) -> None:
    transform = Transform(32, "warp", AugmentConfig(crop_scale=scale))
    short = transform.needed(0)
    assert short is not None
    sides = []
    for width, height in ((short, short), (short, 2 * short), (3 * short, short)):
        for seed in range(300):
            transform.random.set_random_seed(seed)
            crop = transform.random.transforms[0].get_params_dependent_on_data({"shape": (height, width, 3)}, {})
            left, top, right, bottom = crop["crop_coords"]
            sides.append(min(right - left, bottom - top))
    assert min(sides) >= 32
    assert min(sides) <= 36, "the decoder is asked for more than needed"


@pytest.mark.parametrize("scale", [-0.5, 0.0, 1.5, float("nan")])
def test_an_invalid_crop_scale_is_refused(scale: float) -> None:
    with pytest.raises(CxlpError, match=rf"crop_scale is {scale}"):
        Transform(32, "warp", AugmentConfig(crop_scale=scale))


@pytest.mark.parametrize(("width", "height"), [(60, 47), (80, 70), (48, 100), (32, 64)])
def test_shrinking_is_close_to_averaging_areas(width: int, height: int) -> None:
    pixels = picture(width, height)
    areas = cv2.resize(pixels, (32, 32), interpolation=cv2.INTER_AREA)
    assert np.abs(applied(pixels, STILL, None).astype(int) - areas).mean() < 3


def test_erasing_fills_one_rectangle_with_noise() -> None:
    pixels = np.full((40, 40, 3), 90, np.uint8)
    parts = []
    for seed in SEEDS:
        image = applied(pixels, AugmentConfig(1.0, 0.0, 0.0, erase=1.0), seed)
        rows, columns = np.nonzero((image != 90).any(2))
        box = image[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]
        assert (box != 90).any(2).mean() > 0.95 and box.std() > 40
        parts.append(box.shape[0] * box.shape[1] / 32**2)
    assert min(parts) > 0.01 and max(parts) < 0.36
    for probability, count in ((0.0, 0), (0.5, 10)):
        images = [applied(pixels, AugmentConfig(1.0, 0.0, 0.0, erase=probability), seed) for seed in SEEDS]
        assert abs(sum(bool((image != 90).any()) for image in images) - count) <= (6 if count else 0)
