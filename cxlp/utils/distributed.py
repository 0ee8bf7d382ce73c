"""Collectives that also work in a single process, so that callers need not ask where they run."""

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
    """Whether a process group of several ranks is up."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def rank() -> int:
    """This process's rank; 0 where there is only one."""
    return dist.get_rank() if is_distributed() else 0


def world_size() -> int:
    """The number of ranks; 1 where there is only one."""
    return dist.get_world_size() if is_distributed() else 1


def local_world_size() -> int:
    """The number of ranks on this machine, which share its cores; all ranks call it together."""
    if "LOCAL_WORLD_SIZE" in os.environ:  # torchrun
        return int(os.environ["LOCAL_WORLD_SIZE"])
    machine = socket.gethostname()
    return gather_objects(machine).count(machine)


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


def ask_rank_zero(ask: Callable[[], int]) -> int:
    """Compute an integer on rank 0 only, and return it on all ranks; where it fails, all fail, and none waits.

    Raises:
        CxlpError: On the other ranks, if it failed; on rank 0, what it failed with.
    """
    failure: Exception | None = None
    answer = 0
    if rank() == 0:
        try:
            answer = int(ask())
        except Exception as error:  # raised below, when the others know
            failure = error
    told = all_sum(torch.tensor([int(failure is not None), answer]))
    if failure is not None:
        raise failure
    if told[0]:
        raise CxlpError(STOPPED)
    return int(told[1])


def on_rank_zero(work: Callable[[], None]) -> None:
    """Do something on rank 0 only; all ranks wait for it, and fail where it fails, see :func:`ask_rank_zero`."""

    def done() -> int:
        work()
        return 0

    ask_rank_zero(done)


def _on_nccl() -> bool:
    return dist.get_backend() == "nccl"


def usable_cores() -> int:
    """The processor cores that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
