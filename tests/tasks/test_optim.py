"""Schedule and parameter groups: the formula step by step, each parameter once, rates and decay by part."""

from dataclasses import replace
from itertools import pairwise
from typing import Any, Literal

import pytest
import torch
from torch import nn

from cxlp.backbones.backbone import Backbone, BackboneConfig
from cxlp.heads import AveragePooling, BilinearPooling, CrossLayerPooling, Head, TrainedGuidePooling
from cxlp.models.network import Network
from cxlp.tasks.optim import DEPTHS, OptimizerConfig, build_optimizer, warmup_cosine
from cxlp.utils.errors import CxlpError

BACKBONE = BackboneConfig("timm/test_resnet", ("layer3.0.conv2", "layer3"), weights=None, image_size=64)
RATES = OptimizerConfig(backbone_lr=0.1, projection_lr=0.2, classifier_lr=0.3, weight_decay=0.01)


def network(head: Head | None = None) -> Network:
    return Network(Backbone.from_config(BACKBONE), head or CrossLayerPooling(pca_dim=6), ["gull", "tern", "wren"])


def factors(warmup: int, total: int, steps: int) -> list[float]:
    """Return the learning rates of the first steps, as fractions of the peak."""
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=2.0)
    schedule = warmup_cosine(optimizer, warmup, total)
    found = []
    for _ in range(steps):
        found.append(optimizer.param_groups[0]["lr"] / 2.0)
        optimizer.step()
        schedule.step()
    return found


# --- the schedule


def test_the_schedule_is_linear_growth_then_half_a_cosine() -> None:
    # by hand: fifths up to the peak at step 4, then (1 + cos(pi t / 8)) / 2 at t = 0..8
    cosine = [1.0, 0.961940, 0.853553, 0.691342, 0.5, 0.308658, 0.146447, 0.038060, 0.0]
    found = factors(warmup=4, total=12, steps=15)
    assert found[:4] == pytest.approx([0.2, 0.4, 0.6, 0.8])
    assert found[4:13] == pytest.approx(cosine, abs=1e-6)
    assert found[13:] == [0.0, 0.0]  # never increasing again, if a run takes an additional step


def test_without_warm_up_the_rate_starts_at_the_peak() -> None:
    assert factors(warmup=0, total=4, steps=5) == pytest.approx([1, 0.853553, 0.5, 0.146447, 0], abs=1e-6)


@pytest.mark.parametrize("total", [0, 1, 3, 4])
def test_a_run_shorter_than_its_warm_up_only_grows(total: int) -> None:
    found = factors(warmup=4, total=total, steps=7)
    assert found[: max(1, total)] == pytest.approx([0.2, 0.4, 0.6, 0.8][: max(1, total)])
    assert found[4:6] == pytest.approx([1.0, 0.0], abs=1e-12)  # and it reaches its end nevertheless


def test_the_backbone_is_frozen_first_and_then_warms_up() -> None:
    groups = [
        {"params": [nn.Parameter(torch.zeros(1))], "name": name} for name in ("backbone/0", "projection", "classifier")
    ]
    optimizer = torch.optim.SGD(groups, lr=1.0)
    schedule = warmup_cosine(optimizer, warmup=2, total=12, hold=5)
    found: list[list[float]] = []
    for _ in range(13):
        found.append([group["lr"] for group in optimizer.param_groups])
        optimizer.step()
        schedule.step()
    held, projection, free = zip(*found, strict=True)
    assert projection == held
    assert list(free) == pytest.approx(factors(warmup=2, total=12, steps=13))
    assert list(free) != [2 * f for f in factors(2, 12, 13)]
    assert held[:5] == (0,) * 5
    assert held[5:7] == pytest.approx((free[5] / 3, free[6] * 2 / 3))
    assert held[7:] == pytest.approx(free[7:])


def test_all_groups_share_the_shape() -> None:
    optimizer = build_optimizer(network(), RATES)
    schedule = warmup_cosine(optimizer, warmup=1, total=3)
    peaks = {"backbone": 0.1, "projection": 0.2, "classifier": 0.3}
    for factor in (0.5, 1.0, 0.5, 0.0):
        for group in optimizer.param_groups:
            assert group["lr"] == pytest.approx(factor * peaks[group["name"].partition("/")[0]], abs=1e-12)
        optimizer.step()
        schedule.step()


# --- the groups


def by_name(whole: Network, config: OptimizerConfig) -> dict[str, tuple[dict[str, Any], set[str]]]:
    """Return each group by its name, with the names of its parameters."""
    names = {id(p): n for n, p in whole.named_parameters()}
    groups = build_optimizer(whole, config).param_groups
    return {group["name"]: (group, {names[id(p)] for p in group["params"]}) for group in groups}


