"""A user's own head and backbone, in a module outside of the package, from fit to export."""

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

from cxlp.backbones.backbone import Backbone
from cxlp.backbones.library import users_own
from cxlp.deploy.export import check, export
from cxlp.deploy.loading import load
from cxlp.deploy.predictor import Predictor
from cxlp.explain.attribution import explain, is_explainable
from cxlp.frozen.config import FrozenConfig
from cxlp.frozen.fit import FrozenFit
from cxlp.heads import AveragePooling, Head
from cxlp.models.checkpoint import load_network
from cxlp.models.network import Network
from cxlp.utils.errors import CxlpError
from cxlp.utils.profiling import PhaseTimes
from tests.frozen.test_fit import CLASSES, small_images
from tests.networks import write_checkpoint

MODULE = """
import torch
from torch import nn

from cxlp import Head, Views
from cxlp.heads.fitting import HeadFit
from cxlp.utils.distributed import all_sum


class Trunk(nn.Module):
    def __init__(self):
        super().__init__()
        self.low = nn.Sequential(nn.Conv2d(3, 8, 5, stride=4), nn.ReLU())
        self.high = nn.Sequential(nn.Conv2d(8, 12, 3, stride=2), nn.BatchNorm2d(12), nn.ReLU())
        self.classifier = nn.Linear(12, 5)

    def forward(self, x):
        return self.classifier(self.high(self.low(x)).mean((2, 3)))


class ScaledMean(Head):
    takes = 1

    def __init__(self, power: float = 1.0, layers=None, views=Views()):
        super().__init__(layers, views)
        self.power = power

    def build(self, shapes):
        self.register_buffer("scale", torch.ones(shapes[0][0]))
        self.out_features = shapes[0][0]

    def forward(self, features, views=1):
        mean = features.float().mean((2, 3)).view(-1, views, self.out_features).mean(1)
        return self.scale**self.power * mean

    def start_fit(self, data):
        return ScaleFit(self, data)

    def explain(self, maps, weights):
        (activations,) = maps
        slopes = weights * self.scale.double() ** self.power / (activations.numel() / activations.shape[1])
        return activations * slopes[:, None, None], activations


class ScaleFit(HeadFit):
    def __init__(self, head, data):
        self.head, self.data, self.total, self.images = head, data, torch.zeros(head.out_features), 0

    def observe(self, maps, positions):
        self.total += maps[0].float().mean((2, 3)).sum(0)
        self.images += len(positions)

    def solve(self, kept):
        mean = all_sum(self.total) / self.data.images
        spread = torch.zeros_like(mean)
        for (features,), positions in kept:  # a second pass
            spread += (features.float().mean((2, 3)) - mean).square().sum(0)
        self.head.scale.copy_((all_sum(spread) / self.data.images + 1e-6).rsqrt())
"""


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    (tmp_path / "own_parts.py").write_text(MODULE)
    monkeypatch.syspath_prepend(tmp_path)
    yield "own_parts"
    del sys.modules["own_parts"]


def network(own: str, classes: Any = CLASSES) -> Network:
    torch.manual_seed(0)
    backbone = Backbone(f"{own}.Trunk", ("low", "high"), image_size=64)
    head = Head.from_spec({"class_path": f"{own}.ScaledMean", "init_args": {"power": 2.0}})
    return Network(backbone, [head, AveragePooling(layers=["low"])], classes).eval()


def fit(model: Network, folder: Path) -> tuple[Tensor, Tensor]:
    images, labels = small_images()
    running = FrozenFit(model, FrozenConfig(), len(images), folder, PhaseTimes(), progress=False)
    for positions in torch.arange(len(images)).chunk(3):
        running.observe(images[positions], labels[positions], positions)
    running.finish()
    return images, labels


def test_custom_parts_work_from_fit_to_export(own: str, tmp_path: Path) -> None:
    model = network(own)
    images, labels = fit(model, tmp_path / "features")
    with torch.no_grad():
        means = model.backbone(images)[1].mean((2, 3))
        expected = (means.var(dim=0, correction=0) + 1e-6).rsqrt()
        scores = model(images)
    torch.testing.assert_close(model.heads[0].scale, expected, rtol=1e-4, atol=1e-4)
    assert (scores.argmax(1) == labels).float().mean() > 0.5  # the classifier was fitted to its vectors

    assert is_explainable(model)
    for explanation, row in zip(explain(model, images[:3]), scores, strict=False):
        assert explanation.score == pytest.approx(float(row.max()), rel=1e-4)
        assert [len(part.channels) for part in explanation.parts] == [12, 8]

    path = write_checkpoint(tmp_path / "last.ckpt", model)
    assert model.spec()["heads"][0] == {
        "class_path": "own_parts.ScaledMean",
        "init_args": {"power": 2.0, "layers": None, "views": model.spec()["heads"][1]["init_args"]["views"]},
    }
    again = load_network(path)
    with torch.no_grad():
        assert torch.equal(again(images), model(images))

    predictor = load(path)
    assert export(predictor, tmp_path / "model.pt2", "torch") == [tmp_path / "model.pt2"]
    assert check(predictor, tmp_path / "model.pt2", "torch", images[:3]).passed


