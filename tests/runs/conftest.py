"""Working directories for runs."""

from pathlib import Path

import pytest

from tests.generate import write_cub200
from tests.small_run import write_pictures


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A new working directory with the pictures of :mod:`tests.small_run`."""
    monkeypatch.chdir(tmp_path)
    write_pictures(tmp_path)
    return tmp_path


@pytest.fixture
def birds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A new working directory with ``data/CUB_200_2011``, see :mod:`tests.runs.birds`."""
    monkeypatch.chdir(tmp_path)
    write_cub200(tmp_path / "data")
    return tmp_path
