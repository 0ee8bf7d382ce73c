"""Which samples a rank gets, and in which order."""

from collections.abc import Collection, Iterator

import numpy as np
from torch.utils.data import DistributedSampler

from cxlp.data.dataset import Draw


class Drawer(DistributedSampler[Draw]):
    """Hands out samples to ranks, either each once and in order, or shuffled for training.

    In order: rank r gets positions r, r + W, ...; where the number of samples is no multiple of the
    W ranks, the last ones get a repeat, marked as such, because ranks must take equally many steps.
    Shuffled: each batch is full; an epoch's last one is filled up from its beginning.

    What is drawn depends on (seed, epoch, position) only: not on workers, nor on whether the run was
    interrupted; and the union of W ranks' batches of b is the batch of one rank with b * W.

    A ``DistributedSampler``, so that Lightning keeps it and calls :meth:`set_epoch`.

    Args:
        size: Number of samples n.
        batch_size: Per rank; needed to fill batches.
        ordered_epochs: The epochs that go in order and without augmentation; ``None``: all.
        seed: Of the whole run.
        ranks: W.
        rank: This one.
    """

    def __init__(
        self,
        size: int,
        batch_size: int,
        ordered_epochs: Collection[int] | None,
        seed: int,
        ranks: int = 1,
        rank: int = 0,
    ) -> None:
        self.size, self.batch_size, self.ordered_epochs = size, batch_size, ordered_epochs
        self.seed, self.num_replicas, self.rank, self.epoch = seed, ranks, rank, 0

    @property
    def ordered(self) -> bool:
        """Whether the current epoch goes in order."""
        return self.ordered_epochs is None or self.epoch in self.ordered_epochs

    def __len__(self) -> int:
        unit = self.num_replicas * (1 if self.ordered else self.batch_size)
        return -(-self.size // unit) * unit // self.num_replicas

    def __iter__(self) -> Iterator[Draw]:
        places = range(self.rank, len(self) * self.num_replicas, self.num_replicas)
        if self.ordered:
            for place in places:
                yield Draw(place % self.size, None, place >= self.size)
        else:
            rng = np.random.default_rng((self.seed, self.epoch))
            order = rng.permutation(self.size)
            seeds = rng.integers(2**32, size=len(self) * self.num_replicas)
            for place in places:
                yield Draw(int(order[place % self.size]), int(seeds[place]), place >= self.size)
