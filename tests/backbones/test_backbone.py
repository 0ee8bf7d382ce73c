"""Backbones: their description, preprocessing and modes."""

import copy
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, Literal

import pytest
import timm
import torch
import torchvision
from torch import Tensor, nn
from torchvision.models import _api

from cxlp.backbones.backbone import Backbone, BackboneConfig
from cxlp.utils.errors import CxlpError
from tests.backbones.small import SQUEEZE, build, hooked

# --- description


@pytest.mark.parametrize(
    ("name", "layers", "size", "channels", "map_sizes"),
    [
        ("squeezenet1_0", SQUEEZE, 227, (512, 512), ((13, 13), (13, 13))),
        ("timm/resnet18", ("layer1", "layer3"), 64, (64, 256), ((16, 16), (4, 4))),
        ("timm/convnext_atto", ("stages.1", "stages.2"), 64, (80, 160), ((8, 8), (4, 4))),
        ("efficientnet_lite0", ("blocks.6.0", "conv_head"), 64, (320, 1280), ((2, 2), (2, 2))),
    ],
)
def test_channels_and_sizes(
    name: str,
    layers: tuple[str, str],
    size: int,
    channels: tuple[int, int],
    map_sizes: tuple[tuple[int, int], tuple[int, int]],
) -> None:
    backbone = build(name, layers, image_size=size)
    assert backbone.image_size == size
    assert backbone.channels == channels
    assert backbone.map_sizes == map_sizes
    maps = backbone(torch.zeros(1, 3, size, size, dtype=torch.uint8))
    assert [m.shape for m in maps] == [(1, c, *hw) for c, hw in zip(channels, map_sizes, strict=True)]


@pytest.mark.parametrize(
    ("name", "layers", "size"),
    [
        ("squeezenet1_0", SQUEEZE, 224),
        ("timm/resnet18", ("layer1", "layer2"), 224),
        ("efficientnet_lite0", ("blocks.6.0", "conv_head"), 224),
    ],
)
def test_the_default_size_is_the_training_size(name: str, layers: tuple[str, str], size: int) -> None:
    assert build(name, layers).image_size == size


def test_caffenet_has_the_layers_of_the_paper(caffe: Backbone) -> None:
    assert caffe.image_size == 227
    assert caffe.channels == (384, 256)
    assert caffe.map_sizes == ((13, 13), (13, 13))


def test_maps_are_independent_of_memory_format_and_batch_size(squeeze: Backbone, photos: Tensor) -> None:
    whole = squeeze(photos)
    last = squeeze(photos.contiguous(memory_format=torch.channels_last))
    alone = squeeze(photos[1:])
    for i in (0, 1):
        # another batch size may use another kernel, which rounds differently
        torch.testing.assert_close(last[i], whole[i], atol=1e-4, rtol=1e-5)
        torch.testing.assert_close(alone[i], whole[i][1:], atol=1e-4, rtol=1e-5)


# --- preprocessing


