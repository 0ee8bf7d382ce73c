"""How much memory this process may still take."""

import os
from pathlib import Path

#: Files that limit a container's memory, and say what it takes, by the version of control groups.
_LIMITS = (
    ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
    ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory/memory.usage_in_bytes"),
)


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
