"""How a head is fitted without gradients: one pass over the training images' maps, then a solution.

Who runs the fit (:class:`~cxlp.frozen.fit.FrozenFit`, or a script) asks a head for its :class:`HeadFit`, has it observe
the maps of all training images batch by batch, keeps these maps, and has it solve: then the maps can be read again,
as often as the head likes. With several processes (ranks), each observes its own images, and all solve together; sums
over ranks are in :mod:`cxlp.utils.distributed`.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor


@dataclass(frozen=True)
class TrainingSet:
    """What is known of the training images before their pass.

    Attributes:
        images: n, how many there are over all ranks.
        classes: Number of classes.
        per_image: How many local features each image gives to PCA and codebooks, at random places, if it has so many.
        device: Where the maps are.
    """

    images: int
    classes: int
    per_image: int
    device: torch.device


class Rows(Protocol):
    """Numbers on disk, one row for each of some images."""

    def write(self, positions: Tensor, values: Tensor) -> None:
        """Write rows ``(b, width)`` at their positions ``(b,)``."""

    def read(self, start: int, stop: int) -> Tensor:
        """Read rows ``start`` to ``stop``: ``(stop - start, width)``."""


class KeptMaps(Protocol):
    """The maps that a head has observed, to be read again.

    Attributes:
        labels: Those of all training images: ``(n,)`` or ``(n, classes)``, see :mod:`cxlp.utils.labels`.
    """

    @property
    def labels(self) -> Tensor:
        """See the class."""

    def __iter__(self) -> Iterator[tuple[tuple[Tensor, ...], Tensor]]:
        """Go through this rank's maps: a head's maps of ``b`` images, and their positions ``(b,)`` among the n."""

    def scratch(self, width: int) -> AbstractContextManager[Rows]:
        """Give room on disk for a row of numbers for each of this rank's images, until the ``with`` ends."""

    def measure(self, phase: str) -> AbstractContextManager[None]:
        """Time what runs inside a ``with``."""


class HeadFit(ABC):
    """What a head learns from the training images."""

    @abstractmethod
    def observe(self, maps: tuple[Tensor, ...], positions: Tensor) -> None:
        """Take in a batch.

        Args:
            maps: What the head's forward takes: ``(b * V, C, H, W)`` of each layer.
            positions: ``(b,)``, each image's place among the n; random choices depend on it alone.
        """

    @abstractmethod
    def solve(self, kept: KeptMaps) -> None:
        """Set the head's parameters and buffers, the same on all ranks; called once all images were observed."""
