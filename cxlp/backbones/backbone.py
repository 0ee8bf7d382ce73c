"""The backbone: any network, cut after named layers, which turns images into maps."""

import copy
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from cxlp.backbones.caffenet import CaffeNet, onnx_state_dict
from cxlp.backbones.feature_extraction import PENULTIMATE, Activation, cut, narrow
from cxlp.backbones.folding import Folded
from cxlp.backbones.gradient_checkpointing import run_in_segments
from cxlp.backbones.inputs import Mean, by_channel, mean_of, side_of
from cxlp.backbones.layout import layout_of
from cxlp.backbones.library import Source, find, of_module
from cxlp.backbones.weights import load_strictly, read_state_dict
from cxlp.backbones.weights_file import find_weights
from cxlp.utils.errors import CxlpError


@dataclass(frozen=True)
class BackboneConfig:
    """Configuration of the backbone: the arguments of :class:`Backbone` as plain values.

    Attributes:
        name: ``caffenet``, ``efficientnet_lite0``, or any classification network of torchvision (first choice) or timm,
            explicitly ``torchvision/NAME`` or ``timm/NAME``. Or the import path of a callable without arguments that
            returns an ``nn.Module``, such as ``my_package.nets.trunk``.
        layers: Names of the layers whose maps heads can use, lower before upper: modules, graph nodes, or
            ``penultimate``, the input of the network's classifier (its mean over places if the classifier is
            convolutional). The map of a transformer is the grid of its patch tokens. Suitable pairs of layers are
            ``blocks.10`` under the next block's activations, ``blocks.11.mlp.act`` (timm), or
            ``encoder.layers.encoder_layer_10`` under ``encoder.layers.encoder_layer_11.mlp.1`` (torchvision).
            ``auto``: the run ranks pairs on a part of its training images, and takes and saves the best one.
        activation: Whether to tap a layer ``after`` or ``before`` the activation that follows it, possibly behind a
            BatchNorm. Has no effect on layers that no activation follows.
        weights: ``default`` (ImageNet weights; for an import path, the weights of the returned module), a local file
            (``.pth`` or ``.safetensors``, for caffenet also ``.onnx``), or null for random weights.
        image_size: Size of the square input in pixels; null: the size that the network was trained with (224 if
            unknown).
        mean: Mean that is subtracted from the channels of RGB images in 0..1; ``image``: the mean colour of each image
            (and each test view); null: the network's own mean (ImageNet's if unknown).
        std: Standard deviation that divides the channels afterwards; null: the network's own, as for ``mean``.
    """

    name: str = "caffenet"
    layers: tuple[str, ...] | Literal["auto"] = ("conv4", "conv5")
    activation: Activation = "after"
    weights: str | None = "default"
    image_size: int | None = None
    mean: tuple[float, float, float] | Literal["image"] | None = None
    std: tuple[float, float, float] | None = None


