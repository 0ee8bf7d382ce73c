"""A cut network for passes without gradients: each BatchNorm is part of the convolution before it."""

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
#: timm's own, by name: padded at run time, and with an activation behind the norm.
_TIMM_CONVOLUTION, _TIMM_NORM = "Conv2dSame", "BatchNormAct2d"
_RARE = 2  # times that a size of a batch is met: one that comes more often is worth its plans


def fold(trunk: fx.GraphModule, dtype: torch.dtype | None = None) -> fx.GraphModule:
    """Copy the computation of a cut network in evaluation, with fewer operations and the same values up to rounding.

    Where only a BatchNorm takes a convolution's output, both are one convolution (Jacob et al., CVPR 2018, section
    3.2): with ``s = gamma / sqrt(var + eps)`` per output channel, ::

        W' = s W,    b' = s (b - mean) + beta.

    This is computed in float64, on the CPU. A convolution whose own output is wanted or read elsewhere stays, as does a
    module that is called twice, has hooks, or is of a class unknown here, and a norm that is itself in training mode.

    Args:
        trunk: See :func:`~cxlp.backbones.feature_extraction.cut`; it is not changed, and shares all that is not folded.
        dtype: What autocast would cast the weights of convolutions and linear layers to at each pass (it keeps no copy
            of those without a gradient): they are cast here, once. ``None``: they stay.

    Returns:
        ``images -> outputs``, as the trunk has it in evaluation. Later changes of the trunk's weights do not reach it.
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
        if isinstance(activation, nn.Module):  # dropout, which timm has between the two, rests
            folded.add_submodule(f"activation_{i}", activation)
            call.target = f"activation_{i}"
        else:
            call.replace_all_uses_with(before)
            graph.erase_node(call)
    if dtype is not None:
        _cast(folded, dtype)
    folded.delete_all_unused_submodules()
    folded.recompile()
    folded.training = False  # not eval(), which would reach the modules that the trunk shares
    return folded


class Folded:
    """The folded copy of a cut network, made when it is needed; no module, so no state dict holds it.

    Args:
        trunk: The network.

    Attributes:
        made: The latest copy, and what it was made of; ``None``: there is none yet.
    """

    def __init__(self, trunk: fx.GraphModule) -> None:
        self.trunk = trunk
        self.made: tuple[Hashable, fx.GraphModule] | None = None
        self._sizes: Counter[int] = Counter()  # how often batches of a size were computed on a GPU
        self._largest = 0  # of these sizes

    def copy_for(self, device: torch.device) -> fx.GraphModule:
        """Give the copy for images on a device, in the precision of autocast at the moment.

        It is made anew where weights, buffers, hooks or modes are others than it was made of. A change through
        ``parameter.data`` alone is not seen: torch does not count it.
        """
        kind = device.type
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else None
        state = dtype, *_state(self.trunk)
        made = self.made  # read once: another thread may replace it
        if made is None or made[0] != state:
            self.made = made = state, fold(self.trunk, dtype)
        return made[1]

    def together(self, device: torch.device) -> int:
        """How many images to compute at a time.

        On the CPU a few: maps of more come from the system as new pages at each operation, and leave the caches before
        the next one reads them. 8 images take 0.6 to 0.8 of the time of 32. All, where a norm takes the statistics of
        its batch.
        """
        if device.type != "cpu" or _mixes_images(self.trunk):
            return 2**31
        return max(8, 2 * torch.get_num_threads())

    def filled(self, images: Tensor) -> Tensor:
        """Fill a batch of a rare size on a GPU up to the largest one computed, with black images behind the others.

        cuDNN plans each convolution anew for each size of a batch, which takes longer than a rare batch itself: the
        last one of a set, most often. EfficientNet-Lite0 takes 1.7 s for its plans, and 10 ms for 32 images (H200).
        """
        missing = self._largest - len(images)
        if images.device.type != "cuda" or missing <= 0 or _mixes_images(self.trunk):
            return images
        if self._sizes[len(images)] >= _RARE:
            return images
        return torch.cat([images, images.new_zeros(missing, *images.shape[1:])])

    def parts(self, images: Tensor) -> tuple[Tensor, ...]:
        """Give the images, perhaps :meth:`filled`, as many at a time as are computed :meth:`together`."""
        return torch.split(self.filled(images), self.together(images.device))

    def count(self, images: Tensor) -> None:
        """Count a batch, as it was before :meth:`filled`, once it is computed: one too large for the memory is not."""
        if images.device.type == "cuda":
            self._sizes[len(images)] += 1
            self._largest = max(self._largest, len(images))


def _state(trunk: nn.Module) -> tuple[Hashable, ...]:
    """What a folded copy is made of, to compare: it differs after each change that torch counts."""
    modes = [(m.training, len(m._forward_hooks), len(m._forward_pre_hooks)) for m in trunk.modules()]
    tensors = [
        (id(t), t.data_ptr(), 0 if t.is_inference() else t._version, t.dtype, t.device)
        for t in (*trunk.parameters(), *trunk.buffers())
    ]
    return tuple(modes), tuple(tensors)


def _mixes_images(trunk: fx.GraphModule) -> bool:
    """Whether what is made of an image depends on those beside it: a BatchNorm takes statistics of the batch."""
    graph = trunk.eval_graph
    assert isinstance(graph, fx.Graph)
    return any(node.target is nn.functional.batch_norm for node in graph.nodes) or any(
        isinstance(m, _BatchNorm) and (m.training or m.running_mean is None or m.running_var is None)
        for m in trunk.modules()
    )


def _is_convolution(module: nn.Module) -> bool:
    timm = type(module).__name__ == _TIMM_CONVOLUTION and type(module).__module__.startswith("timm.")
    # Exact classes: another one, such as that of standardised weights, may do more with them.
    return (type(module) in _CONVOLUTIONS or timm) and not _has_hooks(module)


def _is_norm(module: nn.Module) -> bool:
    timm = type(module).__name__ == _TIMM_NORM and type(module).__module__.startswith("timm.")
    known = (type(module) in _NORMS or timm) and not _has_hooks(module)
    known = known and not any(part.training for part in module.modules())  # timm's has dropout and activation inside
    return known and isinstance(module.running_mean, Tensor) and isinstance(module.running_var, Tensor)


def _has_hooks(module: nn.Module) -> bool:
    return bool(module._forward_hooks or module._forward_pre_hooks)


def _joined(convolution: _ConvNd, norm: _BatchNorm) -> _ConvNd:
    """One convolution for a convolution and the BatchNorm behind it."""
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
    """In float64 on the CPU: not every GPU knows it."""
    return values.detach().cpu().double()


def _cast(folded: fx.GraphModule, dtype: torch.dtype) -> None:
    """Cast the weights of convolutions and linear layers, in copies."""
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
    """Copy a convolution or linear layer with other weights."""
    twin = copy.copy(module)
    twin._parameters = {
        "weight": nn.Parameter(weight, requires_grad=False),
        "bias": None if bias is None else nn.Parameter(bias, requires_grad=False),
    }
    return twin
