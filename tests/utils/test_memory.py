"""How much memory is free."""

import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

from cxlp.utils import memory


def test_it_is_what_the_machine_has_at_most() -> None:
    assert 0 < memory.free_memory() <= os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def test_a_container_may_have_less(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "max").write_text("3000000\n")
    (tmp_path / "now").write_text("1500000\n")
    (tmp_path / "memory.stat").write_text("anon 700000\nactive_file 200000\ninactive_file 300000\nslab 9\n")
    monkeypatch.setattr(memory, "_LIMITS", ((str(tmp_path / "max"), str(tmp_path / "now")),))
    assert memory.free_memory() == 2_000_000
    (tmp_path / "now").write_text("4000000\n")
    assert memory.free_memory() == 0
    (tmp_path / "max").write_text("max\n")
    assert memory.free_memory() > 2_000_000


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
