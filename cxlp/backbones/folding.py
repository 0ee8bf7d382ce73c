"""A cut network for passes without gradients: each BatchNorm is part of the convolution before it."""

import copy
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


def fold(trunk: fx.GraphModule, dtype: torch.dtype | None = None) -> fx.GraphModule:
    """Copy the computation of a cut network in evaluation, with fewer operations and the same values up to rounding.

    Where only a BatchNorm takes a convolution's output, both are one convolution (Jacob et al., CVPR 2018, section
    3.2): with ``s = gamma / sqrt(var + eps)`` per output channel,

        W' = s W,    b' = s (b - mean) + beta.

    This is computed in float64. A convolution whose own output is wanted or read elsewhere stays, as does a module
    that is called twice, has hooks, or is of a class unknown here.

    Args:
        trunk: See :func:`~cxlp.backbones.feature_extraction.cut`; it is not changed, and shares all that is not folded.
        dtype: What autocast would cast the weights of convolutions and linear layers to at each pass (it keeps no copy
            of those without a gradient): they are cast here, once. ``None``: they stay.

    Returns:
        ``images -> outputs``, as the trunk has it, in evaluation mode. Later changes of the trunk's weights do not
        reach it.
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
    return folded.eval()


class Folded:
    """The folded copy of a cut network whose weights do not change meanwhile; no module, so no state dict holds it.

    Args:
        trunk: The network.
    """

    def __init__(self, trunk: fx.GraphModule) -> None:
        self.trunk = trunk
        self.copies: dict[tuple[torch.device, torch.dtype | None], fx.GraphModule] = {}

    def together(self, device: torch.device) -> int:
        """How many images to compute at a time.

        On the CPU a few: maps of more come from the system as new pages at each operation, and leave the caches before
        the next one reads them. 8 images take 0.6 to 0.8 of the time of 32.
        """
        return max(8, 2 * torch.get_num_threads()) if device.type == "cpu" else 2**31

    def __call__(self, x: Tensor) -> dict[str, Tensor]:
        """Compute ``trunk(x)``, in the precision of autocast at the moment."""
        kind = x.device.type
        key = x.device, torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else None
        if key not in self.copies:
            self.copies = {key: fold(self.trunk, key[1])}  # one at a time
        outputs: dict[str, Tensor] = self.copies[key](x)
        return outputs


def _is_convolution(module: nn.Module) -> bool:
    timm = type(module).__name__ == _TIMM_CONVOLUTION and type(module).__module__.startswith("timm.")
    # Exact classes: another one, such as that of standardised weights, may do more with them.
    return (type(module) in _CONVOLUTIONS or timm) and not _has_hooks(module)


def _is_norm(module: nn.Module) -> bool:
    timm = type(module).__name__ == _TIMM_NORM and type(module).__module__.startswith("timm.")
    known = (type(module) in _NORMS or timm) and not _has_hooks(module)
    return known and isinstance(module.running_mean, Tensor) and isinstance(module.running_var, Tensor)


def _has_hooks(module: nn.Module) -> bool:
    return bool(module._forward_hooks or module._forward_pre_hooks)


def _joined(convolution: _ConvNd, norm: _BatchNorm) -> _ConvNd:
    """One convolution for a convolution and the BatchNorm behind it."""
    assert norm.running_mean is not None and norm.running_var is not None
    scale = (norm.running_var.double() + norm.eps).rsqrt()
    shift = -norm.running_mean.double()
    if convolution.bias is not None:
        shift = shift + convolution.bias.detach().double()
    if norm.weight is not None:
        scale = scale * norm.weight.detach().double()
    shift = shift * scale
    if norm.bias is not None:
        shift = shift + norm.bias.detach().double()
    weight = convolution.weight.detach()
    scaled = weight.double() * scale.view(-1, *[1] * (weight.ndim - 1))  # in the memory format of the weights
    return _with(convolution, scaled.to(weight.dtype), shift.to(weight.dtype))


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
