"""Feature extraction: the outputs are the maps of the named layers, and layers above them are removed."""

import copy
from collections.abc import Callable
from typing import Any, cast

import pytest
import timm
import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, fx, nn

from cxlp.backbones import feature_extraction as cutting
from cxlp.backbones.feature_extraction import Activation
from cxlp.utils.errors import CxlpError


def cut(model: nn.Module, layers: tuple[str, str], activation: Activation, name: str) -> fx.GraphModule:
    return cutting.cut(model, dict(zip(("local", "guide"), layers, strict=True)), activation, name)


def test_a_single_layer_drops_the_modules_of_others(images: Tensor) -> None:
    model = tv("squeezenet1_0")()
    both = cut(model, ("features.11", "features.12"), "after", "squeezenet1_0").eval()
    lower = cutting.cut(model, {"local": "features.11"}, "after", "squeezenet1_0").eval()
    assert [name for name, _ in lower.named_parameters() if name.startswith("features.12")] == []
    found = lower(images)
    assert list(found) == ["local"] and torch.equal(found["local"], both(images)["local"])


def tv(name: str) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        special = {"init_weights": False} if name == "googlenet" else {}
        with torch.device("meta"):  # torchvision's own initialisation is slow
            model: nn.Module = torchvision.models.get_model(name, weights=None, **special)
        if name.startswith("vgg"):
            model.classifier = nn.Flatten()  # 120 of its 130 million parameters, above all layers that are tested here
        model.to_empty(device="cpu")
        for module in model.modules():
            if hasattr(module, "reset_parameters"):
                module.reset_parameters()  # type: ignore[operator]
        return model

    return build


def ti(name: str) -> Callable[[], nn.Module]:
    return lambda: timm.create_model(name, pretrained=False)


# Network, the two layers, and the modules whose outputs are the maps before and after the activation.
Case = tuple[Callable[[], nn.Module], tuple[str, str], tuple[str, str], tuple[str, str]]
CASES: dict[str, Case] = {
    "vgg11": (tv("vgg11"), ("features.11", "features.13"), ("features.12", "features.14"),
              ("features.11", "features.13")),
    "vgg11 by its ReLU": (tv("vgg11"), ("features.12", "features.14"), ("features.12", "features.14"),
                          ("features.11", "features.13")),
    "vgg11_bn": (tv("vgg11_bn"), ("features.15", "features.18"), ("features.17", "features.20"),
                 ("features.16", "features.19")),
    "squeezenet1_0": (tv("squeezenet1_0"), ("features.10.squeeze", "features.12.squeeze"),
                      ("features.10.squeeze_activation", "features.12.squeeze_activation"),
                      ("features.10.squeeze", "features.12.squeeze")),
    "timm/resnet18": (ti("resnet18"), ("layer2.0.conv1", "layer2.1.conv1"), ("layer2.0.act1", "layer2.1.act1"),
                      ("layer2.0.bn1", "layer2.1.bn1")),
    "timm/tf_efficientnet_lite0": (ti("tf_efficientnet_lite0"), ("blocks.5.0.conv_dw", "conv_head"),
                                   ("blocks.5.0.bn2", "bn2"), ("", "")),
}  # fmt: skip


def hooked(model: nn.Module, layers: tuple[str, ...], images: Tensor) -> list[Tensor]:
    """Record the outputs of modules, cloned before later modules overwrite them."""
    seen: dict[str, Tensor] = {}
    for layer in layers:

        def keep(_m: nn.Module, _i: object, output: Tensor, layer: str = layer) -> None:
            seen[layer] = output.clone()

        model.get_submodule(layer).register_forward_hook(keep)
    model.eval()(images)
    return [seen[layer] for layer in layers]


def settle(model: nn.Module) -> nn.Module:
    """Set statistics and weights of BatchNorm that differ from the identity, so that a missing one is noticed."""
    generator = torch.Generator().manual_seed(1)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor in (module.running_mean, module.weight.data, module.bias.data):
                assert tensor is not None
                tensor.add_(0.2 * torch.randn(tensor.shape, generator=generator))
    return model.eval()


@pytest.fixture(scope="module")
def images() -> Tensor:
    return torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("activation", ["after", "before"])
