"""Held backbones: when the folded copy is created, and which changes it follows."""

import copy
import pickle
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from cxlp.backbones.backbone import Backbone
from tests.backbones.small import build
from tests.backbones.test_folding import build_own, folded, norms, with_statistics


def test_only_passes_without_gradients_in_evaluation_are_folded(photos: Tensor) -> None:
    backbone = with_statistics(build("resnet18", ("layer3", "layer4"), image_size=64))
    backbone.hold()
    backbone(photos)[0].sum().backward()
    assert backbone.trunk.get_parameter("conv1.weight").grad is not None
    with torch.no_grad():
        backbone.train()(photos)
    assert backbone._holds[0].made is None
    with torch.no_grad():
        backbone.eval()(photos)
    assert backbone._holds[0].made is not None
    assert not copy.deepcopy(backbone)._holds and pickle.loads(pickle.dumps(backbone.state_dict()))


@torch.no_grad()
def test_released_weights_may_change(photos: Tensor) -> None:
    backbone = with_statistics(build("resnet18", ("layer3", "layer4"), image_size=64))
    with backbone.held():
        before = backbone(photos)[0]
    backbone.trunk.get_parameter("bn1.bias").data.add_(1)
    with backbone.held():
        assert not torch.equal(backbone(photos)[0], before)


def shift(backbone: Backbone) -> None:
    backbone.trunk.get_parameter("bn1.bias").add_(1)


def load(backbone: Backbone) -> None:
    backbone.load_state_dict({key: 2 * value for key, value in backbone.state_dict().items()})


def replace(backbone: Backbone) -> None:
    backbone.trunk.get_parameter("bn1.bias").data = torch.ones(64, dtype=torch.float64)


@pytest.mark.parametrize("change", [shift, load, replace, Backbone.float])
@torch.no_grad()
def test_changes_of_held_weights_are_detected(change: Callable[[Backbone], Any], photos: Tensor) -> None:
    backbone = with_statistics(build("resnet18", ("layer3", "layer4"), image_size=64))
    backbone.hold()
    before = backbone(photos)[0]
    change(backbone)
    found = backbone(photos)[0]
    backbone.release()
    assert not torch.equal(found, before)
    torch.testing.assert_close(found, backbone(photos)[0], rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_holds_can_be_nested(photos: Tensor) -> None:
    backbone = with_statistics(build("resnet18", ("layer3", "layer4"), image_size=64))
    backbone.hold()
    with backbone.held():
        backbone(photos)
    backbone(photos)
    assert norms(folded(backbone)) == 0
    backbone.release()
    backbone.release()  # an additional release has no effect
    assert not backbone._holds


@torch.no_grad()
@pytest.mark.filterwarnings("ignore:.*torch.jit.trace:FutureWarning")
def test_a_traced_held_backbone_accepts_any_batch_size() -> None:
    backbone = build_own(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU()), ("2",))
    small, large = torch.rand(2, 3, 64, 64), torch.rand(40, 3, 64, 64)
    with backbone.held():
        traced: Any = torch.jit.trace(backbone, small)  # type: ignore[no-untyped-call]
        torch.testing.assert_close(traced(large)[0], backbone(large)[0])


def test_threads_share_a_backbone() -> None:
    backbone = build_own(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU()), ("2",))
    images = torch.rand(1, 3, 64, 64)

    def work(half: bool) -> None:
        for _ in range(100):
            with torch.no_grad(), backbone.held(), torch.autocast("cpu", torch.bfloat16, enabled=half):
                assert backbone(images)[0].dtype == (torch.bfloat16 if half else torch.float32)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, [True, False, True, False]))
    assert not backbone._holds


def test_a_copy_made_in_inference_mode_serves_later_passes(photos: Tensor) -> None:
    backbone = build("resnet18", ("layer3", "layer4"), image_size=64)
    backbone.hold()
    with torch.inference_mode():
        expected = backbone(photos)[0].clone()
    with torch.no_grad():
        assert torch.equal(backbone(photos)[0], expected)
