"""Which samples a rank gets, and in which order."""

from collections.abc import Iterator

import numpy as np
from torch.utils.data import DistributedSampler

from cxlp.data.dataset import Draw


class EpochSampler(DistributedSampler[Draw]):
    """Distributes samples over ranks: each once and in order, or shuffled for training.

    In order: rank r gets positions r, r + W, ...; where the number of samples is no multiple of the W ranks, the last
    ranks get a repeat, marked as such, because ranks must take equally many steps. Shuffled: each batch is full; an
    epoch's last one is filled up from the beginning of its order.

    Draws depend on (seed, epoch, position) only: neither on workers nor on whether the run was interrupted.
    The union of W ranks' batches of b samples is the batch of one rank with b W samples.

    A ``DistributedSampler``, so that Lightning keeps it and calls :meth:`set_epoch`.

    Args:
        size: Number of samples n.
        batch_size: Per rank; needed to fill batches.
        shuffle: Whether samples are shuffled, each with a seed for its augmentation.
        seed: The run's.
        ranks: W.
        rank: This one.
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