@pytest.mark.parametrize("name", ["squeezenet1_0", "googlenet", "timm/resnet18", "timm/tf_efficientnet_lite0"])
def test_bytes_are_normalised_as_the_library_does(
    name: str, photos: Tensor, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    layer, upper = {
        "squeezenet1_0": SQUEEZE,
        "googlenet": ("inception4a", "inception4b"),
        "timm/resnet18": ("layer1", "layer2"),
        "timm/tf_efficientnet_lite0": ("blocks.4", "blocks.5"),
    }[name]
    bare = name.rpartition("/")[2]
    if name.startswith("timm/"):
        whole = timm.create_model(bare, pretrained=False)
        torch.save(whole.state_dict(), tmp_path / "weights.pth")
        backbone = build(name, (layer, upper), image_size=64, weights=str(tmp_path / "weights.pth"))
        config = timm.data.resolve_data_config({}, model=whole)
        mean, std = config["mean"], config["std"]
    else:
        # replaces the download of torchvision: a network with its own weights, and its usual preprocessing
        extra = {"aux_logits": True, "init_weights": False} if bare == "googlenet" else {}
        state = torchvision.models.get_model(bare, weights=None, **extra).state_dict()
        monkeypatch.setattr(_api.WeightsEnum, "get_state_dict", lambda *_args, **_kwargs: state)
        weights = torchvision.models.get_model_weights(bare).DEFAULT
        whole = torchvision.models.get_model(bare, weights=weights)
        backbone = build(name, (layer, upper), image_size=64, weights="default")
        mean, std = weights.transforms().mean, weights.transforms().std
    by_hand = (photos / 255 - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)
    found = backbone(photos)
    for one, name_here in zip(found, (layer, upper), strict=True):
        truth = hooked(whole, name_here, by_hand)
        torch.testing.assert_close(one, truth, rtol=1e-3, atol=1e-5 * max(1.0, float(truth.abs().max())))


def test_caffenet_gets_bgr_minus_its_mean(caffe: Backbone, photos: Tensor) -> None:
    seen: list[Tensor] = []
    handle = caffe.trunk.get_submodule("conv1").register_forward_pre_hook(lambda _m, args: seen.append(args[0]))
    caffe(photos)
    handle.remove()
    red, green, blue = (photos[:, i].float() for i in range(3))
    assert torch.equal(seen[0], torch.stack([blue - 104, green - 117, red - 123], 1))


@pytest.mark.parametrize("name", ["squeeze", "caffe"])
def test_bytes_and_floats_of_an_image_have_equal_maps(
    name: str, photos: Tensor, request: pytest.FixtureRequest
) -> None:
    backbone: Backbone = request.getfixturevalue(name)
    for dtype in (torch.float32, torch.float64):  # values from 0 to 1, as torchvision returns them
        for one, other in zip(backbone(photos), backbone(photos.to(dtype) / 255), strict=True):
            torch.testing.assert_close(other, one, rtol=1e-4, atol=1e-5 * one.abs().max().item())
            assert other.dtype == torch.float32


def test_mean_and_std_are_not_in_the_state_dict(squeeze: Backbone) -> None:
    assert all(key.startswith("trunk.features.") for key in squeeze.state_dict())


def test_mean_and_std_may_be_given(photos: Tensor) -> None:
    plain = build("squeezenet1_0", image_size=64)
    other = build("squeezenet1_0", image_size=64, mean=(0.1, 0.2, 0.3), std=(0.5, 0.5, 1.0))
    other.load_state_dict(plain.state_dict())
    shift, scale = (torch.tensor(v).view(3, 1, 1) for v in ((0.1, 0.2, 0.3), (0.5, 0.5, 1.0)))
    same = (photos / 255 - shift) / scale * plain.std + plain.mean  # the normalised input for the plain network
    found, expected = other(photos)[1], plain(same)[1]
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4 * expected.abs().max().item())
    for wrong in ({"mean": (0.1, 0.2)}, {"std": (1.0, 1.0, 0.0)}):
        with pytest.raises(CxlpError, match=f"backbone's {next(iter(wrong))} is"):
            build("squeezenet1_0", image_size=64, **wrong)


@torch.no_grad()
def test_each_images_own_mean_colour_may_be_subtracted(photos: Tensor) -> None:
    plain = build("squeezenet1_0", image_size=64)
    own = build("squeezenet1_0", image_size=64, mean="image")
    own.load_state_dict(plain.state_dict())
    expected = []
    for photo in photos:  # alone, because an image's mean must not depend on its batch
        colours = [float(channel.double().mean()) / 255 for channel in photo]
        shift = (torch.tensor(colours) - plain.mean.flatten()).view(3, 1, 1)
        expected.append(plain((photo / 255 - shift)[None])[1][0])
    wanted = torch.stack(expected)
    close = partial(torch.testing.assert_close, rtol=1e-3, atol=1e-4 * float(wanted.abs().max()))
    close(own(photos)[1], wanted)
    close(own(photos / 255)[1], wanted)
    tinted = photos / 255 * 0.5 + torch.rand(len(photos), 3, 1, 1) * 0.5  # a tint, which subtracting the mean removes
    close(own(tinted)[1], own(photos / 255 * 0.5)[1])
    with own.held():
        close(own(photos)[1], wanted)
    assert own.spec()["mean"] == "image" and Backbone(**own.spec()).spec() == own.spec()
    with pytest.raises(CxlpError, match=r"mean is 'images': .*'image'"):
        build("squeezenet1_0", image_size=64, mean="images")


def test_more_than_two_layers_are_returned_in_order(photos: Tensor) -> None:
    layers = ("features.12", "features.3", "features.11")
    backbone = build("squeezenet1_0", layers, image_size=64)
    assert backbone.channels == (512, 128, 512) == tuple(m.shape[1] for m in backbone(photos))
    for wrong in ((), ("features.3", "features.3"), "features.3"):
        with pytest.raises(CxlpError, match="name one or more, each once"):
            build("squeezenet1_0", wrong)  # type: ignore[arg-type]


