"""Exported files: loaded by their runtimes, they compute the network's scores, for any batch size."""

import copy
import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

from cxlp.backbones.backbone import Backbone
from cxlp.data.demo.birds import SPECIES, draw_bird
from cxlp.data.transforms import Aspect
from cxlp.deploy.export import Check, DType, check, describe, export
from cxlp.deploy.predictor import Predictor
from cxlp.heads import AveragePooling, CovariancePooling, CrossLayerPooling, FisherVector, SparseFisherVector
from cxlp.heads.views import Views
from cxlp.models.network import Network
from cxlp.utils.errors import CxlpError
from tests.networks import SMALL, build

CLASSES = ["gull", "tern", "wrenö"]


def cross(**options: Any) -> CrossLayerPooling:
    return CrossLayerPooling(**{"pca_dim": 4, **options})


def predictor(network: Network | None = None, aspect: Aspect = "warp") -> Predictor:
    """A network with a random classifier."""
    torch.manual_seed(0)
    network = network or build(cross(), SMALL, CLASSES)
    assert network.classifier is not None
    nn.init.normal_(network.classifier.weight)
    return Predictor(network, aspect)


def birds(model: Predictor, count: int = 3) -> Tensor:
    drawn = [draw_bird(SPECIES[k], np.random.default_rng(k), size=96) for k in range(count)]
    return torch.stack([model.picture(bird) for bird in drawn])


def assert_same(model: Predictor, path: Path, dtype: DType = "uint8", count: int = 3) -> dict[str, Any]:
    """Run an ONNX file without cxlp's code, with one image and with several; return scores and metadata."""
    images = birds(model, count)
    with torch.no_grad():
        expected = model.network.score(images)
    if dtype == "float32":
        images = images / 255
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    for part in (images[:1], images):
        (found,) = session.run(None, {"images": part.numpy()})
        torch.testing.assert_close(torch.from_numpy(found), expected[: len(part)], rtol=1e-4, atol=1e-4)
    about: dict[str, Any] = json.loads(session.get_modelmeta().custom_metadata_map["cxlp"])
    (given,), (returned,) = session.get_inputs(), session.get_outputs()
    assert given.type == {"uint8": "tensor(uint8)", "float32": "tensor(float)"}[dtype]
    assert [given.name, given.shape] == [about["input"]["name"], about["input"]["shape"]]
    assert [returned.name, returned.shape] == [about["output"]["name"], about["output"]["shape"]]
    return about


# --- ONNX


@pytest.mark.slow
def test_onnx_computes_the_scores_and_has_metadata(tmp_path: Path) -> None:
    model = predictor(aspect="crop")
    path = tmp_path / "model.onnx"
    assert export(model, path, "onnx") == [path]
    about = assert_same(model, path)
    assert about == describe(model, "uint8")
    assert about["classes"] == ["gull", "tern", "wrenö"] and about["multi_label"] is False
    assert about["size"] == 32 and about["aspect"] == "crop" and "the short side to 32" in about["resize"]
    assert about["input"]["shape"] == ["batch", 3, 32, 32] and about["output"]["probabilities"] == "softmax"
    assert [file.name for file in tmp_path.iterdir()] == ["model.onnx"], "other files are left"
    onnx.checker.check_model(str(path))
    assert str(Path(__file__).parents[2]).encode() not in path.read_bytes(), "the file contains paths of this machine"


