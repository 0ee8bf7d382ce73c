"""The maps of a network: each layer that can be named, its channels and size, and what it can be pooled with."""

import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

from cxlp.backbones.feature_extraction import (
    ACTIVATION_MODULES,
    NORMS,
    TRANSPARENT,
    find_tap,
    fused_activation,
    is_activation,
    trace,
    tracing_options,
)
from cxlp.backbones.layout import layout_of
from cxlp.backbones.library import find
from cxlp.utils.errors import CxlpError

#: Pixels by which images grow to tell strides; all usual ones divide it.
_GROWTH = 256
#: What hands on values as they are, in evaluation, perhaps in another shape.
_REARRANGING = {
    "permute", "transpose", "swapaxes", "reshape", "view", "flatten", "unflatten", "contiguous", "clone", "squeeze",
    "unsqueeze", "dropout", "stochastic_depth", "Permute", "Flatten", "Unflatten", "StochasticDepth", "DropPath",
}  # fmt: skip


@dataclass(frozen=True)
class Layer:
    """A map of a network.

    Attributes:
        name: The layer's, as the backbone's ``layers`` take it.
        also: Other names of the same map.
        kind: The class of the module that makes it, such as ``Conv2d`` or a block's.
        channels: C.
        side: Height and width.
        stride: How many pixels of the image lie between two places of the map.
        activation: What follows the layer, such as ``ReLU``, and is tapped ``after`` it; empty: nothing does.
        below: The nearest of the layers that this one's input comes from with maps of the same side: the two can be
            pooled, with this one's activations as weights; empty: there is none.
    """

    name: str
    also: tuple[str, ...]
    kind: str
    channels: int
    side: int
    stride: float
    activation: str
    below: str


def inventory(name: str, image_size: int | None = None, depth: int | None = None) -> tuple[list[Layer], int]:
    """List the maps of a network, from the image up.

    Maps of a single place are left out, and those that are another one rearranged or normalised place by place: pooled
    with it, they would say nothing else.

    Args:
        name: See :class:`~cxlp.backbones.backbone.BackboneConfig`; weights are random, and nothing is downloaded.
        image_size: Side of the images, pixels; ``None``: what the network was trained with.
        depth: The most parts that a layer's name has: 2 lists ``layer4.1``, but not ``layer4.1.conv2``; ``None``: all.

    Returns:
        The layers, and the side of the images.

    Raises:
        CxlpError: If there is no such network, it cannot be traced, or it cannot take such images.
    """
    source = find(name)
    size = image_size or source.expects.size
    model = source.model.eval()
    graph, names = trace(model, tracing_options(model), name)
    modules = dict(model.named_modules())
    sides, refused = _sides(model, graph, size)
    if refused:
        raise CxlpError(f"{name} cannot take images of {size} x {size} pixels: {refused}")
    grown, _ = _sides(model, graph, size + _GROWTH)  # as far as it goes: linear layers take a single size
    found: dict[fx.Node, list[str]] = {}
    ends = _ends(names)
    for path, module in modules.items():
        if path in ends and not isinstance(module, (*ACTIVATION_MODULES, *NORMS, *TRANSPARENT)):
            node = _made_by(find_tap(names, modules, path, "after", name), modules, sides)
            if node is None:
                continue
            is_own = names[node] == path or names[node].startswith(f"{path}.")
            follows = is_activation(node, modules)  # and need not be in the layer
            if (is_own or follows) and sides[node][1] > 1 and (depth is None or path.count(".") < depth):
                found.setdefault(node, []).append(path)
    ancestors = _ancestors(graph)
    layers: list[Layer] = []
    taps = [node for node in graph.nodes if node in found]
    for place, node in enumerate(taps):
        path = _name(found[node], modules)
        also = [other for other in found[node] if other != path]
        channels, side = sides[node]
        more = grown[node][1] - side if node in grown else 0
        below = (k for k in reversed(range(place)) if taps[k] in ancestors[node] and layers[k].side == side)
        paired = next(below, None)
        layers.append(
            Layer(
                path,
                tuple(also),
                type(modules[path]).__name__,
                channels,
                side,
                _GROWTH / more if more > 0 else size / side,
                _activation(node, modules),
                "" if paired is None else layers[paired].name,
            )
        )
    return layers, size


