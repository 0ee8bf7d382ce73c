"""Interface for fitting a head without gradients, in one pass over the training images' maps.

The caller, :class:`~cxlp.frozen.fit.FrozenFit` or a script, gets a :class:`HeadFit` from the head, passes the maps of
all training images to its ``observe`` batch by batch, stores these maps, and calls its ``solve``, which can read the
stored maps any number of times. With several ranks, each rank observes its own images, and all ranks call ``solve``
together. Sums over ranks are in :mod:`cxlp.utils.distributed`.
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
    """Description of the training images that is known before the pass over them.

    Attributes:
        images: Number n of images on all ranks.
        classes: Number of classes.
        per_image: Maximum number of local features per image, at random places, for PCA and codebooks.
        device: Device of the maps.
    """

    images: int
    classes: int
    per_image: int
    device: torch.device


class Rows(Protocol):
    """Numbers on disk, one row per image."""

    def write(self, positions: Tensor, values: Tensor) -> None:
        """Write rows ``(b, width)`` at positions ``(b,)``."""

    def read(self, start: int, stop: int) -> Tensor:
        """Read rows ``start`` to ``stop - 1``: ``(stop - start, width)``."""


class KeptMaps(Protocol):
    """Stored maps that a head has observed.

    Attributes:
        labels: Labels of all training images: ``(n,)`` or ``(n, classes)``, see :mod:`cxlp.utils.labels`.
    """

    @property
    def labels(self) -> Tensor:
        """See the class."""

    def __iter__(self) -> Iterator[tuple[tuple[Tensor, ...], Tensor]]:
        """Iterate over this rank's maps of ``b`` images each, with the positions ``(b,)`` of the images."""

    def scratch(self, width: int) -> AbstractContextManager[Rows]:
        """Context with temporary rows of ``width`` numbers on disk, one for each of this rank's images."""

    def measure(self, phase: str) -> AbstractContextManager[None]:
        """Return a context that records the run time of its body under the name ``phase``."""


class HeadFit(ABC):
    """Fit of a head to the training images."""

    @abstractmethod
    def observe(self, maps: tuple[Tensor, ...], positions: Tensor) -> None:
        """Process a batch.

        Args:
            maps: The arguments of the head's ``forward``: ``(b * V, C, H, W)`` for each layer.
            positions: ``(b,)``, the position of each image among the n. Random choices depend only on this position.
        """

    @abstractmethod
    def solve(self, kept: KeptMaps) -> None:
        """Set the head's parameters and buffers, equal on all ranks. Called after all images were observed."""
