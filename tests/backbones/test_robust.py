"""Users' own networks: what they may contain, and that they are not changed."""

import copy
import sys
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cxlp.backbones.backbone import Backbone
from cxlp.heads import AveragePooling
from cxlp.models.network import Network
from cxlp.tasks import FineTune
from cxlp.utils.errors import CxlpError

PLAIN: dict[str, Any] = {"image_size": 32, "mean": (0, 0, 0), "std": (1, 1, 1)}


@pytest.fixture
def images() -> Tensor:
    return torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def test_a_timm_module_is_not_changed(images: Tensor) -> None:
    model = timm.create_model("tf_efficientnet_lite0").eval()
    expected = model(images)
    first, second = (Backbone(model, ("blocks.2", "blocks.3"), image_size=64) for _ in range(2))
    torch.testing.assert_close(model(images), expected)
    assert not first.training
    for one, other in zip(first(images), second(images), strict=True):
        assert torch.equal(one, other)
    shared = {p.data_ptr() for p in model.parameters()}
    assert all(p.data_ptr() in shared for p in first.parameters())
    assert first.state_dict().keys() == second.state_dict().keys()


def test_the_modes_of_a_module_are_not_changed() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4))
    model[1].eval()
    before = [module.training for module in model.modules()]
    backbone = Backbone(model, ("0", "3"), image_size=32)
    assert backbone.training and [module.training for module in model.modules()] == before
    for layer, size in (("none", 32), ("3", 2)):
        with pytest.raises(CxlpError):
            Backbone(model, ("0", layer), image_size=size)
        assert [module.training for module in model.modules()] == before


class OwnNorm(nn.BatchNorm2d):
    def forward(self, x: Tensor) -> Tensor:
        return F.batch_norm(
            x, self.running_mean, self.running_var, self.weight, self.bias, self.training, 0.1, self.eps
        )


def test_custom_batch_norms_are_frozen() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), OwnNorm(4), nn.ReLU(), nn.Conv2d(4, 4, 3))
    network = Network(Backbone(model, ("3",), image_size=32), AveragePooling(), 2)
    task = FineTune(network).train()
    before = {key: value.clone() for key, value in network.state_dict().items()}
    task(torch.rand(4, 3, 32, 32))
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())
    network.train()  # they learn unless they are frozen
    task(torch.rand(4, 3, 32, 32))
    assert not torch.equal(
        network.state_dict()["backbone.trunk.1.running_mean"], before["backbone.trunk.1.running_mean"]
    )


class Discarding(nn.Module):
    """In-place operations whose results are not assigned, before and after the extracted layers."""

    def __init__(self) -> None:
        super().__init__()
        self.low, self.high, self.top = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3), nn.Conv2d(8, 8, 3)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        low = self.low(x)
        self.relu(low)
        other = low * 1
        low.mul_(2)  # after the layer's map was computed
        F.relu_(other - 0.5)  # on a value that nothing reads
        other = other - 0.1
        F.relu_(other)
        high = self.high(other)
        top = self.top(high * 2)
        self.relu(top)
        return cast(Tensor, top)


@torch.no_grad()
def test_in_place_operations_without_assigned_result_are_kept(images: Tensor) -> None:
    model = Discarding().eval()
    low = model.low(images).relu()
    high = model.high((low - 0.1).relu())
    whole = Backbone(model, ("low", "high"), **PLAIN)
    for backbone in (whole, whole.narrowed(["high"])):
        torch.testing.assert_close(backbone(images)[-1], high)
        assert not [key for key in backbone.state_dict() if "top" in key]
    torch.testing.assert_close(whole(images)[0], low)


class Wrapped(nn.Module):
    def __init__(self, name: str) -> None:
        super().__init__()
        self.net = timm.create_model(name)

    def forward(self, x: Tensor) -> Tensor:
        return cast(Tensor, self.net(x))


