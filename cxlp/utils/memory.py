"""How much memory this process may still take."""

import ctypes
import os
import platform
from pathlib import Path

_MEMBERSHIP = "/proc/self/cgroup"
#: Folders of control groups, the files that limit their memory, and those that say what they take, by version.
_LIMITS = (
    ("/sys/fs/cgroup", "memory.max", "memory.current"),
    ("/sys/fs/cgroup/memory", "memory.limit_in_bytes", "memory.usage_in_bytes"),
)
#: Names of mallopt(3)'s parameters in glibc's malloc.h.
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3


def free_memory() -> int | None:
    """Bytes of memory that are free on this machine, or in this process's control groups where that is less.

    What the system holds only to avoid reading files again counts as free. Where the system does not tell (other than
    Linux), half of its memory is taken for free; ``None`` where even that is unknown.
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
    """Folders of this process's control group and those above it, to the root: each of them has a limit of its own."""
    try:
        lines = [line.split(":", 2) for line in Path(_MEMBERSHIP).read_text().splitlines()]
    except OSError:
        return [root]
    names = [name for _, kinds, name in lines if kinds == "" or "memory" in kinds.split(",")]  # "": version 2
    folders = {root}
    for name in names:
        own = root / name.lstrip("/")
        if ".." not in own.parts:  # of another namespace: not to be seen from here
            folders |= {own, *(above for above in own.parents if root in above.parents)}
    return sorted(folders)


def _file_cache(stat: Path) -> int:
    """Bytes of a group's memory that only hold files that were read or written: they count as taken there."""
    try:
        lines = [line.split() for line in stat.read_text().splitlines()]
    except OSError:
        return 0
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
