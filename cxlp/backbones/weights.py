"""Read weights files, convert tensor names to those of a network, and load the weights strictly."""

import argparse
import copy
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from cxlp.backbones.weights_file import find_weights
from cxlp.utils.errors import CxlpError

State = Mapping[str, Tensor]

#: Keys under which training scripts store the weights, in timm's order: averaged weights first.
_ENTRIES = ("state_dict_ema", "model_ema", "state_dict", "model_state_dict", "model_state", "model")
#: Prefixes that distributed and compiled networks add to names.
_WRAPPERS = ("module.", "_orig_mod.")
#: Names in DenseNet files from before 2018, when module names could contain dots.
_DENSE_LAYER = re.compile(r"(denselayer\d+\.(?:norm|conv))\.([12])\.")


def read_state_dict(path: Path) -> dict[str, Tensor]:
    """Read a state dict from a ``torch.save`` or safetensors file, without executing code from the file.

    Args:
        path: The file. The state dict may be nested under a key such as ``state_dict`` or ``model``, and its names may
            have the prefix ``module.``. Averaged weights (``state_dict_ema``, ``model_ema``) take precedence.

    Raises:
        CxlpError: If the file is missing or unreadable, or contains no tensors.
    """
    path = find_weights(path)
    try:
        state = _load(path)
    except Exception as error:  # many types, from UnpicklingError to EOFError
        raise CxlpError(f"{path} is not a readable weights file: {_reason(path, error)}") from error
    while isinstance(state, Mapping):
        entry = next((state[key] for key in _ENTRIES if isinstance(state.get(key), Mapping) and state[key]), None)
        if entry is None:
            break
        state = entry
    named = isinstance(state, Mapping) and all(isinstance(k, str) and isinstance(v, Tensor) for k, v in state.items())
    if not named or not state:
        held = type(state).__name__
        if isinstance(state, Mapping):
            held = f"entries {', '.join(map(repr, list(state)[:8]))}" if state else "nothing"
        raise CxlpError(
            f"{path} contains no state dict (a mapping from names to tensors) under a known key, but {held}: save only "
            "the network's state_dict()"
        )
    # n_averaged is the step count of torch's AveragedModel.
    return {_unwrapped(key): value for key, value in state.items() if key != "n_averaged"}


def _load(path: Path) -> Any:  # noqa: ANN401 (whatever a file holds)
    with path.open("rb") as file:
        start = file.read(9)
    if start.endswith(b"{", 8):  # safetensors, with any suffix: eight bytes of length, then JSON
        from safetensors.torch import load_file  # a dependency of timm

        return load_file(path)
    with torch.serialization.safe_globals(
        [argparse.Namespace]
    ):  # training arguments that scripts store with the weights
        return torch.load(path, map_location="cpu", weights_only=True)


def _reason(path: Path, error: Exception) -> str:
    """Return why a file is unreadable, without torch's message, which suggests disabling ``weights_only``."""
    if isinstance(error, OSError):
        return error.strerror or type(error).__name__
    with path.open("rb") as file:
        start = file.read(100).lstrip()
    if start.startswith(b"<"):
        return "it is a web page; download the file itself"
    if start.startswith(b"version https://git-lfs"):
        return "it is a Git LFS pointer; download the file itself with git lfs pull"
    if "TorchScript" in str(error):
        return "it is a TorchScript archive; save the network's state_dict() instead"
    if re.search(r"GLOBAL|Unsupported class|reduce", str(error)):
        return "it contains objects other than tensors, which could run code; save only the network's state_dict()"
    return f"it is empty, truncated, or in another format ({type(error).__name__}); download it again"


def _unwrapped(key: str) -> str:
    while key.startswith(_WRAPPERS):
        key = key.partition(".")[2]
    return key


def load_strictly(
    kept: nn.Module,
    whole: nn.Module,
    state: State,
    source: str,
    translate: Callable[[State], State] | None = None,
) -> None:
    """Load weights into a cut network, and raise an error for weights that do not fit.

    Every tensor of the cut network must be present with its shape and be finite. Tensors after the cut may have any
    shape, such as a classifier for other classes. Names that the whole network does not have are an error, since the
    file then belongs to another network. Auxiliary classifiers (``aux...``) are exempt. Older names are accepted if the
    network itself or its library can convert them. All names may have a prefix such as ``model.``. Entries without this
    prefix, such as those of a loss, are then ignored, but the file must not contain several networks that fit.

    Args:
        kept: The cut network, whose names are those of the whole network.
        whole: The whole network.
        state: The weights.
        source: Name of the weights for error messages.
        translate: Function of the network's library that converts older names to the current names.

    Raises:
        CxlpError: If tensors are missing, unknown, of another shape or not finite, or several prefixes fit. The message
            names them.
    """
    known = whole.state_dict()
    wanted = {
        k: v for k, v in kept.state_dict().items() if k in known
    }  # without constants, which tracing turns into buffers
    fitting: dict[str, State] = {}  # by prefix
    problems: list[dict[str, list[str]]] = []
    for prefix in _prefixes(state, known, wanted):
        part = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
        for reading in _readings(part, whole, known, translate):
            problems.append(_problems(reading, known, wanted))
            if not problems[-1]:
                fitting[prefix] = reading
                break
        if "" in fitting:
            break
    if len(fitting) > 1:
        raise CxlpError(
            f"{source} contains several networks that fit, under {', '.join(map(repr, fitting))}: save only the one "
            "that you need"
        )
    if not fitting:
        least = min(problems, key=lambda found: sum(map(len, found.values())))
        said = (f"{len(k)} {what} ({'; '.join(k[:4])}{'; ...' if len(k) > 4 else ''})" for what, k in least.items())
        raise CxlpError(f"{source} does not fit this network: {', '.join(said)}")
    (named,) = fitting.values()
    check_values({k: named[k] for k in wanted if k in named}, wanted, source)
    kept.load_state_dict({k: v for k, v in named.items() if k in wanted}, strict=False)


