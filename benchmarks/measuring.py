"""What the benchmarks share: fresh processes and their peak memory.

Importing this also makes the package beside this folder importable where it is not installed.
"""

import multiprocessing
import os
import platform
import resource
import sys
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import ParamSpec, TypeVar

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

P = ParamSpec("P")
R = TypeVar("R")


def in_fresh_process(work: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
    """Run a function in a process of its own, so that its peak memory is its own."""
    # Large arrays go back to the system once freed: the peak is that of live ones, not of a cache.
    os.environ["MALLOC_MMAP_THRESHOLD_"] = str(1 << 16)
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(work, *args, **kwargs).result()


def peak_bytes() -> int:
    """The most memory that this process ever held, or since :func:`reset_peak`."""
    # Linux: not ru_maxrss, in which a process inherits the peak of the one that started it.
    if platform.system() == "Linux":
        return _status("VmHWM")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if platform.system() == "Darwin" else peak * 1024


def reset_peak() -> int:
    """Forget the peak so far, where the system can; returns what to subtract from the next."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return peak_bytes()  # growth of the peak is then a lower bound
    return _status("VmRSS")


def machine() -> str:
    """The processor, in words."""
    info = Path("/proc/cpuinfo")
    names = [line for line in info.read_text().splitlines() if line.startswith("model name")] if info.exists() else []
    name = names[0].partition(":")[2].strip() if names else platform.processor()
    return f"{name}, {os.cpu_count()} logical cores"


def _status(field: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024
    raise OSError(f"no {field} in /proc/self/status")
