"""CaffeNet: the layers of its deploy file, and its weights read from ONNX."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn

from cxlp.backbones.caffenet import CaffeNet, FullPrecisionLRN, onnx_state_dict
from cxlp.utils.errors import CxlpError

LAYERS = ["conv1", "conv2", "conv3", "conv4", "conv5", "fc6", "fc7", "fc8"]


@pytest.fixture(scope="module")
def net() -> CaffeNet:
    return CaffeNet(num_classes=10).eval()


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory, net: CaffeNet) -> tuple[Path, dict[str, Tensor]]:
    """Write an ONNX file with other names, as another exporter might, and return it with corners of each weight."""
    nodes, tensors = [], []
    state = {key: value[tuple(slice(5 + i) for i in range(value.ndim))] for key, value in net.state_dict().items()}
    for i, layer in enumerate(LAYERS):
        weight, bias = state[f"{layer}.weight"].numpy(), state[f"{layer}.bias"].numpy()
        attributes: dict[str, Any] = {} if layer.startswith("conv") else {"transB": 1}
        if layer == "fc7":  # another way in which exporters write a product
            weight, attributes = np.ascontiguousarray(weight.T), {}
        if layer == "fc8":  # reported, and removed
            weight, attributes = np.ascontiguousarray(weight.T), {"transB": 0}
        # names that are not in the order of the layers, and are not names of layers
        name = f"z{9 - i}/%{i}:0"
        tensors += [numpy_helper.from_array(bias, name + "b"), numpy_helper.from_array(weight, name)]
        kind = "Conv" if layer.startswith("conv") else "Gemm"
        nodes.append(helper.make_node(kind, [f"x{i}", name, name + "b"], [f"y{i}"], **attributes))
        nodes.append(helper.make_node("Relu", [f"y{i}"], [f"x{i + 1}"]))
    path = tmp_path_factory.mktemp("onnx") / "some.onnx"
    write(path, nodes, tensors)
    return path, state


def write(path: Path, nodes: list[onnx.NodeProto], tensors: list[onnx.TensorProto]) -> None:
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in ("x0", "x8")]
    onnx.save(helper.make_model(helper.make_graph(nodes, "net", ends[:1], ends[1:], tensors)), str(path))


@torch.no_grad()
def test_shapes_of_every_layer(net: CaffeNet) -> None:
    x = torch.rand(1, 3, 227, 227)
    shapes = {}
    for name, layer in net.named_children():
        x = layer(x)
        shapes[name] = tuple(x.shape[1:])
    # shapes that Caffe reports for the deploy file
    assert shapes["conv1"] == (96, 55, 55)
    assert shapes["pool1"] == (96, 27, 27)
    assert shapes["conv2"] == (256, 27, 27)
    assert shapes["pool2"] == (256, 13, 13)
    assert shapes["conv3"] == shapes["conv4"] == (384, 13, 13)
    assert shapes["conv5"] == (256, 13, 13)
    assert shapes["pool5"] == (256, 6, 6)
    assert shapes["fc6"] == shapes["fc7"] == (4096,)
    assert x.shape == (1, 10)


def test_number_of_parameters() -> None:
    with torch.device("meta"):
        net = CaffeNet()
    assert sum(p.numel() for p in net.parameters()) == 60_965_224  # the blobs of the reference model
    groups = {name: layer.groups for name, layer in net.named_children() if isinstance(layer, nn.Conv2d)}
    assert groups == {"conv1": 1, "conv2": 2, "conv3": 1, "conv4": 2, "conv5": 2}


def test_layers_run_in_order_and_dropout_only_in_training(net: CaffeNet) -> None:
    x = torch.rand(1, 3, 227, 227)
    with torch.no_grad():
        assert torch.equal(net(x), nn.Sequential(*net.children())(x))
        assert torch.equal(net(x), net(x))
        net.train()
        assert not torch.equal(net(x), net(x))
        net.eval()


def test_pooling_rounds_up(net: CaffeNet) -> None:
    # On 4 cells, a window of width 3 and stride 2 fits once; Caffe adds the window that exceeds the border.
    x = torch.arange(16.0).view(1, 1, 4, 4)
    for pool in (net.pool1, net.pool2, net.pool5):
        assert pool(x)[0, 0].tolist() == [[10, 11], [14, 15]]


def test_response_normalisation_equals_caffes_formula(net: CaffeNet) -> None:
    x = 100 * torch.randn(2, 9, 3, 3, generator=torch.Generator().manual_seed(0))
    a = x.double().numpy()
    expected = np.zeros_like(a)
    for c in range(9):
        window = a[:, max(0, c - 2) : c + 3]  # 5 channels, fewer at the ends; alpha is always divided by 5
        expected[:, c] = a[:, c] / (1 + 1e-4 / 5 * (window**2).sum(1)) ** 0.75
    for norm in (net.norm1, net.norm2):
        np.testing.assert_allclose(norm(x).numpy(), expected, rtol=1e-5)
    assert np.abs(expected / a - 1).max() > 0.3  # the inputs are large enough to show a difference


def test_onnx_weights_round_trip(written: tuple[Path, dict[str, Tensor]], net: CaffeNet) -> None:
    path, state = written
    found = onnx_state_dict(path)
    assert list(found) == [f"{layer}.{kind}" for layer in LAYERS for kind in ("weight", "bias")]
    for key, value in state.items():
        assert found[key].shape == value.shape, key
        assert torch.equal(found[key], value), key
    assert found.keys() == net.state_dict().keys()


def small(kind: str, name: str, bias: bool = True) -> tuple[onnx.NodeProto, list[onnx.TensorProto]]:
    inputs = ["x0", f"{name}w", *([f"{name}b"] if bias else [])]
    tensors = [numpy_helper.from_array(np.zeros((2, 2), np.float32), n) for n in inputs[1:]]
    return helper.make_node(kind, inputs, [f"{name}y"], name=name), tensors


def test_an_onnx_file_of_another_network_is_refused(tmp_path: Path) -> None:
    parts = [small("Conv", "a"), small("Gemm", "b")]
    write(tmp_path / "other.onnx", [node for node, _ in parts], [t for _, tensors in parts for t in tensors])
    with pytest.raises(CxlpError, match=r"other.onnx has 2 .*layers, .*CaffeNet has 8"):
        onnx_state_dict(tmp_path / "other.onnx")


def test_a_layer_without_bias_is_refused_by_name(tmp_path: Path) -> None:
    # ResNets are exported like this: BatchNorm follows, or a node computes the weights
    node, tensors = small("Conv", "stem", bias=False)
    write(tmp_path / "resnet.onnx", [node], tensors)
    with pytest.raises(CxlpError, match=r"resnet.onnx: .*'stem' .*bias"):
        onnx_state_dict(tmp_path / "resnet.onnx")


@pytest.mark.parametrize("content", [b"<html>404</html>", b"version https://git-lfs.github.com/spec/v1\noid sha256:00"])
def test_a_file_in_another_format_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "page.onnx").write_bytes(content)
    with pytest.raises(CxlpError, match=r"page.onnx is not a readable ONNX file"):
        onnx_state_dict(tmp_path / "page.onnx")


def test_a_missing_or_empty_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CxlpError, match=r"none.onnx is not a readable ONNX file.*No such file"):
        onnx_state_dict(tmp_path / "none.onnx")
    (tmp_path / "empty.onnx").touch()
    with pytest.raises(CxlpError, match=r"empty.onnx"):
        onnx_state_dict(tmp_path / "empty.onnx")


def test_normalisation_of_large_activations_does_not_overflow_in_half_precision() -> None:
    x = torch.rand(1, 96, 3, 3, generator=torch.Generator().manual_seed(0)) * 2000  # 2000^2 exceeds float16
    expected = nn.LocalResponseNorm(5, alpha=1e-4, beta=0.75)(x)
    norm = FullPrecisionLRN(5, alpha=1e-4, beta=0.75)
    assert torch.equal(norm(x), expected)
    half = norm(x.half())
    assert half.dtype == torch.float16
    torch.testing.assert_close(half.float(), expected, rtol=2e-3, atol=0.1)
