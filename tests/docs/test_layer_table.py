"""The table of networks and layers in docs/own_parts.md is correct: each pair is built, with random weights."""

import re
from pathlib import Path

import pytest
import yaml

from cxlp.backbones.backbone import Backbone

ROOT = Path(__file__).parents[2]


def rows() -> list[list[str]]:
    """The cells of the table."""
    text = (ROOT / "docs" / "own_parts.md").read_text(encoding="utf-8")
    table = text.split("| network | layers |", 1)[1].split("\n\n", 1)[0]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()[2:]]


@pytest.mark.slow
@pytest.mark.parametrize("row", rows(), ids=lambda row: re.findall("`(.*?)`", row[0])[0])
def test_each_pair_has_the_maps_in_the_table(row: list[str]) -> None:
    names, layers, maps, size, pca = row
    name, *overlay = re.findall("`(.*?)`", names)
    pair = re.findall("`(.*?)`", layers)
    backbone = Backbone(name, pair, weights=None, image_size=int(size))
    first, second, side, same = map(int, re.findall(r"\d+", maps))
    assert backbone.channels == (first, second)
    assert backbone.map_sizes == ((side, same), (side, same))
    assert backbone.image_size == int(size) == Backbone(name, pair[-1:], weights=None).image_size or overlay
    for config in overlay:  # what is shipped
        model = yaml.safe_load((ROOT / "configs" / config).read_text())["model"]
        assert (model["backbone"]["name"], model["backbone"]["layers"]) == (name, pair)
        assert model["head"]["init_args"]["pca_dim"] == int(pca)
