"""Heads in unusual company: exported, not fitted, derived from, several of them, and options that are not plain."""

import inspect
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import cxlp.heads
from cxlp.deploy.export import check, export
from cxlp.deploy.predictor import Predictor
from cxlp.explain.attribution import explain
from cxlp.heads import AveragePooling, CrossLayerPooling, FisherVector, Head, SparseFisherVector
from cxlp.heads.views import Views
from cxlp.models.network import Network
from cxlp.utils.errors import CxlpError
from tests.networks import CLASSES, SMALL, build, randomise

pytestmark = pytest.mark.usefixtures("one_thread")

OURS = [name for name in cxlp.heads.__all__ if name != "Head"]


def small(name: str, **options: Any) -> Head:
    """One of our heads, as cheap as it can be."""
    cls = getattr(cxlp.heads, name)
    cheap = {"pca_dim": 4, "atoms": 3, "channels": 3}
    known = inspect.signature(cls).parameters
    head: Head = cls(**{key: value for key, value in cheap.items() if key in known} | options)
    return head


# --- export

FORMS: list[tuple[str, dict[str, Any]]] = [
    *((name, {}) for name in OURS),
    ("CrossLayerPooling", {"guide_dim": 2, "sketch": 8, "size": 3, "padding": "same"}),
    ("BilinearPooling", {"sketch": 8}),
    ("CrossLayerPooling", {"spectral": True}),
]


@pytest.mark.parametrize("form", ["torch", pytest.param("onnx", marks=pytest.mark.slow)])
@pytest.mark.parametrize(("name", "options"), FORMS)
def test_each_head_is_exported(name: str, options: dict[str, Any], form: Any, tmp_path: Path) -> None:
    head = small(name, **options)
    model = Predictor(randomise(build(head, SMALL, CLASSES)))
    if isinstance(head, SparseFisherVector):
        head.iterations = 5  # its steps are written out
        head.dictionary.copy_(nn.functional.normalize(torch.randn_like(head.dictionary), dim=1))
    if form == "onnx" and head.onnx_obstacle is not None:
        pytest.skip(head.onnx_obstacle)
    path = tmp_path / "model"
    export(model, path, form)
    assert check(model, path, form, torch.randint(0, 256, (3, 3, 32, 32), dtype=torch.uint8)).passed


# --- fitted or not


@pytest.mark.parametrize("name", OURS)
def test_a_head_knows_whether_it_is_fitted_and_checkpoints_do(name: str) -> None:
    head = small(name)
    assert head.is_fitted is not head.needs_fit
    network = build(head, SMALL)
    assert head.is_fitted is not head.needs_fit
    if isinstance(head, FisherVector | SparseFisherVector):
        head.learn(torch.randn(50, 4))
    assert head.is_fitted
    other = build(small(name), SMALL)
    other.load_state_dict(network.state_dict())
    assert all(each.is_fitted for each in other.each_head())


# --- derived heads


class Cubed(CrossLayerPooling):
    """Its vector is another one; explain is inherited."""

    def forward(self, *maps: Tensor, views: int = 1) -> Tensor:
        return super().forward(*maps, views=views) ** 3


@pytest.mark.parametrize("sign", [False, True])
def test_an_inherited_explanation_that_does_not_add_up_is_refused(sign: bool) -> None:
    torch.manual_seed(0)
    images = torch.rand(1, 3, 32, 32)
    own = randomise(build([AveragePooling(), Cubed(4, sign=sign)], SMALL, CLASSES))
    with pytest.raises(CxlpError, match=r"Cubed cannot be explained: .* changes forward\(\) must have an explain\(\)"):
        next(explain(own, images))
    plain = randomise(build([AveragePooling(), CrossLayerPooling(4, sign=sign)], SMALL, CLASSES))
    explanation = next(explain(plain, images))
    assert explanation.score == pytest.approx(plain(images)[0, explanation.target].item(), rel=1e-3)


# --- several heads


def taken(layers: tuple[str, ...], *heads: Head) -> list[tuple[str, ...]]:
    network = build(heads, replace(SMALL, layers=layers))
    again = Network.from_spec({**network.spec(), "backbone": {**network.spec()["backbone"], "weights": None}})
    names = [[network.backbone.layers[i] for i in network._places(head)] for head in network.each_head()]
    assert names == [[again.backbone.layers[i] for i in again._places(head)] for head in again.each_head()]
    return [tuple(each) for each in names]


def test_a_layer_that_another_head_names_leaves_the_others_to_this_one() -> None:
    pair, top = ("layer3.0.conv2", "layer3"), ("penultimate",)
    assert taken((*pair, *top), CrossLayerPooling(4, align="to_local"), AveragePooling(layers=top)) == [pair, top]
    # Named or not, the last ones are its own where nothing else is left over.
    assert taken(pair, CrossLayerPooling(4), AveragePooling(layers=pair[:1]), AveragePooling()) == [
        pair, pair[:1], pair[1:]
    ]  # fmt: skip
    with pytest.raises(CxlpError, match=r"Pooling names no layers.*\['penultimate'\].*gives.*'layer2'.*not 2"):
        taken(("layer2", *pair, *top), CrossLayerPooling(4), AveragePooling(layers=top))
    with pytest.raises(CxlpError, match=r"'penultimate'\], the backbone gives \['layer3.0.conv2'\], not 2"):
        taken((*pair, *top), CrossLayerPooling(4), *(AveragePooling(layers=[each]) for each in ("layer3", *top)))


def test_a_head_is_in_one_place() -> None:
    head = AveragePooling()
    with pytest.raises(CxlpError, match="given twice"):
        build([head, head], SMALL)
    head.connect((8, 4, 4))
    with pytest.raises(CxlpError, match=r"\(\(8, 4, 4\),\) of 1 views an image, these are .* of 2"):
        head.connect((8, 4, 4), views=2)


def test_unknown_views_are_named() -> None:
    with pytest.raises(CxlpError, match=r"unknown views 'crop'\. Did you mean 'crops'"):
        Views("crop")  # type: ignore[arg-type]
