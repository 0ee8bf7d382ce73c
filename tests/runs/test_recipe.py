"""The recipe of a run: what of it contradicts itself."""

from dataclasses import replace
from typing import Literal

import pytest

from cxlp.runs.recipe import ModelConfig
from cxlp.utils.errors import CxlpError
from tests.tasks.small import CLASSES, NETWORK


@pytest.mark.parametrize("method", ["fisher", "sparse_fisher"])
def test_a_codebook_is_not_trained_from_scratch(method: Literal["fisher", "sparse_fisher"]) -> None:
    fisher = replace(NETWORK, pooling=replace(NETWORK.pooling, method=method, atoms=4))
    for network in (fisher, replace(NETWORK, also=(fisher.pooling,))):
        with pytest.raises(CxlpError, match=r"model\.start is scratch, but a Fisher vector's codebook is fitted"):
            ModelConfig(network=network, start="scratch").build(CLASSES, multi_label=False)
        assert ModelConfig(network=network).build(CLASSES, multi_label=False).classes == CLASSES
    assert ModelConfig(network=NETWORK, start="scratch").build(CLASSES, multi_label=False).classes == CLASSES