class Backbone(nn.Module):
    """A network that is cut after some layers and returns their maps.

    Images are RGB, uint8 in 0..255 or floating point in 0..1, as in torchvision.

    Args:
        name: Name or import path of a network, see :class:`BackboneConfig`, or an ``nn.Module``. The backbone shares
            the module's layers and starts in the module's mode, training or evaluation.
        layers: Names of the layers, see :class:`BackboneConfig`, which describes all options in detail.
        activation: Tap layers ``after`` or ``before`` the activation that follows them.
        weights: ``default``, a local file, or ``None``. For a module, ``default`` and ``None`` keep its weights.
        image_size: Size of the square input in pixels.
        mean: Mean of RGB images in 0..1, by channel (divide a mean of bytes by 255), or ``image``: each image's own.
        std: Standard deviation of RGB images in 0..1, by channel.

    Attributes:
        layers: Names of the layers.
        image_size: Size of the square input in pixels.
        channels: Number of channels of each layer's map, determined by a dry run.
        map_sizes: ``(H, W)`` of each layer's map for images of ``image_size``.
        same: For each layer, the first layer with the same map.
        name: Name of the network, or the class name of a module.
        recompute: Whether training recomputes most maps for gradients instead of storing them, see
            :mod:`cxlp.backbones.gradient_checkpointing`. Off by default. Not an argument, since it changes no value.

    Raises:
        CxlpError: If the network or a layer is unknown, the weights do not fit, the images are too small for the
            network, or the network cannot be traced.

    Example:
        >>> backbone = Backbone("timm/test_resnet", layers=("layer2", "layer3"), weights=None, image_size=64)
        >>> [tuple(m.shape) for m in backbone(torch.rand(2, 3, 64, 64))]
        [(2, 48, 8, 8), (2, 192, 4, 4)]
    """

    mean: Tensor
    std: Tensor
    _mean_of_bytes: Tensor
    _std_of_bytes: Tensor

    def __init__(
        self,
        name: str | nn.Module,
        layers: Sequence[str],
        activation: Activation = "after",
        weights: str | Path | None = "default",
        image_size: int | None = None,
        mean: Mean | None = None,
        std: Sequence[float] | None = None,
    ) -> None:
        super().__init__()
        if isinstance(layers, str) or not layers or len(set(layers)) < len(layers):
            raise CxlpError(f"the backbone's layers are {layers!r}: name one or more, each once (only runs take auto)")
        weights = None if weights is None else str(weights)
        source = find(name) if isinstance(name, str) else of_module(name)
        self.name = name if isinstance(name, str) else type(name).__name__
        self.layers = tuple(layers)
        self._arguments: dict[str, Any] = {
            "name": name if isinstance(name, str) else None,
            "layers": list(self.layers),
            "activation": activation,
            "weights": weights,
            "image_size": None if image_size is None else side_of(image_size),
            "mean": None if mean is None else mean_of(mean),
            "std": None if std is None else by_channel("std", std),
        }
        self.image_size = self._arguments["image_size"] or source.expects.size
        self.bgr, self.recompute = source.expects.bgr, False
        self._holds: list[Folded] = []
        # Not in the state dict: mean and std are part of the network's definition.
        for key, own in (("mean", source.expects.mean), ("std", source.expects.std)):
            values = own if self._arguments[key] in (None, "image") else self._arguments[key]
            self.register_buffer(key, torch.tensor(values).view(1, 3, 1, 1), persistent=False)
            # For bytes, 255 times these values, so that integers are subtracted exactly.
            in_bytes = torch.tensor([255 * value for value in values]).view(1, 3, 1, 1)
            self.register_buffer(f"_{key}_of_bytes", in_bytes, persistent=False)
        self.trunk = cut(source.model, {layer: layer for layer in self.layers}, activation, self.name)
        self.training = self.trunk.training
        self._load(weights, source)
        # Convolutions in this memory format are up to twice as fast on CPU and GPU, with equal maps.
        for module in self.trunk.modules():
            if isinstance(module, nn.Conv2d):  # not the whole trunk: buffers of transformers can have five dimensions
                module.to(memory_format=torch.channels_last)
        self._dry_run()

    @classmethod
    def from_config(cls, config: BackboneConfig) -> "Backbone":
        """Build a backbone from plain values."""
        return cls(**asdict(config))

    def narrowed(self, layers: Collection[str]) -> "Backbone":
        """Return a backbone that is reduced to some of the layers, in their current order.

        It shares its parameters with this backbone. If all layers are kept, this backbone itself is returned.
        """
        kept = [i for i, layer in enumerate(self.layers) if layer in layers]
        if len(kept) == len(self.layers):
            return self
        twin = copy.copy(self)
        twin._modules, twin._buffers = dict(self._modules), dict(self._buffers)
        for name in ("layers", "_layouts", "same", "channels", "map_sizes"):
            setattr(twin, name, tuple(getattr(self, name)[i] for i in kept))
        twin._arguments = {**self._arguments, "layers": list(twin.layers)}
        twin.trunk = narrow(self.trunk, twin.layers)
        twin._holds = []
        return twin

    def __repr__(self) -> str:
        taps = zip(self.layers, self.channels, self.map_sizes, strict=True)
        maps = ", ".join(f"{layer} {c} x {h} x {w}" for layer, c, (h, w) in taps)
        size = sum(parameter.numel() for parameter in self.parameters()) / 1e6
        return f"Backbone({self.name}, {size:.1f} M parameters, images of {self.image_size} pixels: {maps})"

    def spec(self) -> dict[str, Any]:
        """Return the arguments as plain values; ``name`` is ``None`` if the backbone was built from a module."""
        return dict(self._arguments)

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Compute the maps of images.

        Args:
            images: ``(B, 3, H, W)``, RGB, uint8 in 0..255 or floating point in 0..1.

        Returns:
            A map ``(B, C, h, w)`` for each layer. The vector of a fully connected layer becomes a map of 1 x 1, patch
            tokens of a transformer a map of their grid.

        Raises:
            CxlpError: If the images have another dtype.
        """
        if not (images.dtype == torch.uint8 or images.is_floating_point()):
            raise CxlpError(f"the images are {images.dtype}: pass uint8 in 0..255 or floating point in 0..1")
        holds = self._holds[-1:]  # read once: another thread may call release()
        traced = torch.compiler.is_compiling() or torch._C._is_tracing()  # tracing would fix the number of parts
        if not holds or traced or self.training or torch.is_grad_enabled():
            return self._maps(self._outputs(images, self.trunk))
        # In parts, including the normalisation of bytes, see Folded.
        folded, trunk = holds[0], holds[0].copy_for(images.device)
        outputs = list(zip(*(self._outputs(part, trunk) for part in folded.parts(images)), strict=True))
        folded.record(images)
        return self._maps([(torch.cat(same) if len(same) > 1 else same[0])[: len(images)] for same in outputs])

    def _maps(self, outputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
        maps = (layout.as_map(output) for layout, output in zip(self._layouts, outputs, strict=True))
        return tuple(
            m.mean(dim=(2, 3), keepdim=True) if layer == PENULTIMATE else m
            for m, layer in zip(maps, self.layers, strict=True)
        )

    def _outputs(self, images: Tensor, trunk: Callable[[Tensor], Any]) -> list[Tensor]:
        """Return the outputs of the layers in the network's layouts."""
        mean, std = (self.mean, self.std) if images.is_floating_point() else (self._mean_of_bytes, self._std_of_bytes)
        x = (images.to(mean.dtype) - mean) / std  # before the change of memory format: five times as fast, same values
        if self._arguments["mean"] == "image":  # the constant mean above cancels out
            x = x - x.mean(dim=(2, 3), keepdim=True)
        x = x.flip(1) if self.bgr else x
        x = x.contiguous(memory_format=torch.channels_last)
        recompute = self.recompute and self.training and torch.is_grad_enabled()
        outputs: dict[str, Tensor] = run_in_segments(self.trunk, x) if recompute else trunk(x)
        return [outputs[layer] for layer in self.layers]

    def hold(self) -> None:
        """Announce constant weights until :meth:`release`, which speeds up passes without gradients.

        In evaluation mode, such passes use a copy with BatchNorms folded into convolutions, whose maps are equal up to
        rounding, see :mod:`cxlp.backbones.folding`. The copy is built at the first pass, and rebuilt if weights change
        after all, except through ``parameter.data``. Calls can be nested; each needs its own :meth:`release`.
        """
        self._holds.append(Folded(self.trunk))

    def release(self) -> None:
        """End the effect of the latest :meth:`hold`."""
        if self._holds:
            self._holds.pop()

    @contextmanager
    def held(self) -> Iterator[None]:
        """Context in which the weights are held, see :meth:`hold`."""
        self.hold()
        try:
            yield
        finally:
            self.release()

    def __getstate__(self) -> dict[str, Any]:
        """Add the modes, which a copy of the cut network would lose. The copy's weights are not held."""
        return {**self.__dict__, "_modes": self._modes(), "_holds": []}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Restore the modes of a copy. Copies of torchvision's graph modules are in training mode at first."""
        modes = state.pop("_modes")
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        self._set_modes(modes)

    def _modes(self) -> dict[str, bool]:
        """Return the mode of each module, since some may be frozen in evaluation mode."""
        return {name: module.training for name, module in self.named_modules()}

    def _set_modes(self, modes: Mapping[str, bool]) -> None:
        self.trunk.train(modes["trunk"])  # selects the graph of this mode
        for name, module in self.named_modules():
            module.training = modes[name]

    def _load(self, weights: str | None, source: Source) -> None:
        if weights is None or (weights == "default" and source.default_state is None):
            return
        if weights == "default":
            assert source.default_state is not None
            state, called = source.default_state(), f"the default weights of {self.name}"
        elif weights.endswith(".onnx"):
            if not isinstance(source.model, CaffeNet):
                raise CxlpError(f"{weights} is an ONNX file, which only caffenet supports: use a .pth file")
            state, called = onnx_state_dict(find_weights(weights)), weights
        else:
            state, called = read_state_dict(Path(weights)), weights
        load_strictly(self.trunk, source.model, state, called, source.translate)

    @torch.no_grad()
    def _dry_run(self) -> None:
        """Determine channels and sizes of the maps, and check that the outputs of the layers are maps."""
        modes = self._modes()
        self.eval()
        noise = torch.rand(1, 3, self.image_size, self.image_size, generator=torch.Generator().manual_seed(0))
        try:
            outputs = self._outputs(noise, self.trunk)
        except (RuntimeError, AssertionError) as error:  # some networks assert their only valid input size
            raise CxlpError(
                f"{self.name} cannot take images of {self.image_size} x {self.image_size} pixels: change the "
                f"backbone's image_size ({str(error).splitlines()[0]})"
            ) from error
        finally:
            self._set_modes(modes)
        self._layouts = tuple(
            layout_of(output, f"layer {layer!r} of {self.name}")
            for output, layer in zip(outputs, self.layers, strict=True)
        )
        maps = self._maps(outputs)
        memory = [m.data_ptr() for m in maps]
        self.same = tuple(self.layers[memory.index(own)] for own in memory)
        self.channels = tuple(m.shape[1] for m in maps)
        self.map_sizes = tuple((m.shape[2], m.shape[3]) for m in maps)
