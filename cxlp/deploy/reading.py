"""Files read one by one or in batches, of which none may stop the others."""

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
    """Read one of many files, of which none may stop the others.

    Returns:
        The network's input ``(3, T, T)`` uint8, and the height of what it shows in parts of the width; or what is wrong
        with the file.
    """
    file = Path(path)
    try:
        if file.is_dir():
            next(file.iterdir(), None)  # raises where it cannot be listed
        return prepared(file, transform)
    except CxlpError as error:
        return str(error)
    except Exception as error:  # decoders and file systems raise many kinds
        return f"cannot read {path}: {error} ({type(error).__name__})"


#: Paths, each with what is wrong with the file, and the pictures ``(b, 3, T, T)`` of the others.
Batch = tuple[list[tuple[str, str]], Tensor]


class _Files(Dataset[tuple[str, Tensor | str]]):
    """Files by their paths: an item is the path, and its picture or what is wrong with it."""

    def __init__(self, transform: Transform) -> None:
        self.transform = transform

    def __getitem__(self, path: str) -> tuple[str, Tensor | str]:
        found = read(path, self.transform)
        return path, found if isinstance(found, str) else found[0]


def read_batches(paths: Iterable[str], transform: Transform, batch_size: int, workers: int = 0) -> Iterator[Batch]:
    """Read any number of files, batch by batch; one that cannot be read stops nothing.

    Args:
        paths: Taken a few batches ahead, never all at once.
        transform: Makes a network's input of a picture.
        batch_size: Files in a batch.
        workers: Processes that decode; 0: this one.
    """
    loader: DataLoader[Any] = DataLoader(
        _Files(transform),
        batch_sampler=batches(paths, batch_size),  # what it calls indices are paths here
        num_workers=workers,
        collate_fn=collate,
        worker_init_fn=_leave_interrupts_to_the_main_process,
    )
    yield from loader


def collate(items: Sequence[tuple[str, Tensor | str]]) -> Batch:
    """Make a batch of paths, each with its picture or what is wrong with the file."""
    pictures = [found for _, found in items if isinstance(found, Tensor)]
    errors = [(path, found if isinstance(found, str) else "") for path, found in items]
    return errors, torch.stack(pictures) if pictures else torch.empty(0)


def _leave_interrupts_to_the_main_process(worker: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def batches(items: Iterable[T], size: int) -> Iterator[list[T]]:
    """Go through any number of things, so many at a time."""
    iterator = iter(items)
    while batch := list(islice(iterator, size)):
        yield batch