EXPORTED: dict[str, Network] = {
    "sub-arrays, test crops": build(cross(size=3, padding="same"), SMALL, CLASSES, test_views=Views("crops")),
    "blocks beside the whole image": build([cross(), AveragePooling(views=Views("blocks"))], SMALL, CLASSES),
    "own mean colour": build(
        cross(size=3, channel_l2=True, zscore=True), replace(SMALL, mean="image", image_size=64), CLASSES
    ),
    "covariance": build(CovariancePooling(pca_dim=4), SMALL, CLASSES),
    "Fisher vector": build(FisherVector(pca_dim=4, atoms=3), SMALL, CLASSES),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", EXPORTED)
def test_other_networks(name: str, tmp_path: Path) -> None:
    model = predictor(copy.deepcopy(EXPORTED[name]))
    export(model, tmp_path / "model.onnx", "onnx", "float32")
    about = assert_same(model, tmp_path / "model.onnx", "float32")
    assert (
        about["input"]["dtype"] == "float32"
        and "0..1:" in about["input"]["values"]
        and about["size"] == model.network.test_size
    )


@pytest.mark.slow
def test_efficientnet_lite0(tmp_path: Path) -> None:
    backbone = Backbone("efficientnet_lite0", ("blocks.5", "blocks.6"), weights=None)
    model = predictor(Network(backbone, cross(pca_dim=16), CLASSES))
    export(model, tmp_path / "model.onnx", "onnx")
    assert_same(model, tmp_path / "model.onnx", count=2)


def test_networks_that_onnx_cannot_express_are_exported_by_torch(tmp_path: Path) -> None:
    head = SparseFisherVector(pca_dim=4, atoms=3)
    model = predictor(build(head, SMALL, CLASSES))
    head.dictionary.copy_(nn.functional.normalize(torch.rand_like(head.dictionary), dim=1))
    head.iterations = 5
    with pytest.raises(CxlpError, match=r"SparseFisherVector .*ONNX.*--format torch"):
        export(model, tmp_path / "model.onnx", "onnx")
    assert list(tmp_path.iterdir()) == []
    path = tmp_path / "model.pt2"
    export(model, path, "torch")
    assert check(model, path, "torch", birds(model)).passed


def test_errors_of_the_onnx_exporter_are_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stumble(*_: object, **__: object) -> None:
        raise torch.onnx.OnnxExporterError("three steps\nand advice") from ValueError(
            "No ONNX function for aten.x.\nMore"
        )

    monkeypatch.setattr("torch.onnx.export", stumble)
    with pytest.raises(CxlpError, match=r"ONNX: ValueError: No ONNX function for aten.x\. .*--format torch$"):
        export(predictor(), tmp_path / "model.onnx", "onnx")
    assert list(tmp_path.iterdir()) == []


def test_missing_packages_are_named_before_any_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    monkeypatch.setattr("cxlp.deploy.export.find_spec", lambda name: None if name == "onnxscript" else object())
    monkeypatch.setattr("torch.export.export", None)
    with pytest.raises(CxlpError, match=r"ONNX needs onnxscript: pip install onnx onnxruntime onnxscript"):
        export(predictor(), tmp_path / "model.onnx", "onnx")


# --- torch.export


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> tuple[Predictor, Path]:
    """A network, and the file that PyTorch itself exports."""
    model, path = predictor(), tmp_path_factory.mktemp("torch") / "model.pt2"
    assert export(model, path, "torch") == [path]
    return model, path


def test_torch_export_needs_nothing_of_cxlp(exported: tuple[Predictor, Path]) -> None:
    model, path = exported
    extra = {"cxlp.json": ""}
    module = torch.export.load(path, extra_files=extra).module()
    assert json.loads(extra["cxlp.json"]) == describe(model, "uint8")
    images = birds(model)
    with torch.no_grad():
        for part in (images[:1], images):
            torch.testing.assert_close(module(part), model.network.score(part), rtol=1e-5, atol=1e-5)
    assert str(Path(__file__).parents[2]).encode() not in path.read_bytes(), "the file contains paths of this machine"


def test_a_network_that_cannot_be_traced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = predictor()
    score = model.network.score
    monkeypatch.setattr(model.network, "score", lambda images: score(images) if images.sum().item() > 0 else images)
    with pytest.raises(CxlpError, match=r"cannot trace the network as one graph: .+"):
        export(model, tmp_path / "model.pt2", "torch")
    assert list(tmp_path.iterdir()) == []


# --- the check


def test_the_check_finds_another_network(exported: tuple[Predictor, Path]) -> None:
    model, path = copy.deepcopy(exported[0]), exported[1]
    images = birds(model)
    found = check(model, path, "torch", images)
    assert found.passed and found.images == found.same == 3 and found.difference < 1e-5
    with torch.no_grad():
        assert found.largest == pytest.approx(model.network.score(images).abs().max().item(), rel=1e-5)
    assert found.network_ms > 0 and found.exported_ms > 0
    assert model.network.classifier is not None
    with torch.no_grad():
        model.network.classifier.bias[1] += 0.5
    changed = check(model, path, "torch", images)
    assert not changed.passed and changed.difference == pytest.approx(0.5, abs=1e-5)


def test_tolerance() -> None:
    assert Check(1, 0.9e-3, 0.1, 1, 1.0, 1.0).passed
    assert not Check(1, 1.1e-3, 0.1, 1, 1.0, 1.0).passed
    assert Check(1, 9e-3, 10.0, 1, 1.0, 1.0).passed
    assert not Check(1, float("nan"), 10.0, 1, 1.0, 1.0).passed
