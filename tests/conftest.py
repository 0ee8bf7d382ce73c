"""Fixtures that are used by several folders of tests."""

import os

# The tensors of tests are small, so several threads are slower than one, especially if tests run in parallel.
# This is set before torch is imported, and inherited by the processes that tests start.
os.environ.setdefault("OMP_NUM_THREADS", "1")

from pathlib import Path

import pytest

from tests.generate import write_cub200, write_h3d, write_mit67, write_voc2007


@pytest.fixture
def cub200(tmp_path: Path) -> Path:
    """A tiny CUB_200_2011: 3 classes, 6 + 3 images each."""
    return write_cub200(tmp_path)


@pytest.fixture
def mit67(tmp_path: Path) -> Path:
    """A tiny MIT Indoor-67: 3 classes, 6 + 3 images each."""
    return write_mit67(tmp_path)


@pytest.fixture
def voc2007(tmp_path: Path) -> Path:
    """A tiny Pascal VOC 2007: 2 + 1 + 1 images for each of 20 classes."""
    return write_voc2007(tmp_path, (2, 1, 1), size=32)


@pytest.fixture
def h3d(tmp_path: Path) -> Path:
    """A tiny attributes_dataset: 18 + 9 people."""
    return write_h3d(tmp_path, 18, 9)


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of official data files that the environment variable CXLP_REAL_DATA names."""
    folder = os.environ.get("CXLP_REAL_DATA")
    if not folder:
        pytest.skip("CXLP_REAL_DATA names no folder of official files")
    return Path(folder)
