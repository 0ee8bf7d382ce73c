"""Cut a network after named layers, using its torch.fx graph."""

import copy
import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import fx, nn
from torch.nn.modules.batchnorm import _BatchNorm, _NormBase

from cxlp.utils.errors import CxlpError, did_you_mean

#: Activation modules.
ACTIVATION_MODULES = (
    nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.PReLU, nn.ELU, nn.SELU, nn.CELU, nn.GELU, nn.SiLU, nn.Mish,
    nn.Hardswish, nn.Hardtanh, nn.Softplus, nn.Sigmoid, nn.Tanh,
)  # fmt: skip
_ACTIVATION_FUNCTIONS = (
    F.relu, F.relu_, torch.relu, torch.relu_, F.relu6, F.leaky_relu, F.elu, F.selu, F.celu, F.gelu, F.silu,
    F.mish, F.hardswish, F.hardtanh, F.softplus, torch.sigmoid, torch.tanh,
)  # fmt: skip
_ACTIVATION_METHODS = ("relu", "relu_", "sigmoid", "tanh")
#: Normalisations of maps per channel or group of channels.
NORMS = (nn.BatchNorm2d, nn.SyncBatchNorm, nn.GroupNorm, nn.InstanceNorm2d)
#: Modules that are the identity in evaluation mode, and may lie between a layer and its activation.
TRANSPARENT = (nn.Identity, nn.Dropout, nn.Dropout2d)


Activation = Literal["after", "before"]

#: Layer name of the input of the network's last layer, its classifier.
PENULTIMATE = "penultimate"


def cut(model: nn.Module, layers: Mapping[str, str], activation: Activation, name: str) -> fx.GraphModule:
    """Reduce a network to the part that computes the outputs of some layers, and return these outputs.

    The graph is traced twice, for training and for evaluation mode, because modules such as dropout
    are active in training only.

    Args:
        model: The whole network. It is not changed, but shares its parameters and buffers with the result.
        layers: Maps the name of each output to its layer: a module (its last graph node is tapped), a graph node, or
            ``penultimate``.
        activation: For layers that are followed by an activation, tap ``after`` or ``before`` the activation.
        name: Name of the network for error messages.

    Returns:
        A module ``images -> {"local": map, "guide": map}``, with the given names of outputs, in the mode of the
        network. Its parameters keep their names. If two layers have the same map, both outputs are the same tensor.

    Raises:
        CxlpError: For an unknown layer (with the closest valid names), or for a network that cannot be
            traced.
    """
    from torchvision.models.feature_extraction import DualGraphModule

    options = tracing_options(model)
    modes = {module: module.training for module in model.modules()}
    try:
        _, names = trace(model.eval(), options, name)
        modules = dict(model.named_modules())
        taps = {output: names[find_tap(names, modules, layer, activation, name)] for output, layer in layers.items()}
        # Not torchvision's create_feature_extractor, which does not trace torchvision's own blocks such as the MLP of a
        # transformer.
        graphs = [_graph_to(taps, model.train(mode), options, name) for mode in (True, False)]
        trunk: fx.GraphModule = DualGraphModule(model, *graphs, class_name=type(model).__name__)
        trunk.eval().train(modes[model])  # switch to both modes once, so that both graphs are compiled
    finally:
        for module, mode in modes.items():
            module.training = mode
    _unfuse(trunk, activation)
    _protect_from_in_place(trunk)
    return trunk


def narrow(trunk: fx.GraphModule, layers: Iterable[str]) -> fx.GraphModule:
    """Reduce a cut network to some of its outputs. The modules are shared, not copied."""
    from torchvision.models.feature_extraction import DualGraphModule

    kept, graphs = set(layers), []
    for whole in _graphs(trunk):
        graph = copy.deepcopy(whole)
        taps = _output(graph).args[0]
        assert isinstance(taps, dict)
        graphs.append(_return_only({layer: tap for layer, tap in taps.items() if layer in kept}, trunk, graph))
    narrowed: fx.GraphModule = DualGraphModule(trunk, *graphs, class_name=type(trunk).__name__)
    return narrowed.train(trunk.training)