def _ends(names: dict[fx.Node, str]) -> set[str]:
    """All modules that a graph passes through."""
    return {path[:place] for path in names.values() for place in (*_dots(path), len(path))}


def _made_by(node: fx.Node, modules: dict[str, nn.Module], sides: dict[fx.Node, tuple[int, int]]) -> fx.Node | None:
    """The node that makes a map which others only rearrange; ``None``: it is no map, or only another one normalised."""
    made = None
    while node in sides or made is not None:
        if _is_token_norm(node, modules):
            return None
        if node in sides and (made is None or sides[node] == sides[made]):
            made = node
        if not _only_rearranges(node, modules):
            break
        node = node.all_input_nodes[0]
    return made


def _called(node: fx.Node, modules: dict[str, nn.Module]) -> str:
    """The name of what a node calls: of a function or method, or of a module's class."""
    if node.op == "call_module":
        return type(modules[str(node.target)]).__name__
    return str(getattr(node.target, "__name__", node.target)).strip("_")


def _only_rearranges(node: fx.Node, modules: dict[str, nn.Module]) -> bool:
    """Whether a node hands on the values that it is given, perhaps in another shape."""
    is_module = node.op == "call_module" and isinstance(modules[str(node.target)], TRANSPARENT)
    return bool(node.all_input_nodes) and (is_module or _called(node, modules) in _REARRANGING)


def _is_token_norm(node: fx.Node, modules: dict[str, nn.Module]) -> bool:
    """Whether a node normalises each place of a map by itself, as transformers do behind their blocks."""
    is_leaf = node.op != "call_module" or not any(modules[str(node.target)].children())
    called = _called(node, modules).lower()
    return is_leaf and "norm" in called and not any(kind in called for kind in ("batch", "group", "instance"))


def _name(paths: list[str], modules: dict[str, nn.Module]) -> str:
    """Of several modules that end with the same map, the innermost one that has weights; they come from the outside."""
    weighted = [path for path in paths if next(modules[path].parameters(), None) is not None]
    return (weighted or paths)[-1]


def _dots(path: str) -> Iterable[int]:
    return (place for place, letter in enumerate(path) if letter == ".")


def _ancestors(graph: fx.Graph) -> dict[fx.Node, set[fx.Node]]:
    """All that each node is computed of."""
    found: dict[fx.Node, set[fx.Node]] = {}
    for node in graph.nodes:
        found[node] = set().union(*(found[given] | {given} for given in node.all_input_nodes))
    return found


class _Shapes(fx.Interpreter):
    """Runs a graph, and notes channels and side of what nodes give, where that is a map."""

    def __init__(self, model: nn.Module, graph: fx.Graph) -> None:
        super().__init__(fx.GraphModule(model, graph))
        self.sides: dict[str, tuple[int, int]] = {}

    def run_node(self, n: fx.Node) -> Any:  # noqa: ANN401 (whatever a node gives)
        output = super().run_node(n)
        if isinstance(output, Tensor):
            try:
                found = layout_of(output, n.name).as_map(output)
                self.sides[n.name] = found.shape[1], found.shape[2]
            except CxlpError:  # no map
                pass
        return output


@torch.no_grad()
def _sides(model: nn.Module, graph: fx.Graph, size: int) -> tuple[dict[fx.Node, tuple[int, int]], str]:
    """Channels and side of each node's map, for images of a size; and why they are not taken, if they are not."""
    shapes, refused = _Shapes(model, graph), ""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            shapes.run(torch.zeros(1, 3, size, size))
    except Exception as error:  # some networks assert their one input size
        refused = (str(error).splitlines() or [type(error).__name__])[0]
    return {node: shapes.sides[node.name] for node in graph.nodes if node.name in shapes.sides}, refused


def _activation(node: fx.Node, modules: dict[str, nn.Module]) -> str:
    """The name of a node's activation; empty: it is none."""
    if not is_activation(node, modules):
        return ""
    module = modules.get(str(node.target)) if node.op == "call_module" else None
    if module is not None:
        return type(fused_activation(module) or module).__name__
    called = getattr(node.target, "__name__", str(node.target)).strip("_")
    return {"relu": "ReLU", "gelu": "GELU", "silu": "SiLU"}.get(called, called)
