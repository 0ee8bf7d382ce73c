"""Collectives that also work in a single process, so that callers need no special case."""

import os
import socket
from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor
from torch import distributed as dist

from cxlp.utils.errors import CxlpError
from cxlp.utils.processes import STOPPED

T = TypeVar("T")


def is_distributed() -> bool:
    """Return whether a process group with several ranks is initialised."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def rank() -> int:
    """Return the rank of this process; 0 in a single process."""
    return dist.get_rank() if is_distributed() else 0


def world_size() -> int:
    """Return the number of ranks; 1 in a single process."""
    return dist.get_world_size() if is_distributed() else 1


def local_world_size() -> int:
    """Return the number of ranks on this machine, which share its cores. All ranks must call it together."""
    if "LOCAL_WORLD_SIZE" in os.environ:  # torchrun
        return int(os.environ["LOCAL_WORLD_SIZE"])
    machine = socket.gethostname()
    return gather_objects(machine).count(machine)


def barrier() -> None:
    """Wait for all ranks.

    This is an all-reduce of one number, because ``dist.barrier`` guesses the CUDA device with NCCL.
    """
    if is_distributed():
        device = torch.device("cuda", torch.cuda.current_device()) if _on_nccl() else torch.device("cpu")
        all_sum(torch.zeros(1, device=device))


def all_sum(tensor: Tensor) -> Tensor:
    """Sum a tensor over all ranks in place. The result is bitwise equal on all ranks.

    Args:
        tensor: A tensor of any shape, equal on all ranks. With NCCL, a CPU tensor is copied to the GPU and back.

    Returns:
        The same tensor object.
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
    """Overwrite a tensor in place with the values of rank 0, and return the tensor."""
    if is_distributed():
        if rank() != 0:
            tensor.zero_()
        all_sum(tensor)
    return tensor


def gather_objects(value: T) -> list[T]:
    """Return the small, picklable values of all ranks, in the order of ranks, on every rank."""
    if not is_distributed():
        return [value]
    found = [value] * world_size()
    dist.all_gather_object(found, value)
    return found


def ask_rank_zero(ask: Callable[[], int]) -> int:
    """Compute an integer on rank 0 and return it on all ranks. If rank 0 fails, all ranks fail.

    Raises:
        CxlpError: On the other ranks, if rank 0 fails. Rank 0 raises the original exception.
    """
    failure: Exception | None = None
    answer = 0
    if rank() == 0:
        try:
            answer = int(ask())
        except Exception as error:  # raised below, after the other ranks have been informed
            failure = error
    told = all_sum(torch.tensor([int(failure is not None), answer]))
    if failure is not None:
        raise failure
    if told[0]:
        raise CxlpError(STOPPED)
    return int(told[1])


def on_rank_zero(work: Callable[[], None]) -> None:
    """Call a function on rank 0, while all ranks wait. If it fails, all fail, see :func:`ask_rank_zero`."""

    def done() -> int:
        work()
        return 0

    ask_rank_zero(done)


def _on_nccl() -> bool:
    return dist.get_backend() == "nccl"


def usable_cores() -> int:
    """Return the number of CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