def tracing_options(model: nn.Module) -> dict[str, Any]:
    """Return the functions and modules that :func:`trace` treats as single nodes."""
    import torchvision

    own = {type(m) for m in model.modules() if getattr(m, "traced_as_one", False)}
    # Each norm has its own mode, since some may be frozen. A graph of its operations would ignore that mode.
    norms = {type(m) for m in model.modules() if isinstance(m, _NormBase)}
    # Stochastic depth remains a module, so that its rate can be read and changed.
    leaves = [*own, *norms, torchvision.ops.StochasticDepth]
    options: dict[str, Any] = {"autowrap_modules": (math, torchvision.ops), "leaf_modules": leaves}
    if any(type(m).__module__.startswith("timm.") for m in model.modules()):  # also inside a user's module
        # timm lists its modules that branch on shapes, which must be single nodes.
        from timm.models import get_notrace_functions, get_notrace_modules

        leaves.extend(get_notrace_modules())
        options["autowrap_functions"] = list(get_notrace_functions())
    return options


def trace(model: nn.Module, options: dict[str, Any], name: str) -> tuple[fx.Graph, dict[fx.Node, str]]:
    """Trace a network in its current mode; return the graph and its nodes with qualified names."""
    from torchvision.models.feature_extraction import NodePathTracer

    tracer = NodePathTracer(**options)
    try:
        graph = tracer.trace(model)
    except Exception as error:  # tracing fails with many types of exceptions
        raise CxlpError(
            f"{name} cannot be cut, because torch.fx cannot trace it: {error}. If a module's forward branches on "
            "values or shapes of its input, set traced_as_one = True on the module's class: the module becomes a "
            "single node, and layers outside it can be named"
        ) from error
    return graph, {node: path for node, path in tracer.node_to_qualname.items() if node.op != "placeholder"}


def _graph_to(taps: Mapping[str, str], model: nn.Module, options: dict[str, Any], name: str) -> fx.Graph:
    """Trace a network in its current mode up to the named nodes, which become the outputs."""
    graph, names = trace(model, options, name)
    found = {path: node for node, path in names.items()}
    missing = [path for path in taps.values() if path not in found]
    if missing:
        mode = "training" if model.training else "evaluation"
        raise CxlpError(f"{name} has no layer {missing[0]!r} in {mode}: choose a layer that exists in both modes")
    return _return_only({output: found[path] for output, path in taps.items()}, model, graph)


def _return_only(taps: Mapping[str, fx.Node], model: nn.Module, graph: fx.Graph) -> fx.Graph:
    """Make some nodes the outputs of a graph, and remove all nodes that these do not need."""
    # In-place operations whose result is not assigned: other nodes may read the result through their input.
    discarded = {node for node in graph.nodes if not node.users and writes_in_place(node, model)}
    for node in reversed(graph.nodes):  # nodes after the last tap are never needed
        if node in taps.values():
            break
        graph.erase_node(node)
    graph.output(dict(taps))
    graph = fx.GraphModule(model, graph).graph  # is_impure() needs a graph that belongs to a module
    graph.eliminate_dead_code(lambda node: node in discarded or node.is_impure())
    return graph


def writes_in_place(node: fx.Node, model: nn.Module) -> bool:
    """Return whether an operation overwrites its input, judged by its name and its ``inplace`` argument."""
    module = model.get_submodule(str(node.target)) if node.op == "call_module" else None
    settings = [getattr(m, "inplace", False) for m in module.modules()] if module else [node.kwargs.get("inplace")]
    called = getattr(node.target, "__name__", str(node.target))
    called_so = node.op in ("call_function", "call_method") and called.endswith("_")  # such as torch.relu_
    return called_so or any(setting is True for setting in (*settings, *node.args))


def find_tap(
    names: dict[fx.Node, str], modules: dict[str, nn.Module], layer: str, activation: Activation, name: str
) -> fx.Node:
    """Find the node whose output is the map of a layer."""
    if layer == PENULTIMATE:
        return _before_the_last(names, modules, name)
    inside = [node for node, path in names.items() if path == layer or path.startswith(layer + ".")]
    if not inside:
        known = [path for path in dict.fromkeys([*modules, *names.values()]) if path]
        raise CxlpError(f"{name} has no layer {layer!r}. {did_you_mean(layer, known)}")
    tapped = node = inside[-1]
    if not is_activation(node, modules):
        follower = _first(user for user in _users(node, modules) if is_activation(user, modules))
        if follower is None:  # look past a normalisation
            norm = _first(user for user in _users(node, modules) if isinstance(modules.get(str(user.target)), NORMS))
            follower = norm and _first(user for user in _users(norm, modules) if is_activation(user, modules))
        if follower is None:
            return tapped
        node = follower
    if activation == "after" or fused_activation(modules.get(str(node.target))) is not None:
        return node  # a fused activation is separated later, see _unfuse
    return node.all_input_nodes[0]


