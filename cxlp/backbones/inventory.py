"""Inventory of a network's maps: layers, channels, sizes, and pairs that can be pooled together."""

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

#: Increase of the image size, in pixels, to determine strides: a multiple of all usual strides.
_GROWTH = 256
#: Operations that leave values unchanged in evaluation mode, although they may change the shape.
_REARRANGING = {
    "permute", "transpose", "swapaxes", "reshape", "view", "flatten", "unflatten", "contiguous", "clone", "squeeze",
    "unsqueeze", "dropout", "stochastic_depth", "Permute", "Flatten", "Unflatten", "StochasticDepth", "DropPath",
}  # fmt: skip


@dataclass(frozen=True)
class Layer:
    """A map of a network.

    Attributes:
        name: Name of the layer, as used in the backbone's ``layers``.
        also: Other names of the same map.
        kind: Class of the module that computes the map, such as ``Conv2d`` or the class of a block.
        channels: Number C of channels.
        side: Height and width of the map.
        stride: Distance between neighbouring places of the map, in pixels of the image.
        activation: Activation that follows the layer, such as ``ReLU``, with which the layer is tapped by default;
            empty if there is none.
        below: Name of the nearest lower layer on the path to this layer whose map has the same size, so that both can
            be pooled together with this layer as the guide; empty if there is none.
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
    """List the maps of a network, from the lowest to the highest layer.

    Maps with a single place are omitted. So are maps that only rearrange another map or normalise it at each place,
    since they would add no information when they are pooled with it.

    Args:
        name: See :class:`~cxlp.backbones.backbone.BackboneConfig`. The weights are random, and nothing is downloaded.
        image_size: Image size in pixels; ``None``: the size that the network was trained with.
        depth: Maximum number of parts of a layer's name: 2 lists ``layer4.1``, but not ``layer4.1.conv2``; ``None``: no
            limit.

    Returns:
        The layers, and the image size.

    Raises:
        CxlpError: If there is no such network, it cannot be traced, or it cannot process images of this size.
    """
    maps = Maps(name, image_size)
    return maps.layers(depth), maps.image_size


class Maps:
    """The maps of a network, which is built once for inventories of several depths.

    Args:
        name: See :func:`inventory`.
        image_size: See :func:`inventory`.

    Attributes:
        image_size: Image size in pixels.

    Raises:
        CxlpError: See :func:`inventory`.
    """

    def __init__(self, name: str, image_size: int | None = None) -> None:
        source = find(name)
        self.image_size = size = image_size or source.expects.size
        model = source.model.eval()
        graph, names = trace(model, tracing_options(model), name)
        self._modules = modules = dict(model.named_modules())
        self._sides, refused = _sides(model, graph, size)
        if refused:
            raise CxlpError(f"{name} cannot take images of {size} x {size} pixels: change the image size ({refused})")
        # This pass stops at layers with a fixed input size, such as linear layers.
        self._grown, _ = _sides(model, graph, size + _GROWTH)
        self._ancestors = _ancestors(graph)
        self._nodes = list(graph.nodes)
        self._found: dict[fx.Node, list[str]] = {}
        ends = _ends(names)
        for path, module in modules.items():
            if path in ends and not isinstance(module, (*ACTIVATION_MODULES, *NORMS, *TRANSPARENT)):
                node = _producer(find_tap(names, modules, path, "after", name), modules, self._sides)
                if node is None:
                    continue
                is_own = names[node] == path or names[node].startswith(f"{path}.")
                follows = is_activation(node, modules)  # may lie outside the layer
                if (is_own or follows) and self._sides[node][1] > 1:
                    self._found.setdefault(node, []).append(path)

    def layers(self, depth: int | None = None) -> list[Layer]:
        """List the maps, from the lowest to the highest layer, see :func:`inventory`."""
        paths = {
            node: [path for path in found if depth is None or path.count(".") < depth]
            for node, found in self._found.items()
        }
        layers: list[Layer] = []
        taps = [node for node in self._nodes if paths.get(node)]
        for place, node in enumerate(taps):
            path = _name(paths[node], self._modules)
            also = [other for other in paths[node] if other != path]
            channels, side = self._sides[node]
            more = self._grown[node][1] - side if node in self._grown else 0
            below = (k for k in reversed(range(place)) if taps[k] in self._ancestors[node] and layers[k].side == side)
            paired = next(below, None)
            layers.append(
                Layer(
                    path,
                    tuple(also),
                    type(self._modules[path]).__name__,
                    channels,
                    side,
                    _GROWTH / more if more > 0 else self.image_size / side,
                    _activation(node, self._modules),
                    "" if paired is None else layers[paired].name,
                )
            )
        return layers


def _ends(names: dict[fx.Node, str]) -> set[str]:
    """Return the names of all modules in a graph."""
    return {path[:place] for path in names.values() for place in (*_dots(path), len(path))}


def _producer(node: fx.Node, modules: dict[str, nn.Module], sides: dict[fx.Node, tuple[int, int]]) -> fx.Node | None:
    """Return the node that computes a map before rearrangements; ``None`` if there is no such map."""
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
    """Return the name of the function, method or module class that a node calls."""
    if node.op == "call_module":
        return type(modules[str(node.target)]).__name__
    return str(getattr(node.target, "__name__", node.target)).strip("_")


def _only_rearranges(node: fx.Node, modules: dict[str, nn.Module]) -> bool:
    """Return whether a node returns its input's values unchanged, although possibly in another shape."""
    is_module = node.op == "call_module" and isinstance(modules[str(node.target)], TRANSPARENT)
    return bool(node.all_input_nodes) and (is_module or _called(node, modules) in _REARRANGING)


