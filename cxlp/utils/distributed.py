"""Collectives that also work in a single process, so that callers need not ask where they run."""

import os
from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor
from torch import distributed as dist

from cxlp.utils.errors import CxlpError

T = TypeVar("T")


def is_distributed() -> bool:
    """Whether a process group of several ranks is up."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def rank() -> int:
    """This process's rank; 0 where there is only one."""
    return dist.get_rank() if is_distributed() else 0


def world_size() -> int:
    """The number of ranks; 1 where there is only one."""
    return dist.get_world_size() if is_distributed() else 1


def barrier() -> None:
    """Wait for all ranks.

    An all-reduce of one number, because ``dist.barrier`` guesses a CUDA device under NCCL.
    """
    if is_distributed():
        device = torch.device("cuda", torch.cuda.current_device()) if _on_nccl() else torch.device("cpu")
        all_sum(torch.zeros(1, device=device))


def all_sum(tensor: Tensor) -> Tensor:
    """Sum a tensor over all ranks, in place; every rank gets the same bits.

    Args:
        tensor: Any shape; the same shape on each rank. Under NCCL a CPU tensor goes through the GPU.

    Returns:
        The same tensor.
    """
    if is_distributed():
        if _on_nccl() and tensor.device.type == "cpu":
            moved = tensor.to(torch.device("cuda", torch.cuda.current_device()))
            dist.all_reduce(moved)
            tensor.copy_(moved)
        else:
            dist.all_reduce(tensor)
    return tensor


def from_rank_zero(tensor: Tensor) -> Tensor:
    """Overwrite a tensor by rank 0's, in place, and return it."""
    if is_distributed():
        if rank() != 0:
            tensor.zero_()
        all_sum(tensor)
    return tensor


def gather_objects(value: T) -> list[T]:
    """Collect a small picklable value of each rank, in the order of the ranks; every rank gets all of them."""
    if not is_distributed():
        return [value]
    found = [value] * world_size()
    dist.all_gather_object(found, value)
    return found


def on_rank_zero(work: Callable[[], None]) -> None:
    """Do something on rank 0 only; where it fails, all ranks fail, so that none waits for another.

    Raises:
        CxlpError: On the other ranks, if it failed.
    """
    failure: Exception | None = None
    if rank() == 0:
        try:
            work()
        except Exception as error:  # raised below, when the others know
            failure = error
    failed = int(all_sum(torch.tensor([int(failure is not None)])))
    if failure is not None:
        raise failure
    if failed:
        raise CxlpError("process 0 has failed: see its message")


def _on_nccl() -> bool:
    return dist.get_backend() == "nccl"


def usable_cores() -> int:
    """The processor cores that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
