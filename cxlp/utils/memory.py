"""Free memory of this machine, and settings of the memory allocator."""

import ctypes
import os
import platform
from pathlib import Path

_MEMBERSHIP = "/proc/self/cgroup"
#: Control groups of version 2 and version 1: root folder, file with the memory limit, file with the memory usage.
_LIMITS = (
    ("/sys/fs/cgroup", "memory.max", "memory.current"),
    ("/sys/fs/cgroup/memory", "memory.limit_in_bytes", "memory.usage_in_bytes"),
)
#: Parameters M_TRIM_THRESHOLD and M_MMAP_THRESHOLD of mallopt(3), from glibc's malloc.h.
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3


def free_memory() -> int | None:
    """Return the free memory in bytes, on this machine or in this process's control groups if less.

    The system's file cache counts as free. On systems other than Linux, half of the total memory is assumed to be free;
    ``None`` if the total is unknown.
    """
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        free = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration):
        try:
            return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
        except (AttributeError, OSError, ValueError):
            return None
    for root, limit, usage in _LIMITS:
        for folder in _groups(Path(root)):
            try:
                most, taken = int((folder / limit).read_text()), int((folder / usage).read_text())
            except (OSError, ValueError):  # no such control group, or "max"
                continue
            free = min(free, most - taken + _file_cache(folder / "memory.stat"))
    return max(0, free)


def _groups(root: Path) -> list[Path]:
    """Return the folders of this process's control group and its parents, each with its own limit."""
    try:
        lines = [line.split(":", 2) for line in Path(_MEMBERSHIP).read_text().splitlines()]
    except OSError:
        return [root]
    names = [name for _, kinds, name in lines if kinds == "" or "memory" in kinds.split(",")]  # "": version 2
    folders = {root}
    for name in names:
        own = root / name.lstrip("/")
        if ".." not in own.parts:  # groups of another namespace are not visible
            folders |= {own, *(above for above in own.parents if root in above.parents)}
    return sorted(folders)


def _file_cache(stat: Path) -> int:
    """Return the bytes of a group's file cache, which its memory usage includes."""
    try:
        lines = [line.split() for line in stat.read_text().splitlines()]
    except OSError:
        return 0
    return sum(int(value) for name, value in lines if name in ("inactive_file", "active_file"))


def keep_freed_memory() -> None:
    """Let glibc keep up to half a gigabyte of freed memory for the next tensors.

    By default, glibc returns large blocks to the system, which then clears new pages for each operation on large
    tensors. Blocks of more than 64 MiB are still returned at once. With another C library, nothing changes.
    """
    if platform.libc_ver()[0] == "glibc":
        library = ctypes.CDLL(None)
        library.mallopt(_MMAP_THRESHOLD, 64 << 20)
        library.mallopt(_TRIM_THRESHOLD, 512 << 20)
