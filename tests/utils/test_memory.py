"""How much memory is free."""

import os
from pathlib import Path

import pytest

from cxlp.utils import memory


def test_it_is_what_the_machine_has_at_most() -> None:
    assert 0 < memory.free_memory() <= os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def test_a_container_may_have_less(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "max").write_text("3000000\n")
    (tmp_path / "now").write_text("1000000\n")
    monkeypatch.setattr(memory, "_LIMITS", ((str(tmp_path / "max"), str(tmp_path / "now")),))
    assert memory.free_memory() == 2_000_000
    (tmp_path / "now").write_text("4000000\n")
    assert memory.free_memory() == 0
    (tmp_path / "max").write_text("max\n")
    assert memory.free_memory() > 2_000_000