@pytest.mark.parametrize("case", CASES)
@torch.no_grad()
def test_maps_equal_the_outputs_of_the_modules(case: str, activation: Activation, images: Tensor) -> None:
    build, layers, after, before = CASES[case]
    model = settle(build())
    whole = copy.deepcopy(model)
    trunk = cut(model, layers, activation, case).eval()
    found = trunk(images)
    found = [found["local"], found["guide"]]
    if activation == "before" and before == (
        "",
        "",
    ):  # fused with its BatchNorm: no module returns the map before the activation
        for layer in after:
            whole.get_submodule(layer).act = nn.Identity()
        before = after
        # The lower layer's activation is still applied to the input of the upper one.
        whole.get_submodule(after[0]).register_forward_hook(lambda _m, _i, output: F.relu6(output))
        lower = hooked_input(whole, after[0], images)
        expected = [lower, hooked(whole, before, images)[1]]
    else:
        expected = hooked(whole, after if activation == "after" else before, images)
    for tap, truth in zip(found, expected, strict=True):
        torch.testing.assert_close(tap, truth)
        # The sign distinguishes the maps before and after ReLU.
        assert (tap.min() == 0) if activation == "after" else (tap.min() < 0)


def hooked_input(model: nn.Module, norm: str, images: Tensor) -> Tensor:
    """Compute the output of a normalisation from its input by its formula."""
    seen: list[Tensor] = []
    module = model.get_submodule(norm)
    assert isinstance(module, nn.BatchNorm2d)
    handle = module.register_forward_pre_hook(lambda _m, args: seen.append(args[0].clone()))
    model.eval()(images)
    handle.remove()
    return F.batch_norm(seen[0], module.running_mean, module.running_var, module.weight, module.bias, eps=module.eps)


@pytest.mark.parametrize("activation", ["after", "before"])
@torch.no_grad()
def test_residual_blocks_and_reused_modules(activation: Activation, images: Tensor) -> None:
    # torchvision's basic block calls the same in-place ReLU twice; the block's map is the output of the second call.
    model = settle(tv("resnet18")())
    whole = copy.deepcopy(model)
    found = cut(model, ("layer1.0", "layer1.1"), activation, "resnet18").eval()(images)
    inputs = hooked(whole, ("maxpool", "layer1.0"), images)
    for i, name in enumerate(("local", "guide")):
        block: Any = whole.get_submodule(f"layer1.{i}")
        x = inputs[i]
        total = block.bn2(block.conv2(F.relu(block.bn1(block.conv1(x))))) + x
        torch.testing.assert_close(found[name], total.relu() if activation == "after" else total)


@torch.no_grad()
def test_a_layer_without_an_activation_is_extracted_directly(images: Tensor) -> None:
    # bn2 of a basic block is followed by the sum with the shortcut, not by its ReLU.
    model = settle(tv("resnet18")())
    expected = hooked(copy.deepcopy(model), ("layer1.0.bn2", "layer1.1.bn2"), images)
    activations: tuple[Activation, ...] = ("after", "before")
    for activation in activations:
        found = cut(model, ("layer1.0.bn2", "layer1.1.bn2"), activation, "resnet18").eval()(images)
        torch.testing.assert_close(found["local"], expected[0])
        torch.testing.assert_close(found["guide"], expected[1])


@torch.no_grad()
def test_graph_nodes_are_valid_layer_names(images: Tensor) -> None:
    model = settle(tv("resnet18")())
    by_module = cut(model, ("layer1.0", "layer1.1"), "after", "resnet18").eval()(images)
    by_node = cut(model, ("layer1.0.relu_1", "layer1.1.relu_1"), "after", "resnet18").eval()(images)
    assert torch.equal(by_module["local"], by_node["local"])
    assert torch.equal(by_module["guide"], by_node["guide"])
    inner = cut(model, ("layer1.0.relu", "layer1.0.add"), "before", "resnet18").eval()(images)
    assert not torch.equal(inner["local"], by_module["local"])
    torch.testing.assert_close(inner["guide"].relu(), by_module["local"])


@torch.no_grad()
def test_functional_relus_and_concatenations(images: Tensor) -> None:
    layers = ("inception4a", "inception4b")
    model = settle(tv("googlenet")())
    expected = hooked(copy.deepcopy(model), layers, images)
    found = cut(model, layers, "after", "googlenet").eval()(images)
    torch.testing.assert_close([found["local"], found["guide"]], expected)
    assert min(tap.min() for tap in expected) == 0


@torch.no_grad()
def test_other_activations_are_recognised(images: Tensor) -> None:
    model = settle(timm.create_model("convnext_atto", pretrained=False))
    layers = ("stages.1.blocks.0", "stages.1.blocks.1")
    expected = hooked(copy.deepcopy(model), layers, images)
    found = cut(model, layers, "after", "convnext_atto").eval()(images)
    torch.testing.assert_close([found["local"], found["guide"]], expected)


