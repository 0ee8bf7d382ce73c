"""Gradient checkpointing of a cut network: the backward pass recomputes most maps.

The graph of n operations runs in about sqrt(n) segments (Chen et al., "Training Deep Nets with Sublinear Memory Cost",
2016). Only the values that pass from one segment to the next are stored. The backward pass runs each segment again when
the gradient reaches the segment's end, which costs about one more forward pass per step. Values and gradients do not
change.
"""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from itertools import pairwise
from math import sqrt
from typing import Any

from torch import Tensor, fx
from torch.nn.modules.batchnorm import _NormBase
from torch.utils.checkpoint import checkpoint

from cxlp.backbones.feature_extraction import writes_in_place
from cxlp.utils.errors import CxlpError


def run_in_segments(trunk: fx.GraphModule, x: Tensor) -> Any:  # noqa: ANN401 (the output of any graph)
    """Compute ``trunk(x)`` with a checkpoint around each segment except the last.

    The gradient of the last segment is computed first, so recomputing that segment would save no memory. The second run
    of a segment uses the same random numbers and the same autocast state as the first run, and does not update the
    running statistics of BatchNorm.

    Raises:
        CxlpError: If the network overwrites a value in place in a way that :func:`allowed_cuts` does not detect.
    """
    nodes = list(trunk.graph.nodes)
    values: dict[fx.Node, Any] = {nodes[0]: x}
    for start, stop in pairwise([1, *find_cuts(trunk), len(nodes) - 1]):
        segment, later = nodes[start:stop], set(nodes[stop:])
        given = {a: values[a] for node in segment for a in node.all_input_nodes if a in values}
        before = {a: value._version for a, value in given.items() if isinstance(value, Tensor)}
        run: Any = partial(_run, trunk, segment, list(given))
        if stop < len(nodes) - 1:
            run = partial(checkpoint, run, use_reentrant=False, context_fn=lambda: (nullcontext(), _no_update(trunk)))
        values |= run(*given.values())
        if written := [a.name for a in before if given[a]._version != before[a]]:
            raise CxlpError(f"the backbone overwrites its map {written[0]!r} in place: set model.recompute to false")
        values = {node: value for node, value in values.items() if not later.isdisjoint(node.users)}
    return fx.node.map_arg(nodes[-1].args[0], values.__getitem__)


def _run(trunk: fx.GraphModule, segment: list[fx.Node], inputs: list[fx.Node], *given: Any) -> dict[fx.Node, Any]:
    interpreter = fx.Interpreter(trunk)
    interpreter.env = dict(zip(inputs, given, strict=True))
    interpreter.args_iter = iter(())  # other placeholders than the images, such as a mask, use their defaults
    for node in segment:
        interpreter.env[node] = interpreter.run_node(node)
        for unused in interpreter.user_to_last_uses.get(node, []):
            del interpreter.env[unused]
    return interpreter.env


def find_cuts(trunk: fx.GraphModule) -> list[int]:
    """Return the indices of nodes that begin a segment, nearly evenly spaced, where few values pass."""
    passing, length = allowed_cuts(trunk), sqrt(len(trunk.graph.nodes))
    places = [k * length for k in range(1, round(length))]
    near = [(place, [cut for cut in passing if abs(cut - place) < length / 2]) for place in places]
    return [min(cuts, key=lambda cut: (passing[cut], abs(cut - place))) for place, cuts in near if cuts]


def allowed_cuts(trunk: fx.GraphModule) -> dict[int, int]:
    """Return the indices of nodes that may begin a segment, with the number of values that pass there.

    No cut lies between an in-place operation and the operation that allocated the memory it overwrites. Otherwise the
    second run of a segment would read values that the first run has overwritten.
    """
    last_use = {a: i for i, node in enumerate(trunk.graph.nodes) for a in node.all_input_nodes}
    passing = dict.fromkeys(range(2, len(trunk.graph.nodes) - 1), 0)
    made: dict[fx.Node, int] = {}  # index of the operation that allocated a value's memory
    for i, node in enumerate(trunk.graph.nodes):
        for cut in passing.keys() & range(i + 1, last_use.get(node, i) + 1):
            passing[cut] += 1
        module = trunk.get_submodule(str(node.target)) if node.op == "call_module" else None
        weighted = module is not None and any(True for _ in module.parameters())
        in_place = writes_in_place(node, trunk)
        # An operation on one value without weights may return a view of it: flatten, or dropout in evaluation mode.
        keeps = in_place or (len(node.all_input_nodes) == 1 and not weighted)
        made[node] = min((made[a] for a in node.all_input_nodes), default=i) if keeps else i
        if in_place:
            passing = {cut: count for cut, count in passing.items() if not made[node] < cut <= i}
    return passing


@contextmanager
def _no_update(trunk: fx.GraphModule) -> Iterator[None]:
    """Context in which normalisations run in training mode without updating their running statistics."""
    norms = [m for m in trunk.modules() if isinstance(m, _NormBase)]
    before = [(norm, norm.momentum, norm.num_batches_tracked) for norm in norms]
    for norm, _, count in before:
        norm.momentum, norm.num_batches_tracked = 0.0, None if count is None else count.clone()
    try:
        yield
    finally:
        for norm, momentum, count in before:
            norm.momentum, norm.num_batches_tracked = momentum, count
