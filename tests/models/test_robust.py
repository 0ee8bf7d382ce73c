"""Errors that a network raises at construction, not when its checkpoint is loaded."""

import subprocess
import sys
from functools import reduce
from operator import getitem
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytorch_lightning as pl
import timm
import torch
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from cxlp.backbones.backbone import Backbone
from cxlp.deploy.predictor import Predictor
from cxlp.heads import AveragePooling, CrossLayerPooling, Head
from cxlp.heads.views import Views
from cxlp.models.checkpoint import load_network, load_weights, network_of, read_checkpoint
from cxlp.models.network import Network
from cxlp.tasks import FineTune
from cxlp.utils.errors import CxlpError
from tests.networks import CLASSES, SMALL, build, randomise, write_checkpoint


@pytest.fixture
def photos() -> Tensor:
    return torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


class Mean(Head):
    def __init__(self, power: Any = 1.0, layers: Any = None, views: Views = Views()) -> None:
        super().__init__(layers, views)
        self.power = power

    def build(self, shapes: Any) -> None:
        self.out_features = shapes[0][0]

    def forward(self, features: Tensor, views: int = 1) -> Tensor:
        return features.mean((2, 3)).view(-1, views, features.shape[1]).mean(1)


# --- classes and options


def test_values_of_numpy_are_restored_as_plain_ones(photos: Tensor, tmp_path: Path) -> None:
    names: Any = list(np.array(CLASSES))
    network = build(CrossLayerPooling(pca_dim=np.int64(4)), SMALL, names)  # type: ignore[arg-type]
    again = load_network(write_checkpoint(tmp_path / "a.ckpt", network))
    assert again.classes == tuple(CLASSES) and torch.equal(again(photos), network(photos))
    assert build(None, SMALL, np.int64(3)).classes == ("0", "1", "2")  # type: ignore[arg-type]


@pytest.mark.parametrize(("classes", "says"), [("abc", "classes is 'abc'"), (["a", "b", "a"], "'a' more than once")])
def test_classes_that_are_not_names_are_refused(classes: Any, says: str) -> None:
    with pytest.raises(CxlpError, match=says):
        build(None, SMALL, classes)


class Forgetful(Mean):
    def __init__(self, scale: float = 2.0) -> None:
        super().__init__()


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"head": AveragePooling}, r"head is <class .*AveragePooling'>: .*CrossLayerPooling\(\)"),
        ({"head": []}, r"head is \[\]: "),
        (
            {"backbone": timm.create_model("test_resnet")},
            r"backbone is a ResNet: .*Backbone\(\.\.\., layers=\[\.\.\.\]\)",
        ),
        ({"classes": 0}, "classes is empty"),
        ({"classes": []}, "classes is empty"),
        ({"test_views": "crops"}, r"test_views is 'crops': "),
    ],
)
def test_values_that_are_not_parts_of_a_network_are_refused(wrong: dict[str, Any], said: str) -> None:
    given: dict[str, Any] = {"backbone": Backbone.from_config(SMALL), "head": AveragePooling(), "classes": CLASSES}
    with pytest.raises(CxlpError, match=said):
        Network(**given | wrong)


def test_options_of_another_type_are_refused() -> None:
    for options, said in (
        ({"layers": "layer3"}, "layers is 'layer3': "),
        ({"views": "crops"}, "views is 'cro"),
    ):
        with pytest.raises(CxlpError, match=said):
            AveragePooling(**options)  # type: ignore[arg-type]
    for value in (4.0, "4"):
        with pytest.raises(CxlpError, match=f"pca_dim is {value!r}, but .*choose 1 to 48, or null"):
            build(CrossLayerPooling(pca_dim=value), SMALL)  # type: ignore[arg-type]


def test_an_option_that_a_checkpoint_cannot_hold_is_named() -> None:
    with pytest.raises(CxlpError, match=r"Mean's option 'power' is not a plain value: .* type Tensor"):
        build(Mean(torch.ones(1)), SMALL)

    with pytest.raises(CxlpError, match=r"Forgetful .*scale"):
        build(Forgetful(), SMALL)


def test_classes_set_later_get_a_classifier_of_the_networks_type(photos: Tensor) -> None:
    network = build(None, SMALL).double()
    network.set_classes(CLASSES)
    assert network.classifier is not None and network.classifier.weight.dtype == torch.float64
    assert network(photos).dtype == torch.float64


# --- heads


class Wrong(Mean):
    def build(self, shapes: Any) -> None:
        self.out_features = shapes[0][0] - 1


def test_a_head_with_a_wrong_output_is_named(photos: Tensor) -> None:
    with pytest.raises(CxlpError, match=r"Wrong returns a tensor \(2, 192\) for 2 images .* out_features = 191"):
        build(Wrong(), SMALL).features(photos)


@torch.no_grad()
def test_a_head_in_half_precision_gives_full_precision_features(photos: Tensor) -> None:
    network = build(Mean(), SMALL)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert network.features(photos).dtype == torch.float32


# --- restoration


def small(**options: Any) -> Backbone:
    given = {"layers": ("layer3.0.conv2", "layer3"), "image_size": 32, "mean": (0.5, 0.5, 0.5), **options}
    return Backbone(timm.create_model("test_resnet"), **given)


