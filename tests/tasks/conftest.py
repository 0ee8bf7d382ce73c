"""Fixtures for tests of the LightningModules."""

from pathlib import Path

import pytest

from cxlp.data.folder import Folder
from tests.generate import write_folder
from tests.tasks.small import pictures


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three kinds of pictures: four training and two test pictures of each."""
    return write_folder(tmp_path_factory.mktemp("pictures"), train=4, test=2, size=40)


@pytest.fixture(scope="session")
def odd(tmp_path_factory: pytest.TempPathFactory) -> Folder:
    """Eleven training and four held-out images: odd numbers for batches of four and for two processes."""
    root = write_folder(tmp_path_factory.mktemp("odd"), train=5, test=2, size=40)
    data = pictures(root, image_size=32, validation=4 / 15)
    data.setup()
    return data
