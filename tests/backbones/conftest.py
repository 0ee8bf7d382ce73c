"""Fixtures for tests of backbones."""

import pytest
import torch
from torch import Tensor

from cxlp.backbones.backbone import Backbone
from tests.backbones.small import build


@pytest.fixture(scope="module")
def squeeze() -> Backbone:
    return build("squeezenet1_0")


@pytest.fixture(scope="module")
def caffe() -> Backbone:
    return build("caffenet", ("conv4", "conv5"))


@pytest.fixture(scope="module")
def photos() -> Tensor:
    return torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