@pytest.mark.parametrize(
    "head",
    [
        CrossLayerPooling(pca_dim=6),
        CrossLayerPooling(pca_dim=6, guide_dim=5),
        BilinearPooling(pca_dim=6),
        TrainedGuidePooling(pca_dim=6, channels=4),
        AveragePooling(),
    ],
    ids=lambda head: head.name,
)
def test_each_parameter_is_in_exactly_one_group(head: Head) -> None:
    whole = network(head)
    given = [p for group in build_optimizer(whole, RATES).param_groups for p in group["params"]]
    assert len(given) == len({id(p) for p in given})
    assert {id(p) for p in given} == {id(p) for p in whole.parameters()}


def test_rates_depend_on_the_part_and_biases_have_no_decay() -> None:
    whole = network()
    groups = by_name(whole, RATES)
    assert list(groups) == [f"{p}{s}" for p in ("backbone", "projection", "classifier") for s in ("", "/no_decay")]
    for name, (group, members) in groups.items():
        part, _, suffix = name.partition("/")
        where = "heads.0.projection" if part == "projection" else part
        assert members and all(member.startswith(where + ".") for member in members)
        assert group["lr"] == getattr(RATES, f"{part}_lr")
        assert group["weight_decay"] == (0.0 if suffix else 0.01)
    norms = {
        f"{name}.{parameter}"
        for name, module in whole.named_modules()
        if isinstance(module, nn.BatchNorm2d)
        for parameter in ("weight", "bias")
    }
    biases = {name for name, _ in whole.named_parameters() if name.endswith(".bias")}
    exempt = {member for name, (_, members) in groups.items() if name.endswith("/no_decay") for member in members}
    assert norms
    assert exempt == norms | biases


@pytest.mark.parametrize("head", [CrossLayerPooling(pca_dim=None), AveragePooling(layers=["layer3.0.conv2"])])
def test_a_network_without_projection_has_no_group_for_it(head: Head) -> None:
    groups = by_name(network(head), RATES)
    assert set(groups) == {"backbone", "backbone/no_decay", "classifier", "classifier/no_decay"}


def test_frozen_parameters_are_left_out() -> None:
    whole = network()
    whole.backbone.requires_grad_(False)
    whole.get_parameter("heads.0.projection.bias").requires_grad_(False)
    groups = by_name(whole, RATES)
    assert set(groups) == {"projection", "classifier", "classifier/no_decay"}


def test_sgd_has_nesterov_momentum() -> None:
    optimizer = build_optimizer(network(), RATES)
    assert isinstance(optimizer, torch.optim.SGD)
    assert all(group["momentum"] == 0.9 and group["nesterov"] for group in optimizer.param_groups)


def test_adamw_keeps_rates_and_decays() -> None:
    whole = network()
    optimizer = build_optimizer(whole, replace(RATES, name="adamw"))
    assert isinstance(optimizer, torch.optim.AdamW)
    sgd = build_optimizer(whole, RATES)
    for mine, other in zip(optimizer.param_groups, sgd.param_groups, strict=True):
        assert [mine[k] for k in ("name", "lr", "weight_decay")] == [other[k] for k in ("name", "lr", "weight_decay")]


# --- depth and batch


def test_lower_layers_have_lower_rates() -> None:
    whole = network()
    groups = by_name(whole, replace(RATES, layer_decay=0.1))
    rates = {name: group["lr"] for name, (group, _) in groups.items() if name.startswith("backbone")}
    depths = [rates[f"backbone/{depth}"] for depth in range(DEPTHS)]
    assert depths == pytest.approx([0.1 * 0.1 ** (1 - depth / 5) for depth in range(DEPTHS)])
    place = {member: name for name, (_, members) in groups.items() for member in members}
    assert place["backbone.trunk.conv1.0.weight"] == "backbone/0"
    assert place["backbone.trunk.layer3.0.conv1.weight"] == "backbone/4"
    assert place["backbone.trunk.layer3.0.conv3.weight"] == "backbone/5"
    # scale and shift of a norm learn with the convolution before it
    names = [name for name, _ in whole.backbone.named_parameters(prefix="backbone")]
    for before, name in pairwise(names):
        if whole.get_parameter(name).ndim == 1:
            assert place[name].removesuffix("/no_decay") == place[before].removesuffix("/no_decay"), name
    assert set(place) == {name for name, _ in whole.named_parameters()}


@pytest.mark.parametrize(("name", "factor"), [("sgd", 4.0), ("adamw", 2.0)])
def test_rates_follow_the_global_batch(name: Literal["sgd", "adamw"], factor: float) -> None:
    config = replace(RATES, name=name, reference_batch=32)
    plain = build_optimizer(network(), RATES).param_groups
    grown = build_optimizer(network(), config, batch=128).param_groups
    for mine, other in zip(grown, plain, strict=True):
        assert mine["lr"] == pytest.approx(factor * other["lr"])
    assert build_optimizer(network(), RATES, batch=128).param_groups[0]["lr"] == 0.1


@pytest.mark.parametrize(
    "option", [{"hold_epochs": -1}, {"layer_decay": 0}, {"layer_decay": 2}, {"reference_batch": 0}]
)
def test_options_out_of_range_are_named(option: dict[str, Any]) -> None:
    with pytest.raises(CxlpError, match=rf"model\.optimizer\.{next(iter(option))} is"):
        OptimizerConfig(**option)
