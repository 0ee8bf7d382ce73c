"""Fixtures of the LightningModules' tests."""

from pathlib import Path

import pytest

from tests.generate import write_folder


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three kinds of pictures, four of each for training, two for the test."""
    return write_folder(tmp_path_factory.mktemp("pictures"), train=4, test=2, size=40)
