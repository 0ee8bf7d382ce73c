"""Folding of BatchNorm: the folded network has the same outputs, and the original is not changed."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from cxlp.backbones.backbone import Backbone
from cxlp.backbones.feature_extraction import Activation
from cxlp.backbones.folding import Folded, fold
from tests.backbones.small import build

#: Networks, layers, and the number of BatchNorms that cannot be folded.
NETWORKS = [
    ("resnet18", ("layer3.0.conv1", "layer4.1"), "after", 0),
    ("resnet18", ("layer3.0.conv1", "layer4.1"), "before", 0),
    ("timm/resnet18", ("layer3.0.conv1", "layer4.1"), "before", 0),
    ("efficientnet_lite0", ("blocks.6.0", "conv_head"), "after", 0),
    ("timm/tf_efficientnet_lite0", ("blocks.5.0.conv_pw", "blocks.6.0"), "before", 0),
    ("mobilenet_v2", ("features.17", "features.18"), "after", 0),
    # each layer normalises the concatenated outputs of all earlier ones; only norm2 follows a convolution
    ("densenet121", ("features.denseblock2", "features.denseblock3"), "after", None),
    ("timm/regnetx_002", ("s3", "s4"), "after", 0),
    ("squeezenet1_0", ("features.11", "features.12"), "before", 0),
    ("timm/convnext_atto", ("stages.2", "stages.3"), "after", 0),
]


def with_statistics(backbone: Backbone) -> Backbone:
    """Give each BatchNorm its own weights and statistics, and convert the network to float64."""
    generator = torch.Generator().manual_seed(0)
    for module in backbone.modules():
        if isinstance(module, nn.BatchNorm2d):
            for values, low, high in (
                (module.weight, 0.5, 1.5), (module.bias, -0.5, 0.5), (module.running_mean, -0.5, 0.5),
                (module.running_var, 0.5, 2.0),
            ):  # fmt: skip
                if values is not None:
                    values.data.uniform_(low, high, generator=generator)
    return backbone.double()


def folded(backbone: Backbone) -> fx.GraphModule:
    """Return the folded copy that a held backbone has created."""
    made = backbone._holds[-1].made
    assert made is not None
    return made[1]


def norms(trunk: nn.Module) -> int:
    """Count the calls of BatchNorm."""
    assert isinstance(trunk.graph, fx.Graph)
    calls = [trunk.get_submodule(str(node.target)) for node in trunk.graph.nodes if node.op == "call_module"]
    return sum(isinstance(called, nn.BatchNorm2d) for called in calls)


@pytest.mark.parametrize(("name", "layers", "activation", "left"), NETWORKS)
@torch.no_grad()
def test_folding_keeps_values(
    name: str, layers: tuple[str, ...], activation: Activation, left: int | None, photos: Tensor
) -> None:
    backbone = with_statistics(build(name, layers, activation=activation, image_size=64))
    before = copy.deepcopy(backbone.state_dict())
    expected, given = backbone(photos), norms(backbone.trunk)
    backbone.hold()
    for found, wanted in zip(backbone(photos), expected, strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-9)
    assert given > norms(folded(backbone)) > 0 if left is None else norms(folded(backbone)) == left
    assert list(before) == list(backbone.state_dict())
    assert all(torch.equal(value, before[key]) for key, value in backbone.state_dict().items())


class Own(nn.Module):
    """Convolutions and normalisations in all kinds of positions."""

    def __init__(self, case: str) -> None:
        super().__init__()
        self.case, self.last = case, nn.ReLU()
        self.conv1, self.conv2 = nn.Conv2d(3, 4, 3, bias=True), nn.Conv2d(4, 4, 3, padding=1, groups=2, bias=False)
        self.norm1, self.norm2 = nn.BatchNorm2d(4), nn.BatchNorm2d(4, affine=case != "no weights")
        if case == "hook":
            self.conv2.register_forward_hook(lambda _m, _i, output: 2 * output)
        if case == "batch statistics":
            self.norm2 = nn.BatchNorm2d(4, track_running_stats=False)
        if case == "standardised":
            self.conv2 = Standardised(4, 4, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv1(x)
        x = self.norm1(x) + self.conv2(x) if self.case == "read elsewhere" else self.norm2(self.conv2(self.norm1(x)))
        if self.case == "norm twice":
            x = self.norm2(self.conv2(x.relu()))
        if self.case == "convolution twice":
            x = self.conv2(x.relu())
        out: Tensor = self.last(x)
        return out


class Standardised(nn.Conv2d):
    """A module that uses its weights for more than a convolution."""

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.conv2d(x, self.weight - self.weight.mean(), self.bias, padding=self.padding)


@pytest.mark.parametrize(
    ("case", "left"),
    [
        ("plain", 0), ("no weights", 0), ("read elsewhere", 1), ("norm twice", 2), ("convolution twice", 1),
        ("hook", 1), ("batch statistics", 1), ("standardised", 1),
    ],
)  # fmt: skip
@torch.no_grad()
def test_other_modules_are_not_folded(case: str, left: int, photos: Tensor) -> None:
    torch.manual_seed(0)
    backbone = with_statistics(build_own(Own(case), ("last",)))
    (expected,) = backbone(photos)
    with backbone.held():
        torch.testing.assert_close(backbone(photos)[0], expected, rtol=1e-9, atol=1e-9)
        assert norms(folded(backbone)) == left


def build_own(model: nn.Module, layers: tuple[str, ...]) -> Backbone:
    return Backbone(model, layers, image_size=64).eval()


@torch.no_grad()
def test_a_convolution_whose_map_is_extracted_is_not_folded(photos: Tensor) -> None:
    backbone = with_statistics(build_own(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)), ("0", "1")))
    convolved, normalised = backbone(photos)
    with backbone.held():
        found = backbone(photos)
        assert norms(folded(backbone)) == 1
    assert torch.equal(found[0], convolved) and torch.equal(found[1], normalised)


@torch.no_grad()
def test_modules_in_training_mode_are_not_folded(photos: Tensor) -> None:
    convolution, norm, dropout = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout(0.5)
    backbone = with_statistics(build_own(nn.Sequential(convolution, norm, nn.ReLU(), dropout, nn.ReLU()), ("2", "4")))
    norm.train()  # the statistics of the batch, and their running mean changes
    dropout.train()
    expected = backbone(photos)[0]
    with backbone.held():
        found, dropped = backbone(photos)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)
    assert norm.training and dropout.training
    assert (dropped[found > 0] == 0).any()


@pytest.mark.parametrize("case", ["alone", "statistics of the batch", "function"])
@torch.no_grad()
def test_a_batch_is_split_if_images_are_independent(case: str) -> None:
    class Normalised(nn.Sequential):
        def forward(self, x: Tensor) -> Tensor:
            for module in self:
                x = module(x)
            return nn.functional.batch_norm(x, None, None, training=True) if case == "function" else x

    norm = nn.BatchNorm2d(4, track_running_stats=case != "statistics of the batch")
    backbone = build_own(nn.Sequential(Normalised(nn.Conv2d(3, 4, 3), norm, nn.ReLU()), nn.Identity()), ("1",)).double()
    images = torch.rand(2 * max(8, 2 * torch.get_num_threads()) + 3, 3, 64, 64, dtype=torch.float64)
    (expected,) = backbone(images)
    with backbone.held():
        (found,) = backbone(images)
        parts = backbone._holds[0].images_per_pass(images.device)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)
    assert (parts < len(images)) == (case == "alone")


class OnlyCpuKnowsDouble(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Raises an error for float64 on other devices, as Apple's GPU does."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        if isinstance(found, Tensor) and found.dtype == torch.float64:
            assert found.device.type == "cpu", f"{func} on {found.device}"
        return found


def test_folding_works_without_float64_on_the_gpu() -> None:
    backbone = build("resnet18", ("layer3", "layer4"), image_size=64)
    with FakeTensorMode(allow_non_fake_inputs=True), OnlyCpuKnowsDouble():  # type: ignore[no-untyped-call]
        for module in backbone.trunk.modules():
            for name, values in [*module._parameters.items(), *module._buffers.items()]:
                if values is not None:
                    own = torch.empty(values.shape, dtype=values.dtype, device="mps")
                    kept = module._parameters if name in module._parameters else module._buffers
                    kept[name] = nn.Parameter(own) if name in module._parameters else own  # type: ignore[assignment]
        copied = fold(backbone.trunk)
    assert norms(copied) == 0
    assert {(p.device.type, p.dtype) for p in copied.parameters()} == {("mps", torch.float32)}


@pytest.mark.parametrize("name", ["resnet18", "timm/tf_efficientnet_lite0"])
@torch.no_grad()
def test_weights_are_cast_once_for_autocast(name: str, photos: Tensor) -> None:
    layers = ("layer3", "layer4") if name == "resnet18" else ("blocks.5", "blocks.6")
    backbone = build(name, layers, image_size=64)
    exact = backbone(photos)
    with backbone.held(), torch.autocast("cpu", torch.bfloat16):
        halves = backbone(photos)
        modules = list(folded(backbone).modules())
    weights = [m.weight for m in modules if isinstance(m, nn.Conv2d | nn.Linear)]
    assert weights and all(weight.dtype == torch.bfloat16 for weight in weights)
    assert all(w.is_contiguous(memory_format=torch.channels_last) for w in weights if w.ndim == 4)
    for half, full in zip(halves, exact, strict=True):
        assert half.dtype == torch.bfloat16
        assert float((half.float() - full).norm() / full.norm()) < 0.05


def test_attention_is_shared_and_linear_layers_are_cast(photos: Tensor) -> None:
    backbone = build("timm/test_vit", ("blocks.0", "blocks.1"))
    half = fold(backbone.trunk, torch.bfloat16)
    kinds = {m.weight.dtype for m in half.modules() if isinstance(m, nn.Linear)}
    assert kinds == {torch.bfloat16}
    assert all(p.dtype == torch.float32 for p in backbone.parameters())


def test_a_gpu_pads_rare_batch_sizes() -> None:
    def sizes(backbone: Backbone, *given: int) -> list[int]:
        folded, found = Folded(backbone.trunk), []
        for n in given:
            images = torch.zeros(n, 3, 8, 8, device="cuda")
            found.append(len(folded.padded(images)))
            folded.record(images)
        return found

    plain, mixing = (build("resnet18", ("layer3.0.conv1", "layer4.1")).eval() for _ in range(2))
    mixing.trunk.train()
    with FakeTensorMode():
        assert sizes(plain, 32, 32, 12, 12, 12, 64, 7) == [32, 32, 32, 32, 12, 64, 64]
        assert sizes(mixing, 32, 12) == [32, 12]
    folded = Folded(plain.trunk)
    folded.record(torch.zeros(64, 3, 8, 8))  # on the CPU, whose convolutions are not planned
    with FakeTensorMode():
        assert len(folded.padded(torch.zeros(512, 3, 8, 8, device="cuda"))) == 512  # the device then runs out of memory
        assert len(folded.padded(torch.zeros(32, 3, 8, 8, device="cuda"))) == 32
        folded.record(torch.zeros(32, 3, 8, 8, device="cuda"))
        assert len(folded.padded(torch.zeros(12, 3, 8, 8, device="cuda"))) == 32
        assert len(folded.padded(torch.zeros(12, 3, 8, 8))) == 12


def test_batch_sizes_are_counted_after_the_computation(monkeypatch: pytest.MonkeyPatch) -> None:
    counted: list[int] = []
    monkeypatch.setattr(Folded, "record", lambda self, images: counted.append(len(images)))
    backbone = build("resnet18", ("layer3.0.conv1", "layer4.1")).eval()
    with torch.inference_mode(), backbone.held():
        backbone(torch.zeros(3, 3, 64, 64))
        with pytest.raises(RuntimeError):
            backbone(torch.zeros(5, 4, 64, 64))  # simulates a lack of memory
    assert counted == [3]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_padding_does_not_change_the_maps(photos: Tensor) -> None:
    backbone = build("resnet18", ("layer3.0.conv1", "layer4.1")).eval().cuda()
    images = photos.cuda()
    with torch.inference_mode():
        expected = backbone(images[:1])
        backbone.hold()
        backbone(images.repeat(4, 1, 1, 1))
        found = backbone(images[:1])
    for a, b in zip(found, expected, strict=True):
        assert a.shape == b.shape
        torch.testing.assert_close(a, b, rtol=1e-2, atol=1e-2 * float(b.abs().max()))  # TF32
