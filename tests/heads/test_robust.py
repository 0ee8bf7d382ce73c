"""Heads in unusual uses: exported, not fitted, derived, several of them, and options that are not plain values."""

import copy
import inspect
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import cxlp.heads
from cxlp.deploy.export import check, export
from cxlp.deploy.predictor import Predictor
from cxlp.explain.attribution import explain
from cxlp.frozen.config import FrozenConfig
from cxlp.frozen.fit import FrozenFit
from cxlp.heads import AveragePooling, CrossLayerPooling, FisherVector, Head, SparseFisherVector
from cxlp.heads.local import LocalHead
from cxlp.heads.normalisation import Normalise
from cxlp.heads.views import Views
from cxlp.models.checkpoint import network_from_spec
from cxlp.utils.errors import CxlpError
from cxlp.utils.profiling import PhaseTimes
from tests.frozen.test_fit import small_images
from tests.networks import CLASSES, SMALL, build, randomise

OURS = [name for name in cxlp.heads.__all__ if name != "Head"]


def small(name: str, **options: Any) -> Head:
    """Build one of cxlp's heads, as small as possible."""
    cls = getattr(cxlp.heads, name)
    cheap = {"pca_dim": 4, "atoms": 3, "channels": 3}
    known = inspect.signature(cls).parameters
    head: Head = cls(**{key: value for key, value in cheap.items() if key in known} | options)
    return head


# --- mixed precision


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", OURS)
def test_each_head_computes_in_float32_under_autocast(name: str, dtype: torch.dtype) -> None:
    head = small(name)
    head.connect(*[(6, 5, 5), (4, 5, 5)][: head.takes])
    if isinstance(head, FisherVector | SparseFisherVector):
        head.learn(torch.randn(50, 4))
    maps = [torch.rand(2, channels, 5, 5) for channels in (6, 4)][: head.takes]
    for given in (maps, [each.to(dtype) for each in maps]):  # float32 maps, and those of a backbone under autocast
        expected = head(*(each.float() for each in given))
        with torch.autocast("cpu", dtype):
            found = head(*given)
        assert found.dtype == torch.float32
        assert torch.equal(found, expected)


# --- export

FORMS: list[tuple[str, dict[str, Any]]] = [
    *((name, {}) for name in OURS),
    ("CrossLayerPooling", {"guide_dim": 2, "sketch": 8, "size": 3, "padding": "same"}),
    ("BilinearPooling", {"sketch": 8}),
    ("CrossLayerPooling", {"spectral": True}),
]


@pytest.mark.parametrize("form", ["torch", pytest.param("onnx", marks=pytest.mark.slow)])
def test_each_head_is_exported(form: Any, tmp_path: Path) -> None:
    """All heads side by side in one network, because starting the exporter takes most of the time."""
    heads = [small(name, **options) for name, options in FORMS]
    for head in heads:
        if isinstance(head, SparseFisherVector):
            head.iterations = 5  # its steps are unrolled
    heads = [head for head in heads if form == "torch" or head.onnx_obstacle is None]
    network = randomise(build(heads, SMALL, CLASSES))
    for head in heads:
        if isinstance(head, SparseFisherVector):
            head.dictionary.copy_(nn.functional.normalize(torch.randn_like(head.dictionary), dim=1))
    model, path = Predictor(network), tmp_path / "model"
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


class Centred(LocalHead):
    """A head that must be fitted with and without a PCA."""

    needs_fit = True
    mean: Tensor

    def __init__(self, pca_dim: Any = None, layers: Any = None, views: Views = Views()) -> None:
        super().__init__(pca_dim, Normalise(), layers, views)

    def build(self, shapes: Any) -> None:
        super().build(shapes)
        self.register_buffer("mean", torch.zeros(self.dim))
        self.out_features = self.dim

    def encode(self, x: Tensor) -> Tensor:
        return (x - self.mean).mean(dim=1, keepdim=True)

    def learn_from(self, kept: Any, data: Any) -> None:
        self.mean.copy_(torch.cat([x for x, _ in self.projected(kept)]).mean(dim=(0, 1)))


@pytest.mark.parametrize("pca_dim", [None, 4])
def test_a_local_head_learns_with_and_without_a_pca(pca_dim: int | None, tmp_path: Path) -> None:
    network, (images, labels) = build(Centred(pca_dim), SMALL, CLASSES), small_images()
    images = images[..., :32, :32]
    assert not network.heads[0].is_fitted
    running = FrozenFit(network, FrozenConfig(), len(images), tmp_path, PhaseTimes(), progress=False)
    running.observe(images, labels, torch.arange(len(images)))
    running.finish()
    assert network.heads[0].is_fitted
    head = network.heads[0]
    assert isinstance(head, Centred)
    expected = torch.cat([head.local(maps) for maps in network.inputs(images)[0]]).mean(dim=(0, 1))
    torch.testing.assert_close(head.mean, expected, atol=1e-4, rtol=1e-4)


# --- derived heads


class Cubed(CrossLayerPooling):
    """A derived head with another vector, which inherits explain."""

    def forward(self, *maps: Tensor, views: int = 1) -> Tensor:
        return super().forward(*maps, views=views) ** 3