class Writers(nn.Module):
    """Ways of overwriting the map of ``conv`` in place, directly or by an alias."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.conv, self.upper = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3)
        self.relu, self.alias, self.rest = nn.ReLU(inplace=True), nn.Identity(), nn.Dropout(0.5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        if self.kind == "module":
            x = self.relu(x)
        elif self.kind == "behind aliases":
            x = self.relu(self.rest(self.alias(x)))
        elif self.kind == "behind a view":
            x = F.relu_(x.flatten(2)).view(-1, 4, 62, 62)
        elif self.kind == "functional":
            x = F.relu(x, inplace=True)
        elif self.kind == "method":
            x = x.relu_()
        else:
            x = x.mul_(2)
        return cast(Tensor, self.upper(x))


@pytest.mark.parametrize("kind", ["module", "behind aliases", "behind a view", "functional", "method", "arithmetic"])
def test_later_in_place_operations_do_not_change_maps(kind: str, images: Tensor) -> None:
    model = Writers(kind).eval()
    local = model.conv(images)
    guide = model.upper(F.relu(local) if kind != "arithmetic" else 2 * local)
    trunk = cut(model, ("conv", "upper"), "before", "writers").eval()
    found = trunk(images)
    torch.testing.assert_close(found["local"], local)
    torch.testing.assert_close(found["guide"], guide)
    (found["local"].sum() + found["guide"].sum()).backward()  # autograd accepts it, too
    assert model.conv.weight.grad is not None and model.conv.weight.grad.any()


def test_an_activation_behind_an_identity_is_found(images: Tensor) -> None:
    # timm has placeholders (drop_block, anti-aliasing) between BatchNorm and ReLU.
    found = cut(Writers("behind aliases"), ("conv", "upper"), "after", "writers").eval()(images)
    assert found["local"].min() == 0


@pytest.mark.parametrize("case", CASES)
def test_later_modules_are_removed_and_parameter_names_kept(case: str) -> None:
    build, layers, after, before = CASES[case]
    model = build()
    trunk = cut(model, layers, "before", case)
    whole, kept = model.state_dict(), trunk.state_dict()
    assert kept.keys() < whole.keys()
    assert all(kept[name].shape == whole[name].shape for name in kept)
    # In these networks, the order of definition is the order of execution: the last kept module is the upper layer.
    names = list(whole)
    upper = tuple(f"{layer}." for layer in (layers[1], after[1], before[1]) if layer)
    assert max(names.index(name) for name in kept) == max(i for i, name in enumerate(names) if name.startswith(upper))


def test_vgg16_keeps_a_tenth_of_its_parameters() -> None:
    with torch.device("meta"):
        model = torchvision.models.vgg16(weights=None)
    trunk = cut(model, ("features.26", "features.28"), "after", "vgg16")
    assert sum(p.numel() for p in model.parameters()) == 138_357_544
    assert sum(p.numel() for p in trunk.parameters()) == 14_714_688


def test_a_fused_activation_taken_apart_keeps_parameter_names() -> None:
    model = timm.create_model("tf_efficientnet_lite0", pretrained=False)
    after = cut(copy.deepcopy(model), ("blocks.5.0.conv_dw", "conv_head"), "after", "lite0").state_dict()
    before = cut(model, ("blocks.5.0.conv_dw", "conv_head"), "before", "lite0").state_dict()
    assert list(before) == list(after)


def test_training_and_evaluation_differ_where_the_network_does() -> None:
    x = torch.rand(8, 3, 32, 32)
    trunk = cut(torchvision.models.efficientnet_b0(weights=None), ("features.2", "features.3"), "after", "b0")
    for module in trunk.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = (
                0.0  # batches do not change the statistics, so that only stochastic depth differs between calls
            )
        elif isinstance(module, torchvision.ops.StochasticDepth):
            module.p = 0.5
    trunk.train()
    torch.manual_seed(0)
    assert not torch.equal(trunk(x)["guide"], trunk(x)["guide"])
    trunk.eval()
    assert torch.equal(trunk(x)["guide"], trunk(x)["guide"])


class Dropping(nn.Module):
    """Functional dropout, which tracing once would fix in one mode."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.upper = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.dropout(self.conv(x), 0.5, self.training)
        if self.training:
            x = x + 0
        return cast(Tensor, self.upper(x))


def test_functional_dropout_follows_the_mode(images: Tensor) -> None:
    model = Dropping()
    trunk = cut(model, ("conv", "upper"), "after", "dropping")
    for _ in range(2):  # to the other mode and back
        assert not torch.equal(trunk.train()(images)["guide"], trunk(images)["guide"])
        torch.testing.assert_close(trunk.eval()(images)["guide"], model.upper(model.conv(images)))


# --- errors


