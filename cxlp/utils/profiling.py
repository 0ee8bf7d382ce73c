"""Wall-clock time by phase of a run."""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch


class PhaseTimes(dict[str, float]):
    """Seconds by phase, in the order in which the phases began; repeated phases add up."""

    @contextmanager
    def measure(self, phase: str) -> Iterator[None]:
        """Time what runs inside a ``with``."""
        start = self.now()
        self.setdefault(phase, 0.0)
        try:
            yield
        finally:
            self[phase] += self.now() - start

    @staticmethod
    def now() -> float:
        """The clock, after work that a GPU still has under way."""
        if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]  # a run on the CPU opens no GPU
            torch.cuda.synchronize()
        return time.perf_counter()


def peak_memory() -> dict[str, int]:
    """Bytes that this process held at most so far, in memory and on the GPU (loading processes not counted)."""
    found = {}
    if sys.platform == "linux":  # not ru_maxrss, in which a process inherits the peak of the one that started it
        status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
        found["peak_bytes"] = int(status["VmHWM"].split()[0]) * 1024
    elif sys.platform == "darwin":
        import resource

        found["peak_bytes"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    if torch.cuda.is_available():
        found["peak_gpu_bytes"] = torch.cuda.max_memory_allocated()
    return found
