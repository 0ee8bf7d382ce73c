"""Contradictions in the recipe of a run."""

import pytest

from cxlp.heads import CrossLayerPooling, FisherVector, Head, SparseFisherVector
from cxlp.runs.recipe import ModelConfig
from cxlp.utils.errors import CxlpError
from tests.tasks.small import BACKBONE, CLASSES


@pytest.mark.parametrize("fisher", [FisherVector(pca_dim=4, atoms=4), SparseFisherVector(pca_dim=4, atoms=4)])
def test_a_codebook_is_not_trained_from_scratch(fisher: Head) -> None:
    cross = CrossLayerPooling(pca_dim=4)
    heads: tuple[Head | list[Head], ...] = (fisher, [cross, fisher])
    for head in heads:
        with pytest.raises(CxlpError, match=rf"model\.start is scratch.*codebook.*{fisher.name}"):
            ModelConfig(BACKBONE, head, start="scratch").build(CLASSES, multi_label=False)
        assert ModelConfig(BACKBONE, head).build(CLASSES, multi_label=False).classes == CLASSES
    assert ModelConfig(BACKBONE, cross, start="scratch").build(CLASSES, multi_label=False).classes == CLASSES
