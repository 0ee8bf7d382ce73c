"""Folding of BatchNorms into the preceding convolutions, for passes without gradients."""

import copy
from collections import Counter
from collections.abc import Hashable
from typing import TypeVar

import torch
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd

M = TypeVar("M", bound=nn.Module)

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
#: Class names in timm of a convolution with padding at run time and of a BatchNorm followed by an activation.
_TIMM_CONVOLUTION, _TIMM_NORM = "Conv2dSame", "BatchNormAct2d"
_RARE = 2  # a batch size is rare until it has occurred this often; cuDNN plans pay off for frequent batch sizes


def fold(trunk: fx.GraphModule, dtype: torch.dtype | None = None) -> fx.GraphModule:
    """Build a faster, equivalent version of a cut network in evaluation mode, equal up to rounding.

    A convolution whose output is used by a BatchNorm only is merged with the BatchNorm into one convolution (Jacob et
    al., CVPR 2018, section 3.2): with ``s = gamma / sqrt(var + eps)`` per output channel, ::

        W' = s W,    b' = s (b - mean) + beta.

    These weights are computed in float64 on the CPU. The following modules are not folded: convolutions whose output is
    tapped or used elsewhere, modules that are called twice, have hooks, or are of an unknown class, and norms in
    training mode.

    Args:
        trunk: Cut network, see :func:`~cxlp.backbones.feature_extraction.cut`. It is not changed, and shares all
            modules that are not folded.
        dtype: The dtype of autocast. The weights of convolutions and linear layers are cast to it once, whereas
            autocast casts weights without gradients in each pass. ``None``: the weights keep their dtype.

    Returns:
        A module ``images -> outputs``, equivalent to the trunk in evaluation mode. Later changes of the trunk's weights
        do not affect it.
    """
    graph = copy.deepcopy(trunk.eval_graph)
    assert isinstance(graph, fx.Graph)
    folded = fx.GraphModule(trunk, graph, class_name=type(trunk).__name__)
    calls = [node for node in graph.nodes if node.op == "call_module"]
    targets = [str(call.target) for call in calls]
    once = {call: trunk.get_submodule(str(call.target)) for call in calls if targets.count(str(call.target)) == 1}
    for i, (call, norm) in enumerate(once.items()):
        before = call.args[0] if len(call.args) == 1 and not call.kwargs else None
        convolution = once.get(before) if isinstance(before, fx.Node) else None
        if not (convolution is not None and _is_convolution(convolution) and _is_norm(norm)):
            continue
        assert isinstance(before, fx.Node) and isinstance(convolution, _ConvNd) and isinstance(norm, _BatchNorm)
        if set(before.users) != {call}:
            continue
        folded.add_submodule(f"folded_{i}", _joined(convolution, norm))
        before.target = f"folded_{i}"
        activation = getattr(norm, "act", None)
        if isinstance(activation, nn.Module):  # timm's dropout between norm and activation is inactive
            folded.add_submodule(f"activation_{i}", activation)
            call.target = f"activation_{i}"
        else:
            call.replace_all_uses_with(before)
            graph.erase_node(call)
    if dtype is not None:
        _cast(folded, dtype)
    folded.delete_all_unused_submodules()
    folded.recompile()
    folded.training = False  # not eval(), which would also change the mode of the trunk's modules
    return folded


class Folded:
    """Holder of the folded copy of a cut network, which is built when first needed.

    This class is not a module, so that the copy is not part of any state dict.

    Args:
        trunk: The cut network.

    Attributes:
        made: State of the trunk and the latest copy, which was built from it; ``None`` before the first copy.
    """

    def __init__(self, trunk: fx.GraphModule) -> None:
        self.trunk = trunk
        self.made: tuple[Hashable, fx.GraphModule] | None = None
        self._sizes: Counter[int] = Counter()  # number of batches computed on a GPU, by batch size
        self._largest = 0  # largest batch size computed on a GPU

    def copy_for(self, device: torch.device) -> fx.GraphModule:
        """Return the copy for images on a device, in the current precision of autocast.

        The copy is rebuilt if weights, buffers, hooks or modes of the trunk have changed. Changes through
        ``parameter.data`` are not detected, because torch does not count them.
        """
        kind = device.type
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else None
        state = dtype, *_state(self.trunk)
        made = self.made  # read once: another thread may replace it
        if made is None or made[0] != state:
            self.made = made = state, fold(self.trunk, dtype)
        return made[1]

    def images_per_pass(self, device: torch.device) -> int:
        """Return the number of images per forward pass.

        On the CPU, a small number is fast: the maps of more images are newly allocated pages at each operation, and
        leave the caches before the next operation reads them. With 8 images per pass, the time per image is 0.6 to 0.8
        of that with 32. There is no limit on other devices, and if a norm uses the statistics of its batch.
        """
        if device.type != "cpu" or _mixes_images(self.trunk):
            return 2**31
        return max(8, 2 * torch.get_num_threads())

    def padded(self, images: Tensor) -> Tensor:
        """Pad a batch of rare size on a GPU with black images to the largest batch size so far.

        cuDNN plans each convolution for each new batch size. For a rare batch size, mostly that of the last batch, the
        plans take longer than the batch itself: EfficientNet-Lite0 takes 1.7 s for its plans and 10 ms for 32 images
        (H200).
        """
        missing = self._largest - len(images)
        if images.device.type != "cuda" or missing <= 0 or _mixes_images(self.trunk):
            return images
        if self._sizes[len(images)] >= _RARE:
            return images
        return torch.cat([images, images.new_zeros(missing, *images.shape[1:])])

    def parts(self, images: Tensor) -> tuple[Tensor, ...]:
        """Split the images into parts of :meth:`images_per_pass` images, after padding with :meth:`padded`."""
        return torch.split(self.padded(images), self.images_per_pass(images.device))

    def record(self, images: Tensor) -> None:
        """Record the size of an unpadded batch, after its computation, so that it is known to fit in memory."""
        if images.device.type == "cuda":
            self._sizes[len(images)] += 1
            self._largest = max(self._largest, len(images))


