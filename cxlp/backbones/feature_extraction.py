"""Cut a network after named layers, by its graph."""

import copy
import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import fx, nn
from torch.nn.modules.batchnorm import _BatchNorm, _NormBase

from cxlp.utils.errors import CxlpError, did_you_mean

#: Modules that are activations.
ACTIVATION_MODULES = (
    nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.PReLU, nn.ELU, nn.SELU, nn.CELU, nn.GELU, nn.SiLU, nn.Mish,
    nn.Hardswish, nn.Hardtanh, nn.Softplus, nn.Sigmoid, nn.Tanh,
)  # fmt: skip
_ACTIVATION_FUNCTIONS = (
    F.relu, F.relu_, torch.relu, torch.relu_, F.relu6, F.leaky_relu, F.elu, F.selu, F.celu, F.gelu, F.silu,
    F.mish, F.hardswish, F.hardtanh, F.softplus, torch.sigmoid, torch.tanh,
)  # fmt: skip
_ACTIVATION_METHODS = ("relu", "relu_", "sigmoid", "tanh")
#: Normalisations of maps, by channel or group.
NORMS = (nn.BatchNorm2d, nn.SyncBatchNorm, nn.GroupNorm, nn.InstanceNorm2d)
#: What may stand between a layer and its activation without changing the map in evaluation.
TRANSPARENT = (nn.Identity, nn.Dropout, nn.Dropout2d)


Activation = Literal["after", "before"]

#: In the place of a layer's name: what the network's last layer, its classifier, is given.
PENULTIMATE = "penultimate"


def cut(model: nn.Module, layers: Mapping[str, str], activation: Activation, name: str) -> fx.GraphModule:
    """Keep what some layers need of a network, and return their outputs.

    The graph is traced twice, for training and for evaluation, because dropout and its like take
    part in one only.

    Args:
        model: The whole network. It is left as it is, but the parameters and buffers are shared with it.
        layers: What to call an output, and the layer it is of, by module or graph node (a module stands
            for its last node), or ``penultimate``.
        activation: Tap a layer that an activation follows after it, or before it.
        name: What to call the network in errors.

    Returns:
        A module ``images -> {"local": map, "guide": map}`` (or whatever the outputs are called), whose
        parameters keep their names; in the mode of the network. If two layers mean one map, both outputs are
        that tensor.

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
        # Not torchvision's create_feature_extractor: it does not look into its own blocks, such as a transformer's MLP.
        graphs = [_graph_to(taps, model.train(mode), options, name) for mode in (True, False)]
        trunk: fx.GraphModule = DualGraphModule(model, *graphs, class_name=type(model).__name__)
        trunk.eval().train(modes[model])  # by way of both, so that both graphs become the trunk's
    finally:
        for module, mode in modes.items():
            module.training = mode
    _unfuse(trunk, activation)
    _protect_from_in_place(trunk)
    return trunk


def narrow(trunk: fx.GraphModule, layers: Iterable[str]) -> fx.GraphModule:
    """Keep only some outputs of a cut network, and what they need; its modules are shared, not copied."""
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
    """What :func:`trace` takes as whole nodes of a network."""
    import torchvision

    own = {type(m) for m in model.modules() if getattr(m, "traced_as_one", False)}
    # Each has its own mode (frozen or not), which a graph of its operations would not follow.
    norms = {type(m) for m in model.modules() if isinstance(m, _NormBase)}
    # A module that acts at random stays one, so that its rate can be seen and changed.
    leaves = [*own, *norms, torchvision.ops.StochasticDepth]
    options: dict[str, Any] = {"autowrap_modules": (math, torchvision.ops), "leaf_modules": leaves}
    if any(type(m).__module__.startswith("timm.") for m in model.modules()):  # perhaps within a module of one's own
        # timm knows which of its modules branch on shapes; they become single nodes.
        from timm.models import get_notrace_functions, get_notrace_modules

        leaves.extend(get_notrace_modules())
        options["autowrap_functions"] = list(get_notrace_functions())
    return options


def trace(model: nn.Module, options: dict[str, Any], name: str) -> tuple[fx.Graph, dict[fx.Node, str]]:
    """Trace a network in its mode: the graph, and its nodes in order, with their qualified names."""
    from torchvision.models.feature_extraction import NodePathTracer

    tracer = NodePathTracer(**options)
    try:
        graph = tracer.trace(model)
    except Exception as error:  # of many kinds, by what in a network cannot be traced
        raise CxlpError(
            f"{name} cannot be traced by torch.fx, to be cut: {error}. Where a module's forward branches on values or "
            "shapes of its input, give its class the attribute traced_as_one = True: it becomes one node, and layers "
            "outside of it can be named"
        ) from error
    return graph, {node: path for node, path in tracer.node_to_qualname.items() if node.op != "placeholder"}


def _graph_to(taps: Mapping[str, str], model: nn.Module, options: dict[str, Any], name: str) -> fx.Graph:
    """Trace a network in its mode, with the nodes of these names as outputs and nothing behind them."""
    graph, names = trace(model, options, name)
    found = {path: node for node, path in names.items()}
    missing = [path for path in taps.values() if path not in found]
    if missing:
        mode = "training" if model.training else "evaluation"
        raise CxlpError(f"{name} has no layer {missing[0]!r} in {mode}: choose one that both modes pass through")
    return _return_only({output: found[path] for output, path in taps.items()}, model, graph)


def _return_only(taps: Mapping[str, fx.Node], model: nn.Module, graph: fx.Graph) -> fx.Graph:
    """Make some nodes the outputs of a graph, and drop what they do not need."""
    # In-place operations whose result is not assigned: what they have written may be read by way of their input.
    discarded = {node for node in graph.nodes if not node.users and writes_in_place(node, model)}
    for node in reversed(graph.nodes):  # nothing that comes later is needed, whatever it does
        if node in taps.values():
            break
        graph.erase_node(node)
    graph.output(dict(taps))
    graph = fx.GraphModule(model, graph).graph  # as the graph of a module, which tells what calls may do
    graph.eliminate_dead_code(lambda node: node in discarded or node.is_impure())
    return graph


def writes_in_place(node: fx.Node, model: nn.Module) -> bool:
    """Whether an operation overwrites its input, as far as its name and its settings tell."""
    module = model.get_submodule(str(node.target)) if node.op == "call_module" else None
    settings = [getattr(m, "inplace", False) for m in module.modules()] if module else [node.kwargs.get("inplace")]
    called = getattr(node.target, "__name__", str(node.target))
    called_so = node.op in ("call_function", "call_method") and called.endswith("_")  # such as torch.relu_
    return called_so or any(setting is True for setting in (*settings, *node.args))


def find_tap(
    names: dict[fx.Node, str], modules: dict[str, nn.Module], layer: str, activation: Activation, name: str
) -> fx.Node:
    """Find the node to return for a layer's name."""
    if layer == PENULTIMATE:
        return _before_the_last(names, modules, name)
    inside = [node for node, path in names.items() if path == layer or path.startswith(layer + ".")]
    if not inside:
        known = [path for path in dict.fromkeys([*modules, *names.values()]) if path]
        raise CxlpError(f"{name} has no layer {layer!r}. {did_you_mean(layer, known)}")
    tapped = node = inside[-1]
    if not is_activation(node, modules):
        follower = _first(user for user in _users(node, modules) if is_activation(user, modules))
        if follower is None:  # perhaps behind a normalisation
            norm = _first(user for user in _users(node, modules) if isinstance(modules.get(str(user.target)), NORMS))
            follower = norm and _first(user for user in _users(norm, modules) if is_activation(user, modules))
        if follower is None:
            return tapped
        node = follower
    if activation == "after" or fused_activation(modules.get(str(node.target))) is not None:
        return node  # before a fused one: see _unfuse
    return node.all_input_nodes[0]


