"""Layouts of layers' outputs that are converted to maps: vectors, tokens, channels last."""

from pathlib import Path

import pytest
import timm
import torch
from torch import Tensor

from cxlp.utils.errors import CxlpError
from tests.backbones.small import build, hooked, normalised, own_weights


def test_a_fully_connected_layer_gives_a_map_with_one_place(photos: Tensor) -> None:
    backbone = build("timm/resnet18", ("layer4", "penultimate"), image_size=64)
    upper, pooled = backbone(photos)
    assert pooled.shape == (2, upper.shape[1], 1, 1) and backbone.map_sizes[1] == (1, 1)
    torch.testing.assert_close(pooled, upper.mean(dim=(2, 3), keepdim=True))
    convolutional = build("squeezenet1_0", ("features.12", "penultimate"), image_size=64)
    upper, pooled = convolutional(photos)
    torch.testing.assert_close(pooled, upper.mean(dim=(2, 3), keepdim=True))


@pytest.mark.parametrize(
    ("name", "prefix"), [("test_vit", 1), pytest.param("deit_tiny_distilled_patch16_224", 2, marks=pytest.mark.slow)]
)
@torch.no_grad()
def test_patch_tokens_are_a_map_of_their_grid(name: str, prefix: int, tmp_path: Path) -> None:
    whole, backbone = own_weights(name, ("blocks.0", "blocks.1.mlp.act"), tmp_path)
    side, grid = backbone.image_size, backbone.image_size // 16
    images = torch.rand(2, 3, side, side)
    local, guide = backbone(images)
    assert backbone.map_sizes == ((grid, grid), (grid, grid))
    assert backbone.channels == (local.shape[1], guide.shape[1]) and guide.shape[2:] == (grid, grid)
    for m, layer in ((local, "blocks.0"), (guide, "blocks.1.mlp.act")):
        tokens = hooked(whole, layer, normalised(backbone, images))
        assert tokens.shape[1] == prefix + grid * grid
        for row, column in ((0, 0), (0, 3), (grid - 1, 2)):
            torch.testing.assert_close(m[:, :, row, column], tokens[:, prefix + row * grid + column])


@torch.no_grad()
def test_tokens_are_at_the_places_of_their_patches() -> None:
    backbone = build("timm/test_vit", ("patch_embed", "blocks.0"))
    dark = torch.zeros(1, 3, 160, 160)
    lit = dark.clone()
    lit[..., 16 * 2 : 16 * 3, 16 * 7 : 16 * 8] = 1
    changed = (backbone(lit)[0] - backbone(dark)[0]).abs().sum(dim=(0, 1))
    assert changed.nonzero().tolist() == [[2, 7]]


@pytest.mark.parametrize("activation", ["after", "before"])
@torch.no_grad()
def test_channels_last_maps_are_permuted(activation: str, tmp_path: Path) -> None:
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
def test_two_names_for_the_same_tokens_share_one_map() -> None:
    assert build("timm/test_vit", ("blocks.0", "blocks.0.add_1")).same == ("blocks.0", "blocks.0")


@pytest.mark.parametrize(
    ("name", "layers", "shape"),
    [
        ("timm/test_vit", ("blocks.0.attn.reshape", "blocks.1"), r"\(1, 101, 3, 2, 32\)"),
        ("timm/test_vit", ("blocks.0", "blocks.1.attn.scaled_dot_product_attention"), r"\(1, 2, 101, 32\)"),
        ("timm/test_vit", ("blocks.0", "blocks.1.attn.unbind"), "tuple"),
        # a layer whose batch consists of 16 windows of the map
        ("timm/test_maxvit", ("stages.1", "stages.1.blocks.0.attn_block.attn.proj"), r"\(16, 5, 5, 64\)"),
    ],
)
def test_layers_without_maps_are_refused(name: str, layers: tuple[str, str], shape: str) -> None:
    with pytest.raises(CxlpError, match=rf"layer .* of {name} returns {shape}: .*\(B, C, H, W\)"):
        build(name, layers)