@pytest.mark.parametrize("sign", [False, True])
def test_an_inherited_explanation_with_a_wrong_sum_is_refused(sign: bool) -> None:
    torch.manual_seed(0)
    images = torch.rand(1, 3, 32, 32)
    own = randomise(build([AveragePooling(), Cubed(4, sign=sign)], SMALL, CLASSES))
    with pytest.raises(CxlpError, match=r"Cubed cannot be explained: .* forward\(\) .* explain\(\)$"):
        next(explain(own, images))
    plain = randomise(build([AveragePooling(), CrossLayerPooling(4, sign=sign)], SMALL, CLASSES))
    explanation = next(explain(plain, images))
    assert explanation.score == pytest.approx(plain(images)[0, explanation.target].item(), rel=1e-3)


# --- several heads


def taken(layers: tuple[str, ...], *heads: Head) -> list[tuple[str, ...]]:
    network = build(heads, replace(SMALL, layers=layers))
    again = network_from_spec({**network.spec(), "backbone": {**network.spec()["backbone"], "weights": None}})
    names = [[network.backbone.layers[i] for i in network._places(head)] for head in network.each_head()]
    assert names == [[again.backbone.layers[i] for i in again._places(head)] for head in again.each_head()]
    return [tuple(each) for each in names]


def test_a_head_without_layers_takes_those_that_no_other_head_names() -> None:
    pair, top = ("layer3.0.conv2", "layer3"), ("penultimate",)
    assert taken((*pair, *top), CrossLayerPooling(4, align="to_local"), AveragePooling(layers=top)) == [pair, top]
    # With or without names, the last layers are its own if no others are left.
    assert taken(pair, CrossLayerPooling(4), AveragePooling(layers=pair[:1]), AveragePooling()) == [
        pair, pair[:1], pair[1:]
    ]  # fmt: skip
    with pytest.raises(CxlpError, match=r"Pooling .*layers.* 2 .*\['penultimate'\].*\[.*'layer2'.*\].*set layers"):
        taken(("layer2", *pair, *top), CrossLayerPooling(4), AveragePooling(layers=top))
    with pytest.raises(CxlpError, match=r" 2 .*'penultimate'\].*\['layer3.0.conv2'\].*set layers"):
        taken((*pair, *top), CrossLayerPooling(4), *(AveragePooling(layers=[each]) for each in ("layer3", *top)))


def test_a_head_may_occur_once_in_a_network() -> None:
    head = AveragePooling()
    with pytest.raises(CxlpError, match=r"^head .*copy\.deepcopy"):
        build([head, head], SMALL)
    first = build(head, SMALL)
    assert build(head, SMALL).heads[0] is first.heads[0]  # as if a notebook's cell is run again
    assert len(build([head, copy.deepcopy(head)], SMALL).heads) == 2
    head = AveragePooling().connect((8, 4, 4))
    with pytest.raises(CxlpError, match=r"\(\(8, 4, 4\),\) and 1 views .*\(\(8, 4, 4\),\) and 2\b"):
        head.connect((8, 4, 4), views=2)


def test_unknown_views_are_named() -> None:
    with pytest.raises(CxlpError, match=r"unknown views 'crop'\. Did you mean 'crops'"):
        Views("crop")  # type: ignore[arg-type]


# --- descriptions


class Weighted(AveragePooling):
    def __init__(self, power: Any = 1.0, layers: Any = None, views: Views = Views()) -> None:
        super().__init__(layers=layers, views=views)
        self.power = power


class Forgetful(AveragePooling):
    def __init__(self, power: float = 1.0) -> None:
        super().__init__()


def test_numbers_of_numpy_become_plain_and_other_values_are_refused() -> None:
    power = Weighted(np.float32(0.5)).spec()["init_args"]["power"]
    assert type(power) is float and power == 0.5
    assert Weighted([np.int64(3), (1, None)]).spec()["init_args"]["power"] == [3, [1, None]]
    for value in (torch.ones(2), Path("here"), [object()]):
        with pytest.raises(CxlpError, match=r"Weighted's option 'power' is not a plain value: .* type \w+;"):
            Weighted(value).spec()
    with pytest.raises(CxlpError, match="Forgetful has an option 'power', but no attribute"):
        Forgetful().spec()


def test_a_description_names_a_class_that_can_be_found_again(monkeypatch: pytest.MonkeyPatch) -> None:
    assert type(Head.from_spec(Weighted(2.0).spec())) is Weighted

    class Local(AveragePooling):
        pass

    with pytest.warns(UserWarning, match=r"Local .* a function.*network=network"):
        spec = Local().spec()
    with pytest.raises(CxlpError, match=r"<locals>\.Local' .* a function .*network=network"):
        Head.from_spec(spec)
    head = Weighted()
    monkeypatch.setattr(f"{__name__}.Weighted", Forgetful)
    with pytest.raises(CxlpError, match=rf"{__name__}\.Weighted "):
        head.spec()
    monkeypatch.setattr(type(head), "__module__", "__main__")
    with pytest.warns(UserWarning, match=r"Weighted .* script, .*load_from_checkpoint"):
        assert head.spec()["class_path"] == "__main__.Weighted"


def test_the_package_exports_all_heads() -> None:
    assert set(cxlp.heads.__all__) <= set(cxlp.__all__)
    assert all(getattr(cxlp, name) is not None for name in cxlp.__all__)