def _before_the_last(names: dict[fx.Node, str], modules: dict[str, nn.Module], name: str) -> fx.Node:
    """Find what the last layer with weights of its own is given: behind dropout, before pooling of scores."""
    weighted = [n for n in names if n.op == "call_module" and isinstance(modules[str(n.target)], nn.Linear | nn.Conv2d)]
    if not weighted:
        raise CxlpError(f"{name} has no linear or convolutional layer that is a module: name the layer itself")
    node = weighted[-1].all_input_nodes[0]
    while node.op == "call_module" and isinstance(modules[str(node.target)], TRANSPARENT):
        node = node.all_input_nodes[0]
    return node


def _users(node: fx.Node, modules: dict[str, nn.Module]) -> Iterator[fx.Node]:
    """What takes a node's map, looking through modules that pass it on as it is."""
    for user in node.users:
        if user.op == "call_module" and isinstance(modules[str(user.target)], TRANSPARENT):
            yield from _users(user, modules)
        else:
            yield user


def is_activation(node: fx.Node, modules: dict[str, nn.Module]) -> bool:
    """Whether a node calls an activation, or a normalisation that ends with one."""
    if node.op == "call_module":
        module = modules[str(node.target)]
        return isinstance(module, ACTIVATION_MODULES) or fused_activation(module) is not None
    if node.op == "call_function":
        return node.target in _ACTIVATION_FUNCTIONS
    return node.op == "call_method" and node.target in _ACTIVATION_METHODS


def _unfuse(trunk: fx.GraphModule, activation: Activation) -> None:
    """Move the activation that timm fuses into a BatchNorm, or into a norm that is tapped before it, behind that norm.

    A BatchNorm that becomes a synchronised one would lose it. The trunk gets a copy of the norm, without activation,
    with the same parameters and buffers under the same names: the network that was given keeps its own. The activation
    becomes a node of its own, for those who read on from there.
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
    """The activation at the end of a timm normalisation, if it has one."""
    activation = getattr(module, "act", None)
    return activation if isinstance(module, NORMS) and isinstance(activation, ACTIVATION_MODULES) else None


def _protect_from_in_place(trunk: fx.GraphModule) -> None:
    """Return copies of taps that are read on from: an in-place ReLU would turn "before" into "after".

    A copy of one map costs little beside a convolution, and holds whatever writes, also through
    an alias: an identity or a dropout at rest hands on the tap's own memory. What a tap has itself written into may be
    read on, too.
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
    """The graph for training and the graph for evaluation."""
    train, evaluate = trunk.train_graph, trunk.eval_graph
    assert isinstance(train, fx.Graph) and isinstance(evaluate, fx.Graph)
    return train, evaluate


def _output(graph: fx.Graph) -> fx.Node:
    node: fx.Node = next(node for node in graph.nodes if node.op == "output")
    return node


def _first(nodes: Iterable[fx.Node]) -> fx.Node | None:
    return next(iter(nodes), None)