def _before_the_last(names: dict[fx.Node, str], modules: dict[str, nn.Module], name: str) -> fx.Node:
    """Find the input of the last linear or convolutional layer, before dropout is applied to that input."""
    weighted = [n for n in names if n.op == "call_module" and isinstance(modules[str(n.target)], nn.Linear | nn.Conv2d)]
    if not weighted:
        raise CxlpError(
            f"{name} has no module that is a linear or convolutional layer, so penultimate is undefined: name a layer"
        )
    node = weighted[-1].all_input_nodes[0]
    while node.op == "call_module" and isinstance(modules[str(node.target)], TRANSPARENT):
        node = node.all_input_nodes[0]
    return node


def _users(node: fx.Node, modules: dict[str, nn.Module]) -> Iterator[fx.Node]:
    """Iterate over the nodes that use a node's output, looking through :data:`TRANSPARENT` modules."""
    for user in node.users:
        if user.op == "call_module" and isinstance(modules[str(user.target)], TRANSPARENT):
            yield from _users(user, modules)
        else:
            yield user


def is_activation(node: fx.Node, modules: dict[str, nn.Module]) -> bool:
    """Return whether a node calls an activation, or a normalisation that ends with an activation."""
    if node.op == "call_module":
        module = modules[str(node.target)]
        return isinstance(module, ACTIVATION_MODULES) or fused_activation(module) is not None
    if node.op == "call_function":
        return node.target in _ACTIVATION_FUNCTIONS
    return node.op == "call_method" and node.target in _ACTIVATION_METHODS


def _unfuse(trunk: fx.GraphModule, activation: Activation) -> None:
    """Separate activations that timm fuses into BatchNorms, or into norms that are tapped before them.

    Conversion of a BatchNorm to a synchronised BatchNorm would lose the fused activation. In the trunk, the norm is
    replaced by a copy without activation, which has the same parameters and buffers under the same names. The given
    network keeps its norm. The activation becomes a separate node, whose output the following nodes use.
    """
    taps = {str(tap.target) for graph in _graphs(trunk) for tap in _output(graph).all_input_nodes}
    calls = [node for graph in _graphs(trunk) for node in graph.nodes if node.op == "call_module"]
    for path in dict.fromkeys(str(call.target) for call in calls):
        norm = trunk.get_submodule(path)
        fused, tapped = fused_activation(norm), activation == "before" and path in taps
        if fused is None or not (tapped or isinstance(norm, _BatchNorm)):
            continue
        bare = copy.copy(norm)
        bare._modules = {**norm._modules, "act": nn.Identity()}
        trunk.set_submodule(path, bare)
        trunk.add_submodule(f"{path}_act", fused)
        for call in (call for call in calls if call.target == path):
            with call.graph.inserting_after(call):
                moved = call.graph.call_module(f"{path}_act", (call,))
            for user in list(call.users):
                if user is not moved and not (tapped and user.op == "output"):
                    user.replace_input_with(call, moved)
            if not moved.users:
                call.graph.erase_node(moved)


def fused_activation(module: nn.Module | None) -> nn.Module | None:
    """Return the activation at the end of a timm normalisation, or ``None``."""
    activation = getattr(module, "act", None)
    return activation if isinstance(module, NORMS) and isinstance(activation, ACTIVATION_MODULES) else None


def _protect_from_in_place(trunk: fx.GraphModule) -> None:
    """Return copies of taps that later nodes use, which an in-place ReLU would otherwise change.

    A copy of one map is cheap compared with a convolution, and is safe against every write, also through an alias: an
    identity, or a dropout in evaluation mode, returns the tap's own memory. Taps that are themselves in-place
    operations are copied as well if later nodes use their input.
    """
    for graph in _graphs(trunk):
        output = _output(graph)
        for tap in output.all_input_nodes:
            written = tap.all_input_nodes if writes_in_place(tap, trunk) else []
            if set(tap.users) != {output} or any(set(node.users) != {tap} for node in written):
                with graph.inserting_after(tap):
                    output.replace_input_with(tap, graph.call_method("clone", (tap,)))
    trunk.recompile()


def _graphs(trunk: fx.GraphModule) -> tuple[fx.Graph, fx.Graph]:
    """Return the graphs for training and for evaluation mode."""
    train, evaluate = trunk.train_graph, trunk.eval_graph
    assert isinstance(train, fx.Graph) and isinstance(evaluate, fx.Graph)
    return train, evaluate


def _output(graph: fx.Graph) -> fx.Node:
    node: fx.Node = next(node for node in graph.nodes if node.op == "output")
    return node


def _first(nodes: Iterable[fx.Node]) -> fx.Node | None:
    return next(iter(nodes), None)
