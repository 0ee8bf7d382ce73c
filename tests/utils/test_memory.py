"""The amount of free memory."""

import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

from cxlp.utils import memory

LIMITS = ("memory.max", "memory.current")


def group(folder: Path, limit: str, taken: int, stat: str | None = None) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "memory.max").write_text(f"{limit}\n")
    (folder / "memory.current").write_text(f"{taken}\n")
    if stat is not None:
        (folder / "memory.stat").write_text(stat)


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "membership").write_text("3:cpu:/elsewhere\n0::/job/step\n")
    monkeypatch.setattr(memory, "_MEMBERSHIP", str(tmp_path / "membership"))
    monkeypatch.setattr(memory, "_LIMITS", ((str(tmp_path / "root"), *LIMITS),))
    return tmp_path / "root"


def free() -> int:
    found = memory.free_memory()
    assert found is not None
    return found


def test_free_memory_is_at_most_the_machines() -> None:
    assert 0 < free() <= os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def test_a_container_may_have_less(root: Path) -> None:
    stat = "anon 700000\nactive_file 200000\ninactive_file 300000\nslab 9\n"
    group(root, "3000000", 1_500_000, stat)
    assert free() == 2_000_000
    group(root, "3000000", 4_000_000)
    assert free() == 0
    group(root, "max", 4_000_000)
    assert free() > 2_000_000


def test_a_limit_applies_if_the_cache_is_unknown(root: Path) -> None:
    group(root, "3000000", 1_000_000)
    assert free() == 2_000_000


def test_limits_of_the_group_and_its_parents_apply(root: Path) -> None:
    group(root / "job", "5000000", 1_000_000)
    group(root / "job" / "step", "max", 1_000_000)
    group(root / "elsewhere", "10", 0)
    assert free() == 4_000_000
    group(root / "job" / "step", "3000000", 1_000_000)
    assert free() == 2_000_000


def test_groups_of_another_namespace_are_ignored(root: Path) -> None:
    (root.parent / "membership").write_text("0::/../outside\n")
    group(root.parent / "outside", "10", 0)
    group(root, "3000000", 1_000_000)
    assert free() == 2_000_000


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="of the GNU C library only")
def test_freed_memory_is_used_again() -> None:
    program = """
import resource, sys
import torch
from cxlp.utils.memory import keep_freed_memory
if sys.argv[1] == "kept":
    keep_freed_memory()
def run():
    for _ in range(10):
        torch.ones(10 << 20)  # 40 MiB
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
before = run()
print(run() - before)
"""
    faults = [
        int(subprocess.run([sys.executable, "-c", program, how], capture_output=True, text=True, check=True).stdout)
        for how in ("given back", "kept")
    ]
    assert faults[1] < 100 < faults[0]  # new pages, of 4 KiB to 2 MiB
