"""Gradient checkpointing of a cut network: maps are computed again where the backward pass needs them.

The backward pass reads what the forward pass has computed, so that training holds nearly every map of the network.
Checkpointing (Chen et al., "Training Deep Nets with Sublinear Memory Cost", 2016) runs the network in segments, keeps
only what passes from one to the next, and runs a segment once more when the gradient arrives at its end: about one
forward pass more per step, for memory that grows with the square root of the depth. Values and gradients stay.

A cut network is a graph of operations, not a list of modules. Where it may be cut into segments follows from one run
of a few images, node by node (:func:`plan`).
"""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, fx
from torch.nn.modules.batchnorm import _NormBase
from torch.utils._pytree import tree_leaves
from torch.utils.checkpoint import checkpoint


class Recomputation:
    """Runs a graph in segments, each under a checkpoint except the last, whose gradient comes first anyway.

    Random numbers (dropout, stochastic depth) and autocast are the same in the second run, and the running
    statistics of BatchNorm are updated in the first only.

    Attributes:
        cuts: Where segments end, by index of the node behind it; found in the first run.
    """

    def __init__(self) -> None:
        self.cuts: list[int] | None = None

    def __call__(self, trunk: fx.GraphModule, x: Tensor) -> Any:  # noqa: ANN401 (the output of any graph)
        """Compute what ``trunk(x)`` computes, for a graph in training mode."""
        if self.cuts is None:
            self.cuts = plan(trunk, x)
        nodes = list(trunk.graph.nodes)
        values: dict[fx.Node, Any] = {nodes[0]: x}
        last_reader = {a: i for i, node in enumerate(nodes) for a in node.all_input_nodes}
        # From behind the input up to the output.
        for start, stop in pairwise([1, *self.cuts, len(nodes) - 1]):
            segment = _Segment(trunk, nodes[start:stop])
            given = [values[node] for node in segment.inputs]
            if stop == len(nodes) - 1:
                found = segment(*given)
            else:
                found = checkpoint(segment, *given, use_reentrant=False, context_fn=partial(_contexts, trunk))
            values |= zip(segment.outputs, found, strict=True)
            # What nobody reads any more is not held.
            values = {node: value for node, value in values.items() if last_reader[node] >= stop}
        return fx.node.map_arg(nodes[-1].args[0], values.__getitem__)


class _Segment:
    """Some consecutive nodes of a graph, as a function of what they read from before to what is read behind them."""

    def __init__(self, trunk: fx.GraphModule, nodes: Sequence[fx.Node]) -> None:
        self.trunk, self.nodes = trunk, nodes
        own = set(nodes)
        self.inputs = list(dict.fromkeys(a for node in nodes for a in node.all_input_nodes if a not in own))
        self.outputs = [node for node in nodes if not own.issuperset(node.users)]

    def __call__(self, *given: Any) -> tuple[Any, ...]:
        interpreter = _interpreter(self.trunk, dict(zip(self.inputs, given, strict=True)))
        last_reader = {a: node for node in self.nodes for a in node.all_input_nodes}
        kept = set(self.outputs)
        for node in self.nodes:
            interpreter.env[node] = interpreter.run_node(node)
            for a in node.all_input_nodes:
                if last_reader[a] is node and a not in kept:
                    del interpreter.env[a]
        return tuple(interpreter.env[node] for node in self.outputs)


