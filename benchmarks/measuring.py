"""Helpers of the benchmarks: fresh processes, peak memory, and the name of the processor.

Importing this module also makes the package ``cxlp`` importable from the checkout if it is not installed.
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
    """Run a function in a new process, so that other work does not affect its peak memory."""
    # Freed arrays are returned to the system at once, so that the peak counts live arrays only.
    os.environ["MALLOC_MMAP_THRESHOLD_"] = str(1 << 16)
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(work, *args, **kwargs).result()


def peak_bytes() -> int:
    """Return the peak memory of this process, since its start or since :func:`reset_peak`."""
    # On Linux, ru_maxrss is not used, because a process inherits its parent's value.
    if platform.system() == "Linux":
        return _status("VmHWM")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if platform.system() == "Darwin" else peak * 1024


def reset_peak() -> int:
    """Reset the peak memory if the system supports it; return the bytes to subtract from the next peak."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return peak_bytes()  # the growth of the peak is a lower bound
    return _status("VmRSS")


def machine() -> str:
    """Return the name of the processor and the number of its logical cores."""
    info = Path("/proc/cpuinfo")
    names = [line for line in info.read_text().splitlines() if line.startswith("model name")] if info.exists() else []
    name = names[0].partition(":")[2].strip() if names else platform.processor()
    return f"{name}, {os.cpu_count()} logical cores"


def _status(field: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024
    raise OSError(f"no {field} in /proc/self/status")
