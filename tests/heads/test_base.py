"""Features of all heads: options as plain values, connection to maps, and restoration from a description."""

import inspect
import json
from typing import Any

import pytest
import torch

import cxlp.heads
from cxlp.heads import AveragePooling, BilinearPooling, CrossLayerPooling, FisherVector, Head
from cxlp.heads.views import Views
from cxlp.utils.errors import CxlpError

OURS = [name for name in cxlp.heads.__all__ if name != "Head"]


@pytest.mark.parametrize("name", OURS)
def test_options_are_the_constructors_arguments_and_plain(name: str) -> None:
    head = getattr(cxlp.heads, name)()
    spec = head.spec()
    assert spec == json.loads(json.dumps(spec)) and spec["class_path"] == name
    assert Head.from_spec(spec).spec() == spec
    assert spec["init_args"]["layers"] is None and spec["init_args"]["views"]["kind"] == "whole"


@pytest.mark.parametrize("name", OURS)
def test_each_option_is_restored(name: str) -> None:
    """Values other than the defaults, as in a description."""
    options = getattr(cxlp.heads, name)().options()
    other: dict[str, Any] = {
        "pca_dim": 7, "size": 3, "stride": 2, "padding": "same", "align": "to_guide", "channels": 4, "guide_dim": 3,
        "whiten": 0.3, "atoms": 5, "sparsity": 0.3, "layers": ["lower", "upper"],
        "views": {**options["views"], "kind": "crops"},
    }  # fmt: skip
    given: dict[str, Any] = {
        key: not value if isinstance(value, bool) else other.get(key, value + 1 if isinstance(value, float) else value)
        for key, value in options.items()
    }
    given["layers"] = given["layers"][: getattr(cxlp.heads, name).takes]
    head = Head.from_spec({"class_path": name, "init_args": given})
    assert head.options() == given and head.views == Views("crops")
    changed = {key for key in options if given[key] != options[key]}
    assert changed == options.keys() - {"sketch"}  # a spectral root excludes it


def test_options_with_the_same_name_have_the_same_default() -> None:
    """The command line keeps the value of an option, even a default, if the class of the head changes."""
    defaults: dict[str, dict[str, Any]] = {}
    for name in OURS:
        for option, parameter in inspect.signature(getattr(cxlp.heads, name)).parameters.items():
            defaults.setdefault(option, {})[name] = parameter.default
    for option, found in defaults.items():
        # A value that is invalid for the new class is not kept: null instead of a number.
        kept = {value for value in found.values() if value is not None or option != "channels"}
        assert len(kept) == 1, (option, found)


def test_a_sketch_is_restored() -> None:
    assert Head.from_spec(CrossLayerPooling(sketch=8).spec()).options()["sketch"] == 8


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ({"class_path": "CrossLayerPoling"}, "^'CrossLayerPoling' .* 'CrossLayerPooling'"),
        ({"class_path": "cross_layer"}, r"^'cross_layer' .* cxlp\.Head\b"),
        ({"class_path": "Head"}, r"^'Head' .* cxlp\.Head\b"),
        ({"class_path": "cxlp.heads.local.LocalHead"}, r"LocalHead' .* cxlp\.Head\b"),
        ({"class_path": "no_such_package.Head"}, "no module 'no_such_package'"),
        ({"class_path": "torch.nn.Linear"}, r"^'torch.nn.Linear' .* cxlp\.Head\b"),
        ({"class_path": "FisherVector", "init_args": {"atom": 3}}, "FisherVector has no option 'atom'.*'atoms'"),
    ],
)
def test_values_that_are_not_heads_are_refused(spec: dict[str, Any], said: str) -> None:
    with pytest.raises(CxlpError, match=said):
        Head.from_spec(spec)


def test_a_head_is_connected_once() -> None:
    head = CrossLayerPooling(pca_dim=4)
    with pytest.raises(CxlpError, match=r"connect\(\) .*\(C, H, W\)"):
        head(torch.rand(1, 8, 5, 5), torch.rand(1, 6, 5, 5))
    assert head.connect((8, 5, 5), (6, 5, 5)) is head
    weights = head.projection
    assert head.connect((8, 5, 5), (6, 5, 5)).projection is weights
    with pytest.raises(CxlpError, match=r"\(\(8, 5, 5\), \(6, 5, 5\)\).*\(\(8, 5, 5\), \(7, 5, 5\)\)"):
        head.connect((8, 5, 5), (7, 5, 5))
    with pytest.raises(CxlpError, match=r"takes 2 layers.*connect\(\).* 1 "):
        CrossLayerPooling().connect((8, 5, 5))


@torch.no_grad()
def test_bilinear_pooling_is_cross_layer_pooling_of_one_map_twice() -> None:
    torch.manual_seed(0)
    features = torch.rand(2, 6, 5, 5)
    one = BilinearPooling(pca_dim=4, size=3).connect((6, 5, 5))
    two = CrossLayerPooling(pca_dim=4, size=3).connect((6, 5, 5), (6, 5, 5))
    two.load_state_dict(one.state_dict())
    assert torch.equal(one(features), two(features, features))


def test_the_type_of_vectors_follows_from_the_normalisation() -> None:
    assert AveragePooling().unit_length and not AveragePooling(l2=False).unit_length
    assert AveragePooling(sign=True).signs_only and not AveragePooling(sign=True, l2=False).signs_only
    assert not FisherVector().signs_only and FisherVector.needs_fit and not CrossLayerPooling.needs_fit