def _is_token_norm(node: fx.Node, modules: dict[str, nn.Module]) -> bool:
    """Return whether a node normalises each place separately, as transformers do after their blocks."""
    is_leaf = node.op != "call_module" or not any(modules[str(node.target)].children())
    called = _called(node, modules).lower()
    return is_leaf and "norm" in called and not any(kind in called for kind in ("batch", "group", "instance"))


def _name(paths: list[str], modules: dict[str, nn.Module]) -> str:
    """Return the innermost module with weights among modules with the same map, outermost first."""
    weighted = [path for path in paths if next(modules[path].parameters(), None) is not None]
    return (weighted or paths)[-1]


def _dots(path: str) -> Iterable[int]:
    return (place for place, letter in enumerate(path) if letter == ".")


def _ancestors(graph: fx.Graph) -> dict[fx.Node, set[fx.Node]]:
    """Return all ancestors of each node."""
    found: dict[fx.Node, set[fx.Node]] = {}
    for node in graph.nodes:
        found[node] = set().union(*(found[given] | {given} for given in node.all_input_nodes))
    return found


class _Shapes(fx.Interpreter):
    """Interpreter of a graph that records the channels and side of each node's map."""

    def __init__(self, model: nn.Module, graph: fx.Graph) -> None:
        super().__init__(fx.GraphModule(model, graph))
        self.sides: dict[str, tuple[int, int]] = {}

    def run_node(self, n: fx.Node) -> Any:  # noqa: ANN401 (any output of a node)
        output = super().run_node(n)
        if isinstance(output, Tensor):
            try:
                found = layout_of(output, n.name).as_map(output)
                self.sides[n.name] = found.shape[1], found.shape[2]
            except CxlpError:  # not a map
                pass
        return output


@torch.no_grad()
def _sides(model: nn.Module, graph: fx.Graph, size: int) -> tuple[dict[fx.Node, tuple[int, int]], str]:
    """Return channels and side of each node's map, and the error message if the network fails."""
    shapes, refused = _Shapes(model, graph), ""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            shapes.run(torch.zeros(1, 3, size, size))
    except Exception as error:  # some networks assert their only valid input size
        refused = (str(error).splitlines() or [type(error).__name__])[0]
    return {node: shapes.sides[node.name] for node in graph.nodes if node.name in shapes.sides}, refused


def _activation(node: fx.Node, modules: dict[str, nn.Module]) -> str:
    """Return the name of a node's activation, or an empty string if the node is not an activation."""
    if not is_activation(node, modules):
        return ""
    module = modules.get(str(node.target)) if node.op == "call_module" else None
    if module is not None:
        return type(fused_activation(module) or module).__name__
    called = getattr(node.target, "__name__", str(node.target)).strip("_")
    return {"relu": "ReLU", "gelu": "GELU", "silu": "SiLU"}.get(called, called)
