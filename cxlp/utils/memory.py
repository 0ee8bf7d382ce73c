"""How much memory this process may still take."""

import ctypes
import os
import platform
from pathlib import Path

#: Files that limit a container's memory, and say what it takes, by the version of control groups.
_LIMITS = (
    ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
    ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory/memory.usage_in_bytes"),
)
#: Names of mallopt(3)'s parameters in glibc's malloc.h.
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3


def free_memory() -> int:
    """Bytes of memory that are free on this machine, or in this container where that is less.

    What the system holds only to avoid reading files again counts as free. Where the system does not tell (other than
    Linux), half of its memory is taken for free; 0 where even that is unknown.
    """
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        free = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration):
        try:
            return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
        except (AttributeError, OSError, ValueError):
            return 0
    for limit, usage in _LIMITS:
        try:
            most, taken = int(Path(limit).read_text()), int(Path(usage).read_text())
            free = min(free, most - taken + _file_cache(Path(usage).with_name("memory.stat")))
        except (OSError, ValueError):  # no such control group, or "max"
            continue
    return max(0, free)


def _file_cache(stat: Path) -> int:
    """Bytes of a container's memory that only hold files that were read or written: they count as taken there."""
    lines = (line.split() for line in stat.read_text().splitlines())
    return sum(int(value) for name, value in lines if name in ("inactive_file", "active_file"))


def keep_freed_memory() -> None:
    """Have the C library keep what is freed, up to half a gigabyte, for the next tensors.

    Otherwise glibc hands large blocks back to the system, which clears new pages for the next operation on large
    tensors, again and again. Blocks of more than 64 MiB still go back at once. Where the C library is another one,
    nothing changes.
    """
    if platform.libc_ver()[0] == "glibc":
        library = ctypes.CDLL(None)
        library.mallopt(_MMAP_THRESHOLD, 64 << 20)
        library.mallopt(_TRIM_THRESHOLD, 512 << 20)