def check_values(state: State, own: State, source: str) -> None:
    """Check that weights are dense, finite, and floating point where the network's tensors are.

    Args:
        state: The weights.
        own: The network's tensors before loading, under the same names. Weights may contain infinity where these do,
            for example in a mask.
        source: Name of the weights for error messages.

    Raises:
        CxlpError: If a tensor fails the check. The message names the first such tensor.
    """
    for key, value in state.items():
        like = own.get(key)
        if like is not None and like.is_floating_point():
            dense = value.layout == torch.strided and not value.is_quantized and not value.is_meta
            if not dense or not value.is_floating_point():
                raise CxlpError(
                    f"{source}: {key} is {value.layout}, {value.dtype}, on {value.device}, but the network's tensor is "
                    f"{like.dtype}: save dense floating point tensors"
                )
            value = value.to(like.dtype)
        if not bool(value.isfinite().all()) and (like is None or bool(like.isfinite().all())):
            raise CxlpError(f"{source} contains NaN or infinity in {key}: the training diverged or the file is damaged")


def _problems(state: State, known: State, wanted: State) -> dict[str, list[str]]:
    """Return the names of tensors that do not fit, grouped by the problem."""
    # BatchNorm's batch counters are missing in old files and unused in inference.
    missing = [k for k in wanted if k not in state and not k.endswith("num_batches_tracked")]
    unknown = [k for k in state if k not in known and not k.endswith("num_batches_tracked")]
    found = {
        "missing": missing,
        "unknown": [key for key in unknown if not key.lower().startswith("aux")],
        "of another shape": [
            f"{k}: {tuple(state[k].shape)} in the file, {tuple(v.shape)} in the network"
            for k, v in wanted.items()
            if k in state and state[k].shape != v.shape
        ],
    }
    return {what: names for what, names in found.items() if names}


def _readings(
    state: State, whole: nn.Module, known: State, translate: Callable[[State], State] | None
) -> Iterator[State]:
    """Yield a state dict under its own names, and then with names converted in each known way."""
    yield state
    yield {_DENSE_LAYER.sub(r"\1\2.", key): value for key, value in state.items()}
    yield _read_by(whole, state, known)
    if translate is not None:
        yield translate(state)


def _prefixes(state: State, known: State, wanted: State) -> list[str]:
    """Return candidates for the prefix of names: the empty prefix and the most frequent prefixes."""
    if "missing" not in _problems(state, known, wanted):
        return [""]
    starts = [(key, [m.end() for m in re.finditer(r"\.", key)]) for key in state]
    found = Counter(key[:i] for key, places in starts for i in places if key[i:] in known)
    return ["", *(prefix for prefix, _ in found.most_common(4))]


def _read_by(whole: nn.Module, state: State, known: State) -> State:
    """Convert names with the network's own ``load_state_dict``, which may support older files."""
    memo: dict[int, Any] = {}  # for a copy on the meta device, which uses no memory
    for value in (*whole.parameters(), *whole.buffers()):
        empty = torch.empty_like(value, device="meta")
        memo[id(value)] = nn.Parameter(empty, value.requires_grad) if isinstance(value, nn.Parameter) else empty
    twin = copy.deepcopy(whole, memo)
    others = {k: v for k, v in state.items() if k in known and v.shape != known[k].shape}  # load_state_dict would raise
    try:
        left = twin.load_state_dict({k: v for k, v in state.items() if k not in others}, strict=False, assign=True)
    except Exception:  # the network's own code cannot convert these names
        return state
    read = {key: value for key, value in twin.state_dict().items() if not value.is_meta}
    return read | {key: state[key] for key in left.unexpected_keys} | others


def in_order(state: State, model: nn.Module) -> dict[str, Tensor]:
    """Rename a state dict by position, for a file whose tensors are in the network's order.

    Raises:
        CxlpError: If the numbers of tensors differ. Shapes are checked when the weights are loaded.
    """
    names = list(model.state_dict())
    if len(names) != len(state):
        raise CxlpError(f"the weights file has {len(state)} tensors, but the network has {len(names)}")
    return dict(zip(names, state.values(), strict=True))