@pytest.mark.slow
def test_they_are_written_as_onnx(own: str, tmp_path: Path) -> None:
    model = network(own)
    images, _ = fit(model, tmp_path / "features")
    predictor = Predictor(model)
    export(predictor, tmp_path / "model.onnx", "onnx", "float32")
    assert check(predictor, tmp_path / "model.onnx", "onnx", images[:3], "float32").passed


def test_an_unknown_option_of_a_custom_head_is_named(own: str) -> None:
    with pytest.raises(CxlpError, match=r"ScaledMean has no option 'powr'. Did you mean 'power'"):
        Head.from_spec({"class_path": f"{own}.ScaledMean", "init_args": {"powr": 1.0}})
    with pytest.raises(CxlpError, match=r"own_parts .* has no 'ScaleMean'. Did you mean 'ScaledMean'"):
        Head.from_spec({"class_path": f"{own}.ScaleMean"})


REGISTERED = """
from timm.models import register_model

from own_parts import Trunk


@register_model
def own_trunk(pretrained=False, **options):
    net = Trunk()
    net.pretrained_cfg = {"input_size": (3, 64, 64)}
    return net
"""


def forget(*modules: str) -> None:
    """Simulate another process, which has not imported the user's modules."""
    timm.models._registry._model_entrypoints.pop("own_trunk", None)
    for module in modules:
        sys.modules.pop(module, None)


def test_a_network_that_a_module_registers_in_timm_is_found_again(own: str, tmp_path: Path) -> None:
    (tmp_path / "own_registry.py").write_text(REGISTERED)
    importlib.import_module("own_registry")
    model = Network(Backbone("timm/own_trunk", ("low", "high")), AveragePooling(), CLASSES).eval()
    assert model.spec()["registered_by"] == "own_registry" == users_own("timm/own_trunk")[1].__name__  # type: ignore[attr-defined]
    path = write_checkpoint(tmp_path / "last.ckpt", model)
    images = small_images()[0]
    forget("own_registry")
    assert torch.equal(load_network(path)(images), model(images))
    forget("own_registry")
    (tmp_path / "own_registry.py").unlink()
    importlib.invalidate_caches()
    with pytest.raises(CxlpError, match=r"registers backbone 'timm/own_trunk' in timm, 'own_registry' .*no module"):
        load_network(path)


def test_a_registered_network_may_replace_one_of_timm(
    own: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A timm network of the same name might fit the checkpoint, with different scores."""
    (tmp_path / "own_registry.py").write_text(REGISTERED.replace("own_trunk", "test_nfnet"))
    registry = timm.models._registry._model_entrypoints
    timms = registry["test_nfnet"]
    with pytest.warns(UserWarning, match="Overwriting test_nfnet"):
        importlib.import_module("own_registry")
    backbone = Backbone("timm/test_nfnet", ["low"], image_size=64)
    path = write_checkpoint(tmp_path / "last.ckpt", Network(backbone, AveragePooling(), CLASSES))
    forget("own_registry")
    monkeypatch.setitem(registry, "test_nfnet", timms)  # timm registers it in another process
    with pytest.warns(UserWarning, match="Overwriting test_nfnet"):
        assert load_network(path).backbone.channels == (8,)


def test_a_network_registered_by_the_script_gives_a_warning(
    own: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trunk = importlib.import_module(own).Trunk

    def own_trunk(pretrained: bool = False, **options: Any) -> nn.Module:
        net: nn.Module = trunk()
        net.pretrained_cfg = {"input_size": (3, 64, 64)}  # type: ignore[assignment]
        return net

    own_trunk.__module__ = "__main__"
    monkeypatch.setitem(timm.models._registry._model_entrypoints, "own_trunk", own_trunk)
    with pytest.warns(UserWarning, match=r"'\S+' is registered in timm by .* script"):
        model = Network(Backbone("timm/own_trunk", ("low", "high")), AveragePooling(), CLASSES)
    path = write_checkpoint(tmp_path / "last.ckpt", model)
    assert load_network(path).classes == tuple(CLASSES)
    forget()
    with pytest.raises(CxlpError, match=r"'\S+' was registered in timm by .*script: register it"):
        load_network(path)


class Largest(Head):
    def build(self, shapes: Any) -> None:
        self.out_features = shapes[0][0]

    def forward(self, features: Tensor, views: int = 1) -> Tensor:
        return nn.functional.normalize(features.float().amax((2, 3)), dim=1)


def test_a_minimal_head_has_no_explanation_and_needs_no_fit(own: str, tmp_path: Path) -> None:
    model = Network(Backbone(f"{own}.Trunk", ["high"], image_size=64), Largest(), CLASSES).eval()
    fit(model, tmp_path / "features")
    with pytest.raises(CxlpError, match=r"Largest cannot be explained.*no explain\(\)"):
        next(explain(model, small_images()[0][:1]))
