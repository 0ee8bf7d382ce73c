"""The invented birds: reproducible, different in their parts, and not distinguishable by colour."""

from dataclasses import astuple, replace
from itertools import combinations
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from cxlp.data.demo.birds import SPECIES, Species, draw_bird

CHANGES: list[tuple[str, Any, Any]] = [
    ("beak", "cone", "needle"),
    ("beak", "cone", "hook"),
    ("crown", "plain", "cap"),
    ("crown", "plain", "crest"),
    ("crown", "plain", "stripe"),
    ("wing_bars", 0, 1),
    ("wing_bars", 1, 2),
    ("tail", "short", "long"),
    ("tail", "short", "forked"),
    ("breast", "plain", "spots"),
    ("breast", "plain", "streaks"),
    ("breast", "plain", "band"),
]


def pixels(species: Species, seed: int | list[int], size: int = 128) -> NDArray[np.int64]:
    """Draw the picture of a seed, (size, size, 3)."""
    return np.asarray(draw_bird(species, np.random.default_rng(seed), size)).astype(np.int64)


@pytest.mark.parametrize("size", [64, 101, 256])
def test_picture_is_rgb_and_of_the_size_asked_for(size: int) -> None:
    picture = draw_bird(SPECIES[0], np.random.default_rng(0), size)
    assert picture.mode == "RGB"
    assert picture.size == (size, size)


def test_seed_decides_the_picture() -> None:
    assert np.array_equal(pixels(SPECIES[3], 5), pixels(SPECIES[3], 5))
    assert not np.array_equal(pixels(SPECIES[3], 5), pixels(SPECIES[3], 6))


def test_the_global_random_state_is_unchanged() -> None:
    before = np.random.get_state(legacy=False)["state"]
    draw_bird(SPECIES[0], np.random.default_rng(0), 64)
    after = np.random.get_state(legacy=False)["state"]
    assert np.array_equal(before["key"], after["key"])
    assert before["pos"] == after["pos"]


def test_species_are_a_combination_code() -> None:
    assert len(SPECIES) == 10
    assert len({species.name for species in SPECIES}) == 10
    parts = [astuple(species)[1:] for species in SPECIES]
    for one, other in combinations(parts, 2):
        assert 2 <= sum(a != b for a, b in zip(one, other, strict=True)) <= 4
    for column in zip(*parts, strict=True):
        assert min(column.count(choice) for choice in column) >= 2, "a single part identifies a species"


def test_the_number_of_random_numbers_does_not_depend_on_the_species() -> None:
    following = set()
    for species in SPECIES:
        rng = np.random.default_rng(1)
        draw_bird(species, rng, 64)
        following.add(rng.integers(2**62))
    assert len(following) == 1


@pytest.mark.parametrize(("part", "before", "after"), CHANGES)
def test_each_part_shows_and_changes_little_else(part: str, before: Any, after: Any) -> None:
    plain = Species("", "cone", "plain", 0, "short", "plain")
    for seed in range(5):
        one = pixels(replace(plain, **{part: before}), seed)
        other = pixels(replace(plain, **{part: after}), seed)
        difference = np.abs(one - other).max(axis=-1)
        assert (difference > 0).mean() < 0.25
        # An occluder may hide much of a part, but never all of it in all five pictures.
        assert (difference > 10).sum() >= 10


def test_the_mean_colour_does_not_reveal_the_species() -> None:
    means = np.array(
        [[pixels(species, [i, k], 48).mean(axis=(0, 1)) for k in range(30)] for i, species in enumerate(SPECIES)]
    )
    centroids = means[:, :20].mean(axis=1)
    distances = np.linalg.norm(means[:, 20:, None] - centroids, axis=-1)
    accuracy = (distances.argmin(axis=-1) == np.arange(10)[:, None]).mean()
    assert accuracy < 0.3