@torch.no_grad()
def test_a_timm_network_inside_a_custom_module(images: Tensor) -> None:
    model = Wrapped("tf_efficientnet_lite0").eval()
    found = Backbone(model, ("net.blocks.2", "net.blocks.3"), image_size=64)(images)
    expected = Backbone(model.net, ("blocks.2", "blocks.3"), image_size=64)(images)
    assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))


def test_custom_untraced_modules_work_in_timm_networks() -> None:
    model = timm.create_model("test_resnet")
    model.maxpool = nn.Sequential(model.maxpool, Branching())
    assert Backbone(model, ("layer2",), image_size=64).channels == (48,)


class Branching(nn.Module):
    traced_as_one = True

    def forward(self, x: Tensor) -> Tensor:
        return x if x.sum() > 0 else -x


class WithConstant(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.low, self.high, self.factor = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3), torch.full((1,), 2.0)

    def forward(self, x: Tensor) -> Tensor:
        return cast(Tensor, self.high(self.low(x) * self.factor))


def test_weights_files_need_no_constants(tmp_path: Path) -> None:
    model = WithConstant()
    torch.save(model.state_dict(), tmp_path / "own.pth")
    backbone = Backbone(WithConstant(), ("low", "high"), weights=str(tmp_path / "own.pth"), image_size=32)
    assert torch.equal(backbone.trunk.get_parameter("high.weight"), model.high.weight)


def test_a_copy_keeps_frozen_batch_norms_frozen() -> None:
    backbone = Backbone("timm/test_resnet", ("layer2", "layer3"), weights=None, image_size=32)
    task = FineTune(Network(backbone, AveragePooling(), 2)).train()
    before = {name: module.training for name, module in task.named_modules()}
    assert set(before.values()) == {True, False}
    again = copy.deepcopy(task)
    assert {name: module.training for name, module in again.named_modules()} == before
    task.network.backbone.narrowed(["layer3"])
    assert {name: module.training for name, module in task.named_modules()} == before


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"mean": (123, 117, 104), "std": (58, 57, 57)}, "mean is .* divide it by 255"),
        ({"std": (58, 57, 57)}, "std is .* divide it by 255"),
        ({"image_size": 0}, "image_size is 0"),
        ({"image_size": "64"}, "image_size is '64'"),
    ],
)
def test_impossible_options_are_refused(wrong: dict[str, Any], says: str) -> None:
    with pytest.raises(CxlpError, match=says):
        Backbone("timm/test_resnet", ("layer3",), weights=None, **wrong)


def test_options_may_be_numpy_scalars() -> None:
    half = np.full(3, 0.5)
    backbone = Backbone("timm/test_resnet", ("layer3",), weights=None, image_size=np.int64(32), mean=half, std=half)  # type: ignore[arg-type]
    assert backbone.spec()["mean"] == [0.5] * 3 and type(backbone.spec()["image_size"]) is int


def test_integers_other_than_bytes_are_refused() -> None:
    backbone = Backbone("timm/test_resnet", ("layer3",), weights=None, image_size=32)
    with pytest.raises(CxlpError, match=r"images are torch.int32: .*uint8"):
        backbone(torch.zeros(1, 3, 32, 32, dtype=torch.int32))


@pytest.mark.parametrize("path", ["os.getcwd", "os.path.abspath", "collections.OrderedDict", "math.pi"])
def test_only_networks_are_called(path: str) -> None:
    with pytest.raises(CxlpError, match=rf"backbone '{path}' is .*nn\.Module"):
        Backbone(path, ("a",))


def test_a_function_may_be_partial(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own_partial.py").write_text(
        "from functools import partial\nimport timm\ntrunk = partial(timm.create_model, 'test_resnet')"
    )
    monkeypatch.syspath_prepend(tmp_path)
    assert Backbone("own_partial.trunk", ("layer3",), image_size=32).channels == (192,)
    del sys.modules["own_partial"]