def test_config_and_description_have_the_constructor_arguments() -> None:
    config = BackboneConfig("timm/test_resnet", ("layer1", "layer2"), weights=None, image_size=64, std=(1.0, 1.0, 0.5))
    spec = Backbone.from_config(config).spec()
    assert spec == {**asdict(config), "layers": ["layer1", "layer2"], "std": [1.0, 1.0, 0.5]}
    assert Backbone(**spec).std.flatten().tolist() == [1.0, 1.0, 0.5]


@pytest.mark.parametrize(
    ("name", "layers", "size"),
    [("squeezenet1_0", SQUEEZE, 16), ("timm/vit_tiny_patch16_224", ("blocks.0", "blocks.1"), 64)],
)
def test_an_image_size_that_the_network_cannot_take_is_named(name: str, layers: tuple[str, str], size: int) -> None:
    with pytest.raises(CxlpError, match=f"{name} cannot take images of {size} x {size} .*backbone's image_size"):
        build(name, layers, image_size=size)


def test_random_weights_are_random() -> None:
    one, other = build("squeezenet1_0", image_size=64), build("squeezenet1_0", image_size=64)
    assert not torch.equal(next(one.parameters()), next(other.parameters()))


# --- modes


def test_a_new_backbone_is_in_training_mode_and_building_changes_no_mode() -> None:
    backbone = Backbone("timm/test_resnet", ("layer1", "layer2"), weights=None, image_size=64)
    assert backbone.training and backbone.trunk.training
    norm = backbone.trunk.get_submodule("layer1.0.bn1")
    assert (
        isinstance(norm, nn.BatchNorm2d) and norm.num_batches_tracked == 0
    )  # the dry run has not changed the statistics


@pytest.mark.parametrize("training", [False, True])
def test_a_copy_keeps_mode_and_values(training: bool, squeeze: Backbone, photos: Tensor) -> None:
    twin = copy.deepcopy(copy.deepcopy(squeeze).train(training))
    assert {m.training for m in twin.modules()} == {training}
    trunk: Any = twin.trunk
    assert trunk.graph is (trunk.train_graph if training else trunk.eval_graph)
    twin.train()
    assert trunk.graph is trunk.train_graph  # both modes are kept
    twin.eval()
    assert torch.equal(twin(photos)[1], squeeze(photos)[1])


def test_compiles_without_graph_breaks(squeeze: Backbone, photos: Tensor) -> None:
    torch._dynamo.reset()
    compiled = torch.compile(squeeze, fullgraph=True, backend="eager")
    for one, other in zip(compiled(photos), squeeze(photos), strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("activation", ["after", "before"])
@pytest.mark.parametrize(
    ("name", "layers"),
    [
        ("timm/test_resnet", ("layer3.0.conv2", "layer3")),
        ("timm/test_efficientnet", ("blocks.3.0.bn1", "bn2")),  # activations are fused with normalisation
    ],
)
def test_synchronised_batch_norm_does_not_change_the_trunk(
    photos: Tensor, name: str, layers: tuple[str, str], activation: Literal["after", "before"]
) -> None:
    # the effect of trainer.sync_batchnorm, whose training needs several GPUs
    plain = build(name, layers, image_size=64, activation=activation)
    converted = nn.SyncBatchNorm.convert_sync_batchnorm(copy.deepcopy(plain))  # type: ignore[no-untyped-call]
    norms = [m for m in converted.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    assert norms and all(isinstance(norm, nn.SyncBatchNorm) for norm in norms)
    assert list(converted.state_dict()) == list(plain.state_dict())
    for one, other in zip(converted.eval()(photos), plain(photos), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)
    trunk: Any = converted.trunk
    assert trunk.train().graph is trunk.train_graph and trunk.eval().graph is trunk.eval_graph


def test_gradients_reach_the_first_layer(squeeze: Backbone, photos: Tensor) -> None:
    twin = copy.deepcopy(squeeze)
    local, guide = twin(photos)
    (local.mean() + guide.mean()).backward()
    first = next(twin.parameters())
    assert first.grad is not None and first.grad.isfinite().all() and first.grad.any()