@torch.no_grad()
def plan(trunk: fx.GraphModule, x: Tensor) -> list[int]:
    """Choose where to cut a graph: where the least memory is held at most.

    Nothing that a segment is given may be overwritten by it: the second run would read what the first has written.
    So a cut never lies between an operation and another that overwrites its result (or an alias of it) in place.
    Which do is seen by running two images and by the tensors' version counters, for the modules as they are.

    Args:
        trunk: A graph in training mode, with one input.
        x: Its input; the first two images are run (one is too few for BatchNorm).

    Returns:
        Indices of the nodes that begin a segment, except the first one; empty for a graph that is best left whole.
    """
    nodes = list(trunk.graph.nodes)
    index = {node: i for i, node in enumerate(nodes)}
    interpreter = _interpreter(trunk, {nodes[0]: x[:2].clone()})
    born = {nodes[0]: 0}  # when the memory that holds a value was first written
    fresh = [0] * len(nodes)  # bytes that a node adds
    allowed = [True] * len(nodes)  # to begin a segment
    devices = [x.device] if x.is_cuda else []
    # No autocast: it would keep half-precision weights that have no gradient for the first step.
    with torch.random.fork_rng(devices), torch.autocast(x.device.type, enabled=False), _at_rest(trunk):
        for i, node in enumerate(nodes[1:-1], start=1):
            given = {a: _tensors(interpreter.env[a]) for a in node.all_input_nodes}
            before = {a: [t._version for t in tensors] for a, tensors in given.items()}
            interpreter.env[node] = interpreter.run_node(node)
            memory = {t.untyped_storage().data_ptr(): t.nbytes for t in _tensors(interpreter.env[node])}
            born[node] = i
            for a, tensors in given.items():
                if [t._version for t in tensors] != before[a]:
                    allowed[born[a] + 1 : i + 1] = [False] * (i - born[a])
                pointers = {t.untyped_storage().data_ptr() for t in tensors}
                if pointers & memory.keys():
                    born[node] = min(born[node], born[a])
                memory = {pointer: size for pointer, size in memory.items() if pointer not in pointers}
            fresh[i] = 0 if node.op == "get_attr" else sum(memory.values())
            for a in node.all_input_nodes:
                if max(index[user] for user in a.users) == i:
                    del interpreter.env[a]
    held = [0] * len(nodes)  # bytes that pass a cut before a node, which a checkpoint keeps
    for node, i in index.items():
        # An alias counts as much as the memory behind it, once more where both pass: a bound, close enough to choose.
        for cut in range(i + 1, max((index[user] for user in node.users), default=i) + 1):
            held[cut] += fresh[i] or fresh[born.get(node, i)]
    return _cheapest(fresh, held, [i for i in range(2, len(nodes) - 1) if allowed[i]])


def _cheapest(fresh: Sequence[int], held: Sequence[int], allowed: Sequence[int]) -> list[int]:
    """Choose cuts so that what is kept at them plus the largest segment is least.

    For each of some bounds on a segment, the cuts with the least to keep (shortest path), and of these the best.
    """
    stops = [1, *allowed, len(fresh) - 1]
    total = [0]
    for size in fresh:
        total.append(total[-1] + size)
    best, chosen = total[-1], list[int]()
    for part in range(2, len(stops) + 1):
        bound = total[-1] / part
        kept, origin = {1: 0}, dict[int, int]()
        for here, stop in enumerate(stops[1:], start=1):
            # The nearest start always counts: what cannot be divided is a segment, however large.
            starts = [stops[here - 1], *(s for s in stops[: here - 1] if total[stop] - total[s] <= bound)]
            origin[stop] = min(starts, key=kept.__getitem__)
            kept[stop] = kept[origin[stop]] + (held[stop] if stop < stops[-1] else 0)
        path = [stops[-1]]
        while path[-1] != 1:
            path.append(origin[path[-1]])
        largest = max(total[stop] - total[start] for stop, start in pairwise(path))
        if kept[stops[-1]] + largest < best:
            best, chosen = kept[stops[-1]] + largest, path[-2:0:-1]
        elif bound < kept[stops[-1]]:
            break  # finer segments only keep more
    return chosen


def _contexts(trunk: fx.GraphModule) -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
    """Wrap a segment's first run and its second."""
    return nullcontext(), _at_rest(trunk)


@contextmanager
def _at_rest(trunk: fx.GraphModule) -> Iterator[None]:
    """Have normalisations compute as they do in training, and leave their running statistics as they are."""
    norms = [module for module in trunk.modules() if isinstance(module, _NormBase)]
    moving = [norm for norm in norms if norm.training and norm.track_running_stats]
    before = [(norm.momentum, norm.num_batches_tracked) for norm in moving]
    try:
        for norm in moving:
            norm.momentum = 0.0
            if norm.num_batches_tracked is not None:
                norm.num_batches_tracked = norm.num_batches_tracked.clone()
        yield
    finally:
        for norm, (momentum, count) in zip(moving, before, strict=True):
            norm.momentum, norm.num_batches_tracked = momentum, count


def _interpreter(trunk: fx.GraphModule, values: dict[fx.Node, Any]) -> fx.Interpreter:
    interpreter = fx.Interpreter(trunk, garbage_collect_values=False)
    interpreter.env = values
    interpreter.args_iter = iter(())  # inputs other than the images, such as a mask, have their defaults
    return interpreter


def _tensors(value: Any) -> list[Tensor]:  # noqa: ANN401 (what a node gives)
    return [leaf for leaf in tree_leaves(value) if isinstance(leaf, Tensor)]
