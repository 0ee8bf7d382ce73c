"""Networks by name: those of torchvision and timm, and a user's own by import path."""

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torchvision.models import _api

from cxlp.backbones.backbone import Backbone
from cxlp.utils.errors import CxlpError
from tests.backbones.small import build

OWN = """
from torch import nn

class Trunk(nn.Sequential):
    def __init__(self):
        super().__init__(nn.Conv2d(3, 8, 3, stride=2), nn.ReLU(), nn.Conv2d(8, 6, 3), nn.ReLU())

class Branching(nn.Module):
    def forward(self, x):
        return x if x.sum() > 0 else -x

def broken():
    raise ValueError("no luck")

def number():
    return 3
"""


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A package with networks that is on Python's path."""
    (tmp_path / "own_nets").mkdir()
    (tmp_path / "own_nets" / "__init__.py").touch()
    (tmp_path / "own_nets" / "trunks.py").write_text(OWN)
    (tmp_path / "own_nets" / "unfit.py").write_text("import no_such_package")
    monkeypatch.syspath_prepend(tmp_path)
    yield "own_nets.trunks"
    for name in [name for name in sys.modules if name.partition(".")[0] == "own_nets"]:
        del sys.modules[name]


@torch.no_grad()
def test_a_network_by_its_import_path(own: str, photos: Tensor, tmp_path: Path) -> None:
    backbone = Backbone(f"{own}.Trunk", ("0", "2")).eval()
    assert backbone.image_size == 224 and backbone.channels == (8, 6)
    trunk = importlib.import_module(own).Trunk()
    torch.save(trunk.state_dict(), tmp_path / "trunk.pth")
    loaded = Backbone(f"{own}.Trunk", ("0", "2"), weights=str(tmp_path / "trunk.pth"), image_size=64).eval()
    imagenet = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in imagenet)
    torch.testing.assert_close(loaded(photos)[1], trunk((photos / 255 - mean) / std), rtol=1e-4, atol=1e-5)
    assert not torch.equal(loaded(photos)[1], backbone(photos)[1])


@torch.no_grad()
def test_a_module_keeps_its_weights(photos: Tensor) -> None:
    trunk = nn.Sequential(nn.Conv2d(3, 8, 3, stride=2), nn.ReLU(), nn.Conv2d(8, 6, 3))
    backbone = Backbone(trunk, ["1", "2"], image_size=64, mean=(0, 0, 0), std=(1, 1, 1)).eval()
    torch.testing.assert_close(backbone(photos)[1], trunk(photos / 255))
    assert backbone.spec()["name"] is None and backbone.name == "Sequential"


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("own_nets.trunks.Trnk", r"own_nets.trunks .* has no 'Trnk'. Did you mean 'Trunk'"),
        ("own_nets.trucks.Trunk", r"own_nets .* has no 'trucks'\.$"),
        ("no_such_nets.Trunk", "there is no module 'no_such_nets'"),
        ("own_nets.unfit.Trunk", "own_nets.unfit cannot be imported: No module named 'no_such_package'"),
        ("own_nets.trunks.broken", r"'own_nets\.trunks\.broken': .*ValueError: no luck"),
        ("own_nets.trunks.number", r"returns int: .*nn\.Module"),
        ("own_nets.trunks.OWN", "has no 'OWN'"),
        ("own_nets.trunks.Branching", r"torch\.fx.*traced_as_one = True"),
    ],
)
def test_import_paths_without_a_network_are_refused(own: str, path: str, said: str) -> None:
    with pytest.raises(CxlpError, match=said):
        Backbone(path, ("0", "2"))


@pytest.mark.parametrize("name", ["resnet18", "torchvision/resnet18"])
def test_torchvision_takes_precedence_for_a_bare_name(name: str) -> None:
    state = build(name, ("layer1", "layer2"), image_size=64).trunk.state_dict()
    assert "layer1.0.conv1.weight" in state
    with pytest.raises(CxlpError, match=r"no layer 'layer1\.0\.act1'"):  # timm's name for the network
        build(name, ("layer1.0.act1", "layer2"))
    build("timm/resnet18", ("layer1.0.act1", "layer1.1.act1"), image_size=64)


def test_a_bare_name_may_belong_to_timm() -> None:
    assert build("convnext_atto", ("stages.1", "stages.2"), image_size=64).channels == (80, 160)


@pytest.mark.parametrize(
    ("name", "close"), [("resnet81", "'resnet18'"), ("cafenet", "'caffenet'"), ("timm/convnext_ato", "'convnext_atto'")]
)
def test_an_unknown_backbone_lists_close_ones_once(name: str, close: str) -> None:
    with pytest.raises(CxlpError, match=f"unknown backbone '{name}': .* Did you mean .*{close}") as caught:
        build(name)
    assert str(caught.value).count(close) == 1


def test_an_unknown_library_is_named_with_the_known_ones() -> None:
    with pytest.raises(CxlpError, match=r"'keras/resnet18': there is no library 'keras'. Valid: torchvision, timm."):
        build("keras/resnet18")
    with pytest.raises(CxlpError, match="unknown backbone 'torchvision/convnext_atto'"):  # only in timm
        build("torchvision/convnext_atto")


def test_an_unknown_layer_names_the_backbone() -> None:
    said = r"no layer 'features.21'. Did you mean 'features.2'\? Valid: .*features.12"
    with pytest.raises(CxlpError, match=f"squeezenet1_0 has {said}"):
        build("squeezenet1_0", ("features.11", "features.21"))


def test_a_missing_network_is_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(*_args: object, **_kwargs: object) -> None:
        raise OSError("no route to host")

    monkeypatch.setattr(_api.WeightsEnum, "get_state_dict", offline)
    with pytest.raises(CxlpError, match=r"pretrained weights of squeezenet1_0: OSError: no route.*Offline\? .*FILE"):
        build("squeezenet1_0", weights="default")
