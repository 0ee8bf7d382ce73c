"""Wall-clock time per phase of a run, and peak memory."""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch


class PhaseTimes(dict[str, float]):
    """Seconds per phase, in the order in which the phases started. Repeated phases are summed."""

    @contextmanager
    def measure(self, phase: str) -> Iterator[None]:
        """Return a context that adds the run time of its body to a phase."""
        start = self.now()
        self.setdefault(phase, 0.0)
        try:
            yield
        finally:
            self[phase] += self.now() - start

    @staticmethod
    def now() -> float:
        """Return the time in seconds, after pending work on the GPU is finished."""
        if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]  # does not initialise CUDA for runs on the CPU
            torch.cuda.synchronize()
        return time.perf_counter()


def peak_memory() -> dict[str, int]:
    """Return this process's peak memory and peak GPU memory so far, in bytes, without loader workers."""
    found = {}
    if sys.platform == "linux":  # not ru_maxrss, which a process inherits from its parent
        status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
        found["peak_bytes"] = int(status["VmHWM"].split()[0]) * 1024
    elif sys.platform == "darwin":
        import resource

        found["peak_bytes"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    if torch.cuda.is_available():
        found["peak_gpu_bytes"] = torch.cuda.max_memory_allocated()
    return found
