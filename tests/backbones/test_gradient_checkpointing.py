"""Gradient checkpointing: equal values and gradients with less memory for the backward pass."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from torchvision.models import DenseNet
from torchvision.models.feature_extraction import create_feature_extractor

import cxlp.backbones.gradient_checkpointing
from cxlp.backbones.backbone import Backbone
from cxlp.backbones.gradient_checkpointing import allowed_cuts, find_cuts, run_in_segments
from cxlp.utils.errors import CxlpError

#: Residual sums; in-place activations, also those whose gradient needs their input
#: (SiLU, hard swish); squeeze-and-excitation; stages with stochastic depth.
NETWORKS = {
    "timm/test_resnet": ("layer3.0.conv2", "layer3"),
    "squeezenet1_0": ("features.11", "features.12"),
    "timm/test_efficientnet": ("blocks.3.0", "bn2"),
    "timm/mobilenetv3_small_050": ("blocks.4", "blocks.5"),
    "DenseNet": ("features.denseblock1", "features.transition1.pool"),
}


def build(name: str, seed: int = 0) -> Backbone:
    torch.manual_seed(seed)
    network = DenseNet(32, (6, 1), 64) if name == "DenseNet" else name  # the first block of DenseNet-121
    return Backbone(network, NETWORKS[name], weights=None, image_size=64)


def photos(count: int = 3) -> Tensor:
    return torch.rand(count, 3, 64, 64, generator=torch.Generator().manual_seed(1))


def held_bytes(forward: Callable[[], Any]) -> tuple[Any, int]:
    """Run, and count the bytes of distinct storage that the backward pass reads, without parameters."""
    memory: dict[int, int] = {}
    kept: list[Tensor] = []  # kept alive, so that no address is reused

    def pack(tensor: Tensor) -> Tensor:
        if not isinstance(tensor, nn.Parameter):
            memory[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            kept.append(tensor)
        return tensor

    def watched(segment: Callable[..., Any], *given: Any, **options: Any) -> Any:
        for value in given:  # tensors saved by a checkpoint do not pass the hooks
            if isinstance(value, Tensor):
                pack(value)
        return checkpoint(segment, *given, **options)

    with (
        pytest.MonkeyPatch.context() as patch,
        torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor),
    ):
        patch.setattr(cxlp.backbones.gradient_checkpointing, "checkpoint", watched)
        result = forward()
    return result, sum(memory.values())


def step(backbone: Backbone, recompute: bool) -> tuple[tuple[Tensor, ...], dict[str, Tensor], int]:
    """Return maps, gradients by parameter, and the bytes kept between forward and backward pass."""
    backbone.recompute = recompute
    torch.manual_seed(5)  # of dropout and similar layers
    maps, held = held_bytes(lambda: backbone(photos()))
    sum((m.float() ** 2).mean() for m in maps).backward()
    return maps, {name: p.grad for name, p in backbone.named_parameters() if p.grad is not None}, held


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("norms", ["trained", "frozen"])
def test_values_gradients_and_statistics_equal_a_plain_step(name: str, norms: str) -> None:
    plain, segmented = build(name), build(name)
    for backbone in (plain, segmented):
        for module in backbone.modules():
            if norms == "frozen" and isinstance(module, nn.BatchNorm2d):
                module.eval()
    expected, gradients, held = step(plain, False)
    found, own, fewer = step(segmented, True)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)
    assert own.keys() == gradients.keys() == dict(plain.named_parameters()).keys()
    torch.testing.assert_close(own, gradients, rtol=1e-6, atol=1e-6)
    assert any(bool(g.any()) for g in gradients.values())
    torch.testing.assert_close(segmented.state_dict(), plain.state_dict(), rtol=0, atol=0)
    assert fewer < 0.4 * held, (fewer, held)


class Overwriting(nn.Module):
    """A graph that is hard to split: storage that is written twice, aliases, scalars, random numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.convs = nn.ModuleList(nn.Conv2d(8 if i else 3, 8, 3, padding=1) for i in range(6))
        self.rest = nn.Identity()
        self.dropout = nn.Dropout(0.5, inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        x = self.convs[0](x)
        skipped = self.rest(x)  # the same storage
        y = self.convs[1](F.relu(x))
        y = self.convs[2](F.silu(y))
        skipped = F.hardswish(skipped, inplace=True)
        x = self.convs[3](x)  # reads the value that was written through the alias
        batch, channels = x.shape[0], x.shape[1]
        x = x + y + skipped
        one, other = self.dropout(x).chunk(2, dim=1)
        x = torch.cat([2 * one, other], dim=1)
        x = self.convs[5](F.silu(self.convs[4](x), inplace=True))
        return x.flatten(2).view(batch, channels, -1)


def overwriting() -> Any:
    torch.manual_seed(0)
    return create_feature_extractor(Overwriting(), {"view": "map"}, suppress_diff_warning=True).train()


def test_segments_are_not_split_at_overwritten_tensors(monkeypatch: pytest.MonkeyPatch) -> None:
    plain, segmented, x = overwriting(), overwriting(), torch.randn(2, 3, 16, 16)
    names = {node.name: i for i, node in enumerate(segmented.graph.nodes)}
    expected = gradients(plain, lambda: plain(x)["map"])
    fine = list(allowed_cuts(segmented))
    assert len(fine) > len(find_cuts(segmented)) > 0
    for cuts in (find_cuts(segmented), fine):
        for written, again in (("convs_0", "hardswish"), ("add_1", "dropout"), ("convs_4", "silu_1")):
            assert not [cut for cut in cuts if names[written] < cut <= names[again]]
        monkeypatch.setattr(cxlp.backbones.gradient_checkpointing, "find_cuts", lambda _trunk, cuts=cuts: cuts)
        own = gradients(segmented, lambda: run_in_segments(segmented, x)["map"])
        torch.testing.assert_close(own, expected, rtol=1e-6, atol=1e-6)
    monkeypatch.setattr(cxlp.backbones.gradient_checkpointing, "find_cuts", lambda _trunk: [names["hardswish"]])
    with pytest.raises(CxlpError, match=r"overwrites its map 'rest' in place.*model\.recompute"):
        run_in_segments(segmented, x)


def gradients(trunk: nn.Module, forward: Callable[[], Tensor]) -> list[Tensor]:
    trunk.zero_grad()
    torch.manual_seed(3)
    out = forward()
    torch.autograd.backward((out**2).mean())
    return [out.detach(), *(p.grad.clone() for p in trunk.parameters() if p.grad is not None)]


def test_half_precision_equals_a_plain_step() -> None:
    plain, segmented = build("squeezenet1_0"), build("squeezenet1_0")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        expected, gradients, _ = step(plain, False)
        found, own, _ = step(segmented, True)
    assert found[0].dtype == torch.bfloat16
    torch.testing.assert_close(found, expected, rtol=0, atol=0)
    torch.testing.assert_close(own, gradients, rtol=1e-6, atol=1e-6)


def test_evaluation_and_copies_are_unaffected(monkeypatch: pytest.MonkeyPatch) -> None:
    backbone = build("timm/test_resnet")
    names = list(backbone.state_dict())
    backbone.recompute = True
    backbone(photos())
    assert list(backbone.state_dict()) == names
    twin = copy.deepcopy(backbone)
    assert twin.recompute
    torch.testing.assert_close(step(twin, True)[1], step(backbone, True)[1])
    monkeypatch.setattr(cxlp.backbones.gradient_checkpointing, "checkpoint", None)  # neither is split into segments
    backbone.eval()(photos())
    with torch.no_grad():
        backbone.train()(photos())
