"""Reading of many files, one by one or in batches, which continues after files that cannot be read."""

import signal
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from cxlp.data.transforms import Transform
from cxlp.deploy.pictures import prepared
from cxlp.utils.errors import CxlpError

T = TypeVar("T")


def read(path: str, transform: Transform) -> tuple[Tensor, float] | str:
    """Read a file without raising an error.

    Returns:
        The network's input ``(3, T, T)`` uint8 and height divided by width of what it shows, or an error message if the
        file cannot be read.
    """
    file = Path(path)
    try:
        if file.is_dir():
            next(file.iterdir(), None)  # raises if the folder cannot be listed
        return prepared(file, transform)
    except CxlpError as error:
        return str(error)
    except Exception as error:  # decoders and file systems raise many types
        return f"cannot read {path}: {error} ({type(error).__name__})"


#: Paths, each with an error message that is empty if the file was read, and the inputs ``(b, 3, T, T)`` of those files.
Batch = tuple[list[tuple[str, str]], Tensor]


class _Files(Dataset[tuple[str, Tensor | str]]):
    """Data set that is indexed by path. An item is the path and the network's input or an error message."""

    def __init__(self, transform: Transform) -> None:
        self.transform = transform

    def __getitem__(self, path: str) -> tuple[str, Tensor | str]:
        found = read(path, self.transform)
        return path, found if isinstance(found, str) else found[0]


def read_batches(paths: Iterable[str], transform: Transform, batch_size: int, workers: int = 0) -> Iterator[Batch]:
    """Read any number of files in batches, and continue after files that cannot be read.

    Args:
        paths: Paths of files. They are read a few batches ahead, never all at once.
        transform: The preprocessing of images.
        batch_size: Number of files per batch.
        workers: Number of worker processes for decoding; 0: decode in this process.
    """
    loader: DataLoader[Any] = DataLoader(
        _Files(transform),
        batch_sampler=batches(paths, batch_size),  # the indices are paths
        num_workers=workers,
        collate_fn=collate,
        worker_init_fn=_ignore_interrupts,
    )
    yield from loader


def collate(items: Sequence[tuple[str, Tensor | str]]) -> Batch:
    """Collate paths, each with the network's input or an error message, into a batch."""
    pictures = [found for _, found in items if isinstance(found, Tensor)]
    errors = [(path, found if isinstance(found, str) else "") for path, found in items]
    return errors, torch.stack(pictures) if pictures else torch.empty(0)


def _ignore_interrupts(worker: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def batches(items: Iterable[T], size: int) -> Iterator[list[T]]:
    """Iterate lazily over lists of ``size`` items."""
    iterator = iter(items)
    while batch := list(islice(iterator, size)):
        yield batch
