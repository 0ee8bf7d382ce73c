"""Any network, cut after two named layers: images in, the two maps out."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from cxlp.backbones.caffenet import CaffeNet, onnx_state_dict
from cxlp.backbones.feature_extraction import cut
from cxlp.backbones.gradient_checkpointing import run_in_segments
from cxlp.backbones.layout import _as_map, _layout
from cxlp.backbones.library import _find, _Source
from cxlp.backbones.weights import load_strictly, read_state_dict
from cxlp.utils.errors import CxlpError


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
            (gradient checkpointing, see :mod:`cxlp.backbones.gradient_checkpointing`); off at first, and no part of
            the config: it changes no value.

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
