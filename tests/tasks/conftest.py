"""Fixtures of the LightningModules' tests."""

from pathlib import Path

import pytest

from cxlp.data.folder import Folder
from tests.generate import write_folder
from tests.tasks.small import pictures


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three kinds of pictures, four of each for training, two for the test."""
    return write_folder(tmp_path_factory.mktemp("pictures"), train=4, test=2, size=40)


@pytest.fixture(scope="session")
def odd(tmp_path_factory: pytest.TempPathFactory) -> Folder:
    """Eleven training images and four held out: odd numbers for batches of four and for two processes."""
    root = write_folder(tmp_path_factory.mktemp("odd"), train=5, test=2, size=40)
    data = pictures(root, image_size=32, validation=4 / 15)
    data.setup()
    return data
