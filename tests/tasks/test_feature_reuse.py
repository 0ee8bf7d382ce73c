"""The key of stored features: it changes with everything on which they depend, including code and libraries."""

import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from cxlp.backbones.backbone import Backbone
from cxlp.data.folder import Folder
from cxlp.frozen.config import FrozenConfig
from cxlp.heads import CrossLayerPooling, Head
from cxlp.models.network import Network
from cxlp.tasks.feature_reuse import FeatureReuse
from cxlp.utils import fingerprint
from tests.generate import write_folder
from tests.tasks.small import CLASSES, network

BASE = """
from cxlp import Head
from cxlp.heads.views import Views


class Base(Head):
    def __init__(self, layers=None, views=Views()):
        super().__init__(layers, views)

    def build(self, shapes):
        self.out_features = shapes[0][0]
"""
OWN = """
from base_of_kept_features import Base


class Largest(Base):
    def forward(self, features, views=1):
        return features.amax(dim=(2, 3))
"""


@pytest.fixture
def data(tmp_path: Path) -> Folder:
    found = Folder(write_folder(tmp_path / "pictures", train=2, test=1, size=40), num_workers=0)
    found.setup()
    found.resize(32, 32)
    return found


def key(
    data: Folder,
    store: Path,
    head: Head | None = None,
    trunk: nn.Module | None = None,
    precision: str = "32-true",
    **options: Any,
) -> str:
    """Return the name of the features' folder, with the same weights at each call."""
    reuse = FeatureReuse(FrozenConfig(store=str(store), **options), data)
    if trunk is None:
        net = network(head)
    else:
        backbone = Backbone(trunk, ("first", "second"), activation="before", image_size=32)
        net = Network(backbone, CrossLayerPooling(pca_dim=4), CLASSES)
    net.load_state_dict({name: value.fill_(0.5) for name, value in net.state_dict().items()})
    reuse.open(net, precision)
    assert not reuse.found
    return reuse.entry.folder.name


def test_options_change_the_key(data: Folder, tmp_path: Path) -> None:
    first = key(data, tmp_path)
    assert key(data, tmp_path) == first
    assert key(data, tmp_path, c=3.0) == first  # the SVMs come after the features
    others = {
        key(data, tmp_path, CrossLayerPooling(pca_dim=5)),
        key(data, tmp_path, precision="bf16-mixed"),
        key(data, tmp_path, features="float16"),
        key(data, tmp_path, pca_vectors=1000),
    }
    assert len(others | {first}) == 5


@pytest.mark.parametrize("what", ["code_digest", "library_versions"])
def test_other_code_or_libraries_change_the_key(
    data: Folder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    before = key(data, tmp_path)
    monkeypatch.setattr(f"cxlp.tasks.feature_reuse.{what}", lambda *_: "other")
    assert key(data, tmp_path) != before


def test_an_edit_of_the_signed_square_root_changes_the_key(
    data: Folder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "site" / "cxlp"
    shutil.copytree(fingerprint._PACKAGE, package, ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(fingerprint, "_PACKAGE", package)
    before = key(data, tmp_path)
    normalisation = package / "heads" / "normalisation.py"
    text = normalisation.read_text()
    body = text.index("def signed_sqrt")
    edited = text[:body] + text[body:].replace("clamp_min(eps)", "clamp_min(2 * eps)", 1)
    assert edited != text
    normalisation.write_text(edited)
    assert key(data, tmp_path) != before
    normalisation.write_text(text)
    (package / "studies" / "tables.py").write_text("")  # which computes no features
    assert key(data, tmp_path) == before


@pytest.mark.parametrize("edited", ["head_for_kept_features", "base_of_kept_features"])
def test_an_edit_of_a_custom_head_or_its_base_changes_the_key(
    data: Folder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, edited: str
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    for name, text in (("head_for_kept_features", OWN), ("base_of_kept_features", BASE)):
        monkeypatch.delitem(sys.modules, name, raising=False)
        (tmp_path / f"{name}.py").write_text(text)
    spec = {"class_path": "head_for_kept_features.Largest"}
    before = key(data, tmp_path, Head.from_spec(spec))
    assert key(data, tmp_path, Head.from_spec(spec)) == before
    with (tmp_path / f"{edited}.py").open("a") as file:
        file.write("\n# edited\n")
    assert key(data, tmp_path, Head.from_spec(spec)) != before


class Trunk(nn.Module):
    def __init__(self, activation: Any) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 8, 3, stride=4), nn.Conv2d(8, 8, 1)
        self.activation = activation

    def forward(self, images: Tensor) -> Tensor:
        found: Tensor = self.second(self.activation(self.first(images)))
        return found


def test_another_computation_with_the_same_weights_changes_the_key(data: Folder, tmp_path: Path) -> None:
    kinds = [nn.ReLU(), nn.Tanh(), nn.LeakyReLU(0.1), nn.LeakyReLU(0.2), torch.relu, torch.tanh]
    keys = [key(data, tmp_path, trunk=Trunk(kind)) for kind in kinds]
    assert len(set(keys)) == len(kinds)
    assert [key(data, tmp_path, trunk=Trunk(kind)) for kind in kinds] == keys