def test_an_unknown_layer_lists_close_ones() -> None:
    with pytest.raises(CxlpError, match=r"the net has no layer 'layer1.O'. Did you mean 'layer1\.[01]'.*layer1\.0"):
        cut(tv("resnet18")(), ("layer1.O", "layer1.1"), "after", "the net")
    with pytest.raises(CxlpError, match=r"no layer 'features.9x'. Did you mean .*'features.9'"):
        cut(tv("vgg11")(), ("features.8", "features.9x"), "after", "vgg11")


def test_two_names_for_one_map_return_it_twice(images: Tensor) -> None:
    found = cut(tv("vgg11")(), ("features.11", "features.12"), "after", "vgg11").eval()(images)
    assert list(found) == ["local", "guide"] and found["local"] is found["guide"]


@pytest.mark.parametrize(
    ("build", "same"),
    [(tv("resnet18"), "flatten"), (tv("squeezenet1_0"), "features.12"), (ti("tf_efficientnet_lite0"), "global_pool")],
)
def test_penultimate_is_the_input_of_the_classifier(build: Callable[[], nn.Module], same: str, images: Tensor) -> None:
    model = settle(build())
    found = cut(copy.deepcopy(model), (same, "penultimate"), "after", "it").eval()(images)
    assert found["local"] is found["guide"]
    classifier = model.get_submodule("fc" if same == "flatten" else "classifier")
    scores = classifier(found["guide"])
    torch.testing.assert_close(scores.flatten(1), model(images))


class Branching(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x if x.sum() > 0 else -x


def test_a_network_that_cannot_be_traced_is_named() -> None:
    with pytest.raises(CxlpError, match=r"the branching one cannot be .*traced_as_one = True"):
        cut(Branching(), ("a", "b"), "after", "the branching one")


def test_the_trunk_is_a_plain_graph() -> None:
    trunk = cut(tv("squeezenet1_0")(), ("features.11", "features.12"), "after", "squeezenet1_0")
    assert isinstance(trunk, fx.GraphModule)
    torch._dynamo.reset()
    compiled = torch.compile(trunk.eval(), fullgraph=True, backend="eager")
    x = torch.rand(1, 3, 64, 64)
    torch.testing.assert_close(compiled(x), trunk(x))


# --- transformers


def small_transformer() -> nn.Module:
    torch.manual_seed(0)
    model: nn.Module = torchvision.models.VisionTransformer(
        image_size=32, patch_size=8, num_layers=3, num_heads=2, hidden_dim=16, mlp_dim=24
    )
    return model


@pytest.mark.parametrize(
    ("build", "size", "block", "mlp", "act"),
    [
        (small_transformer, 32, "encoder.layers.encoder_layer_0", "encoder.layers.encoder_layer_1.mlp.0", "mlp.1"),
        (ti("test_vit"), 160, "blocks.0", "blocks.1.mlp.fc1", "mlp.act"),
    ],
)
@torch.no_grad()
def test_blocks_and_mlps_of_transformers_are_layers(
    build: Callable[[], nn.Module], size: int, block: str, mlp: str, act: str
) -> None:
    model, x = build().eval(), torch.rand(2, 3, size, size, generator=torch.Generator().manual_seed(0))
    after = mlp[: mlp.index("mlp")] + act
    tokens, linear, active = hooked(model, (block, mlp, after), x)
    torch.testing.assert_close(active, F.gelu(linear))
    for layer in (mlp, after):
        for activation, expected in (("after", active), ("before", linear)):
            found = cut(model, (block, layer), cast("Activation", activation), "vit").eval()(x)
            torch.testing.assert_close(found["local"], tokens)
            torch.testing.assert_close(found["guide"], expected)


def test_assertions_of_later_blocks_are_removed() -> None:
    trunk = cut(
        small_transformer(),
        ("encoder.layers.encoder_layer_0", "encoder.layers.encoder_layer_1.mlp.0"),
        "after",
        "vit",
    )
    assert not [name for name, _ in trunk.named_parameters() if "layer_2" in name or "heads" in name]
    assert len(list(trunk.eval_graph.nodes)) < 60  # type: ignore[union-attr, arg-type]
    with pytest.raises(AssertionError, match="Wrong image height"):  # the output of the patches before them is kept
        trunk(torch.rand(1, 3, 24, 32))


def test_a_layer_that_exists_in_one_mode_only_is_refused() -> None:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1)

        def forward(self, x: Tensor) -> Tensor:
            x = self.a(x)
            return x if self.training else self.b(x)

    with pytest.raises(CxlpError, match="odd has no layer 'b' in training"):
        cut(Odd(), ("a", "b"), "after", "odd")