def _state(trunk: nn.Module) -> tuple[Hashable, ...]:
    """Return a key of the trunk's state, which changes with each change that torch counts."""
    modes = [(m.training, len(m._forward_hooks), len(m._forward_pre_hooks)) for m in trunk.modules()]
    tensors = [
        (id(t), t.data_ptr(), 0 if t.is_inference() else t._version, t.dtype, t.device)
        for t in (*trunk.parameters(), *trunk.buffers())
    ]
    return tuple(modes), tuple(tensors)


def _mixes_images(trunk: fx.GraphModule) -> bool:
    """Return whether an image's maps depend on other images, because a BatchNorm uses batch statistics."""
    graph = trunk.eval_graph
    assert isinstance(graph, fx.Graph)
    return any(node.target is nn.functional.batch_norm for node in graph.nodes) or any(
        isinstance(m, _BatchNorm) and (m.training or m.running_mean is None or m.running_var is None)
        for m in trunk.modules()
    )


def _is_convolution(module: nn.Module) -> bool:
    timm = type(module).__name__ == _TIMM_CONVOLUTION and type(module).__module__.startswith("timm.")
    # Exact classes only: a subclass, such as one with weight standardisation, may use its weights differently.
    return (type(module) in _CONVOLUTIONS or timm) and not _has_hooks(module)


def _is_norm(module: nn.Module) -> bool:
    timm = type(module).__name__ == _TIMM_NORM and type(module).__module__.startswith("timm.")
    known = (type(module) in _NORMS or timm) and not _has_hooks(module)
    known = known and not any(part.training for part in module.modules())  # timm's norm contains dropout and activation
    return known and isinstance(module.running_mean, Tensor) and isinstance(module.running_var, Tensor)


def _has_hooks(module: nn.Module) -> bool:
    return bool(module._forward_hooks or module._forward_pre_hooks)


def _joined(convolution: _ConvNd, norm: _BatchNorm) -> _ConvNd:
    """Merge a convolution and the BatchNorm after it into one convolution."""
    assert norm.running_mean is not None and norm.running_var is not None
    scale = (_exact(norm.running_var) + norm.eps).rsqrt()
    shift = -_exact(norm.running_mean)
    if convolution.bias is not None:
        shift = shift + _exact(convolution.bias)
    if norm.weight is not None:
        scale = scale * _exact(norm.weight)
    shift = shift * scale
    if norm.bias is not None:
        shift = shift + _exact(norm.bias)
    weight = convolution.weight
    scaled = _exact(weight) * scale.view(-1, *[1] * (weight.ndim - 1))  # in the memory format of the weights
    return _with(convolution, *(value.to(weight.dtype).to(weight.device) for value in (scaled, shift)))


def _exact(values: Tensor) -> Tensor:
    """Convert to float64 on the CPU, since not every GPU supports float64."""
    return values.detach().cpu().double()


def _cast(folded: fx.GraphModule, dtype: torch.dtype) -> None:
    """Replace convolutions and linear layers by copies with weights of the given dtype."""
    cast: dict[str, str] = {}
    for node in folded.graph.nodes:
        if node.op != "call_module":
            continue
        target = str(node.target)
        module = folded.get_submodule(target)
        if _is_convolution(module) or (type(module) is nn.Linear and not _has_hooks(module)):
            assert isinstance(module, _ConvNd | nn.Linear)
            if target not in cast:
                cast[target] = f"cast_{len(cast)}"
                bias = None if module.bias is None else module.bias.detach().to(dtype)
                folded.add_submodule(cast[target], _with(module, module.weight.detach().to(dtype), bias))
            node.target = cast[target]


def _with(module: M, weight: Tensor, bias: Tensor | None) -> M:
    """Return a copy of a convolution or linear layer with other weights."""
    twin = copy.copy(module)
    twin._parameters = {
        "weight": nn.Parameter(weight, requires_grad=False),
        "bias": None if bias is None else nn.Parameter(bias, requires_grad=False),
    }
    return twin
