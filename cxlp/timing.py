"""Wall-clock time by phase of a run."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

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
