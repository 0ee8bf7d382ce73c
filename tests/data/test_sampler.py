"""The distribution of images over ranks and steps."""

import pytest

from cxlp.data.dataset import Draw
from cxlp.data.sampler import EpochSampler

Batch = list[Draw]


def batches(size: int, batch_size: int, ranks: int, epoch: int, shuffle: bool, seed: int = 0) -> list[Batch]:
    """Return the union of the ranks' batches for each step."""
    shares = []
    for rank in range(ranks):
        sampler = EpochSampler(size, batch_size, shuffle, seed, ranks, rank)
        sampler.set_epoch(epoch)
        draws = list(sampler)
        assert len(draws) == len(sampler)
        shares.append(draws)
    assert len({len(share) for share in shares}) == 1, "ranks must have the same number of steps"
    steps = range(0, len(shares[0]), batch_size)
    return [[draw for share in shares for draw in share[i : i + batch_size]] for i in steps]


@pytest.mark.parametrize("ranks", [1, 2, 3])
@pytest.mark.parametrize("size", [1, 7, 13, 17])
@pytest.mark.parametrize("shuffle", [False, True])
def test_each_sample_is_new_exactly_once_over_the_ranks(size: int, ranks: int, shuffle: bool) -> None:
    draws = [draw for batch in batches(size, 4, ranks, 0, shuffle) for draw in batch]
    assert sorted(draw.item for draw in draws if not draw.repeat) == list(range(size))
    assert all(0 <= draw.item < size for draw in draws)


@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_ordered_samples_have_few_repeats_and_no_augmentation(ranks: int) -> None:
    draws = [draw for batch in batches(13, 4, ranks, 0, shuffle=False) for draw in batch]
    assert sum(draw.repeat for draw in draws) == -13 % ranks
    assert all(draw.seed is None for draw in draws)


def test_one_rank_keeps_the_order_of_the_lists() -> None:
    sampler = EpochSampler(7, 4, seed=3)
    for epoch in (0, 2):
        sampler.set_epoch(epoch)
        assert [draw.item for draw in sampler] == list(range(7))


@pytest.mark.parametrize("ranks", [1, 2, 3])
@pytest.mark.parametrize("size", [2, 13, 24])
def test_shuffled_batches_are_full(size: int, ranks: int) -> None:
    assert {len(batch) for batch in batches(size, 4, ranks, 1, shuffle=True)} == {4 * ranks}


def test_shuffled_epochs_differ_and_repeat_under_the_same_seed() -> None:
    epochs = [batches(20, 4, 1, epoch, shuffle=True) for epoch in range(3)]
    for one, other in ((0, 1), (1, 2), (0, 2)):
        assert [d.item for b in epochs[one] for d in b] != [d.item for b in epochs[other] for d in b]
    seeds = {draw.seed for epoch in epochs for batch in epoch for draw in batch}
    assert None not in seeds
    assert len(seeds) == 60, "each image is augmented differently in each epoch"
    assert epochs[1] == batches(20, 4, 1, 1, shuffle=True)
    assert epochs[1] != batches(20, 4, 1, 1, shuffle=True, seed=1)


@pytest.mark.parametrize("size", [16, 21])
def test_two_ranks_together_see_the_batches_of_one(size: int) -> None:
    two, one = batches(size, 4, 2, 5, shuffle=True), batches(size, 8, 1, 5, shuffle=True)
    # With augmentation seeds and marks of repeated images.
    assert [set(batch) for batch in two] == [set(batch) for batch in one]
    assert [len(batch) for batch in two] == [len(batch) for batch in one]
