"""The sampler: distribution of samples over ranks, and their order."""

from collections.abc import Iterator

import numpy as np
from torch.utils.data import DistributedSampler

from cxlp.data.dataset import Draw


class EpochSampler(DistributedSampler[Draw]):
    """Distributes samples over ranks, either each once and in order, or shuffled for training.

    In order, rank r gets positions r, r + W, .... If the number of samples is not a multiple of the W ranks, the last
    ranks get a repeat, marked as such, because all ranks must take the same number of steps. If shuffled, each batch is
    full: the last batch of an epoch is filled up from the beginning of the epoch's order.

    The order and the seeds depend only on (seed, epoch, position), not on workers or interruptions of the run. The
    union of the batches of W ranks with batch size b is the batch of one rank with batch size b W.

    The class inherits from ``DistributedSampler`` so that Lightning does not replace it and calls :meth:`set_epoch`.

    Args:
        size: Number of samples, n.
        batch_size: Batch size per rank, used to fill batches.
        shuffle: Whether to shuffle the samples, and draw a seed for the augmentation of each.
        seed: Seed of the run.
        ranks: Number of ranks, W.
        rank: Index of this rank.
    """

    def __init__(
        self, size: int, batch_size: int, shuffle: bool = False, seed: int = 0, ranks: int = 1, rank: int = 0
    ) -> None:
        self.size, self.batch_size, self.shuffle = size, batch_size, shuffle
        self.seed, self.num_replicas, self.rank, self.epoch = seed, ranks, rank, 0

    def __len__(self) -> int:
        unit = self.num_replicas * (self.batch_size if self.shuffle else 1)
        return -(-self.size // unit) * unit // self.num_replicas

    def __iter__(self) -> Iterator[Draw]:
        places = range(self.rank, len(self) * self.num_replicas, self.num_replicas)
        if not self.shuffle:
            for place in places:
                yield Draw(place % self.size, None, place >= self.size)
            return
        rng = np.random.default_rng((self.seed, self.epoch))
        order = rng.permutation(self.size)
        seeds = rng.integers(2**32, size=len(self) * self.num_replicas)
        for place in places:
            yield Draw(int(order[place % self.size]), int(seeds[place]), place >= self.size)