def test_a_backbone_given_on_loading_must_be_like_the_saved_one(photos: Tensor, tmp_path: Path) -> None:
    network = Network(small(), CrossLayerPooling(pca_dim=4), CLASSES).eval()
    path = write_checkpoint(tmp_path / "a.ckpt", network)
    wider = small(layers=("layer2", "layer3.0.conv2", "layer3"), std=(0.229, 0.224, 0.225))  # ImageNet's, the default
    for given in (small(), wider, timm.create_model("test_resnet")):
        assert torch.equal(load_network(path, given)(photos), network(photos))
    for what, value in (
        ("layers", ("layer2", "layer3")),
        ("activation", "before"),
        ("image_size", 64),
        ("mean", (0.4, 0.5, 0.5)),
        ("std", (0.5, 0.5, 0.5)),
    ):
        with pytest.raises(CxlpError, match=f"backbone's {what} is "):
            load_network(path, small(**{what: value}))


def test_a_module_passed_for_a_named_network_gets_its_preprocessing(photos: Tensor, tmp_path: Path) -> None:
    network = build(None, SMALL, CLASSES)
    path = write_checkpoint(tmp_path / "a.ckpt", network)
    assert torch.equal(load_network(path, timm.create_model("test_resnet"))(photos), network(photos))


def test_the_advice_for_a_backbone_without_a_name_works(photos: Tensor, tmp_path: Path) -> None:
    network = randomise(Network(small(), CrossLayerPooling(pca_dim=4), CLASSES)).eval()
    path = tmp_path / "a.ckpt"
    trainer = pl.Trainer(
        accelerator="cpu", max_epochs=1, logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, default_root_dir=tmp_path,
    )  # fmt: skip
    trainer.fit(FineTune(network), DataLoader(TensorDataset(photos, torch.tensor([0, 1])), 2))
    trainer.save_checkpoint(path)
    for load in (load_network, FineTune.load_from_checkpoint):
        with pytest.raises(CxlpError, match=r"cxlp.load_network, .*argument network of load_from_checkpoint"):
            load(path)
    fresh = Network(small(), CrossLayerPooling(pca_dim=4), CLASSES)
    task = FineTune.load_from_checkpoint(path, network=fresh).eval()
    with torch.no_grad():
        assert torch.equal(task(photos), network.eval()(photos))
        assert torch.equal(load_network(path, small())(photos), network(photos))


def test_weights_of_another_network_are_refused(tmp_path: Path) -> None:
    network = Network(small(), CrossLayerPooling(pca_dim=4), CLASSES)
    checkpoint = read_checkpoint(write_checkpoint(tmp_path / "a.ckpt", network))
    other = timm.create_model("test_resnet", stem_width=8)
    with pytest.raises(CxlpError, match=r"the checkpoint has .* another network .*: ") as caught:
        network_of(checkpoint, other)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("place", "value"),
    [
        (["state_dict"], None),
        (["state_dict", "network.classifier.bias"], [0.0, 1.0]),
        (["cxlp", "network", "backbone"], None),
        (["cxlp", "network", "heads"], [1]),
        (["cxlp", "network", "test_views"], {"bogus": 1}),
    ],
)
def test_a_mangled_checkpoint_is_refused_by_name(tmp_path: Path, place: list[str], value: object) -> None:
    network = build(AveragePooling(), SMALL, CLASSES)
    path = write_checkpoint(tmp_path / "a.ckpt", network)
    for missing in (True, False):
        content = torch.load(path, weights_only=True)
        inner = reduce(getitem, place[:-1], content)
        if missing:
            del inner[place[-1]]
        else:
            inner[place[-1]] = value
        torch.save(content, tmp_path / "b.ckpt")
        with pytest.raises(CxlpError, match=r"^\S*b\.ckpt "):
            load_network(tmp_path / "b.ckpt")
        if place[0] == "cxlp":  # as load_from_checkpoint does
            with pytest.raises(CxlpError, match=r"^the network's description is broken, "):
                FineTune(content["cxlp"]["network"])
        else:  # a run loads the weights only
            with pytest.raises(CxlpError, match=r"^\S*b\.ckpt "):
                load_weights(network, read_checkpoint(tmp_path / "b.ckpt"), str(tmp_path / "b.ckpt"))


def test_numbers_that_are_not_finite_are_refused_by_name(tmp_path: Path) -> None:
    network = build(AveragePooling(), SMALL, CLASSES)
    with torch.no_grad():
        next(network.backbone.parameters())[0] = float("nan")
    path = write_checkpoint(tmp_path / "a.ckpt", network)
    with pytest.raises(CxlpError, match=r"a\.ckpt contains NaN or infinity in backbone\.trunk\.conv1\.0\.weight"):
        load_network(path)


def test_a_checkpoint_cannot_call_library_functions(tmp_path: Path) -> None:
    network = build(AveragePooling(), SMALL, CLASSES)
    path = write_checkpoint(tmp_path / "a.ckpt", network)
    content = torch.load(path, weights_only=True)
    content["cxlp"]["network"]["backbone"]["name"] = "os.getcwd"
    torch.save(content, path)
    with pytest.raises(CxlpError, match=r"'os\.getcwd' is not a network"):
        load_network(path)


# --- prediction


def test_bytes_as_floats_are_refused_in_prediction(photos: Tensor) -> None:
    predictor = Predictor(randomise(build(None, SMALL, CLASSES)))
    with pytest.raises(CxlpError, match=r"from 0 to 255, .*0\.\.1"):
        predictor.probabilities(photos.float())
    torch.testing.assert_close(predictor.probabilities(photos.float() / 255), predictor.probabilities(photos))


def test_the_console_script_sees_the_working_directory(tmp_path: Path) -> None:
    script = tmp_path / "bin" / "cxlp"  # as pip writes it
    script.parent.mkdir()
    script.write_text(
        "import sys\nfrom cxlp.__main__ import main\ntry:\n    main(['--version'])\nfinally:\n    print(sys.path)"
    )
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, str(script)],
        cwd=tmp_path, env={"PYTHONPATH": str(root)}, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert f"'{tmp_path}'" in done.stdout
