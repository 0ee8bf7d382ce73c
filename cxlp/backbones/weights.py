"""Files of weights: reading them, giving their tensors the names that the network has, and loading them strictly."""

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

#: Where training scripts put the weights, the averaged ones first, as timm reads them.
_ENTRIES = ("state_dict_ema", "model_ema", "state_dict", "model_state_dict", "model_state", "model")
#: What distributed and compiled networks put before their names.
_WRAPPERS = ("module.", "_orig_mod.")
#: Names of DenseNets in files of before 2018, when names of modules could hold dots.
_DENSE_LAYER = re.compile(r"(denselayer\d+\.(?:norm|conv))\.([12])\.")


def read_state_dict(path: Path) -> dict[str, Tensor]:
    """Read a state dict from a file of ``torch.save`` or of safetensors, without running code from it.

    Args:
        path: The file. An entry such as ``state_dict`` or ``model`` and a ``module.`` prefix are looked through; where
            there are averaged weights, too (``state_dict_ema``, ``model_ema``), these are taken.

    Raises:
        CxlpError: If the file is missing, unreadable, or holds no tensors.
    """
    path = find_weights(path)
    try:
        state = _load(path)
    except Exception as error:  # of many kinds, from UnpicklingError to EOFError
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
            f"{path} holds no state dict (a mapping of names to tensors) where scripts put it, but {held}: save the "
            "network's state_dict() alone"
        )
    # n_averaged: how many steps torch's AveragedModel has averaged.
    return {_unwrapped(key): value for key, value in state.items() if key != "n_averaged"}


def _load(path: Path) -> Any:  # noqa: ANN401 (whatever a file holds)
    with path.open("rb") as file:
        start = file.read(9)
    if start.endswith(b"{", 8):  # safetensors, whatever its name: eight bytes of length, and JSON
        from safetensors.torch import load_file  # timm needs it, too

        return load_file(path)
    with torch.serialization.safe_globals([argparse.Namespace]):  # arguments of the training, beside the weights
        return torch.load(path, map_location="cpu", weights_only=True)


def _reason(path: Path, error: Exception) -> str:
    """Say why a file cannot be read; not in torch's words, which advise to do without protection from code in it."""
    if isinstance(error, OSError):
        return error.strerror or type(error).__name__
    with path.open("rb") as file:
        start = file.read(100).lstrip()
    if start.startswith(b"<"):
        return "it is a web page; fetch the file itself"
    if start.startswith(b"version https://git-lfs"):
        return "it is a pointer of Git LFS; fetch the file itself, git lfs pull"
    if "TorchScript" in str(error):
        return "it is a TorchScript archive; save the network's state_dict() instead"
    if re.search(r"GLOBAL|Unsupported class|reduce", str(error)):
        return "it holds other objects than tensors, which could run code; save the network's state_dict() alone"
    return f"it is empty, cut short, or of another format ({type(error).__name__}); fetch it again"


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
    """Load weights into a cut network, and say what does not fit.

    Every tensor of the kept part must be there in its shape, and be finite. What lies behind the cut may have any
    shape (a classifier of other classes), but a name that the whole network does not know is refused, unless it is of
    an auxiliary classifier (``aux...``): the file then belongs to another network. Names may be older ones that the
    network itself, or its library, knows how to read. All may have a prefix (``model.``): then what does not have it,
    such as a loss, is left out, but the network must not be there twice.

    Args:
        kept: The cut network; its names are those of the whole one.
        whole: The network it was cut from.
        state: The weights.
        source: What to call them in the error.
        translate: Turns older names into those of today, as the network's library does.

    Raises:
        CxlpError: Names what is missing, unknown, of another shape, or not finite, or the prefixes that fit.
    """
    known = whole.state_dict()
    wanted = {k: v for k, v in kept.state_dict().items() if k in known}  # not constants, which tracing makes buffers
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
            f"{source} holds several networks that fit, under {', '.join(map(repr, fitting))}: save the one that is "
            "wanted alone"
        )
    if not fitting:
        least = min(problems, key=lambda found: sum(map(len, found.values())))
        said = (f"{len(k)} {what} ({'; '.join(k[:4])}{'; ...' if len(k) > 4 else ''})" for what, k in least.items())
        raise CxlpError(f"{source} does not fit this network: {', '.join(said)}")
    (named,) = fitting.values()
    check_values({k: named[k] for k in wanted if k in named}, wanted, source)
    kept.load_state_dict({k: v for k, v in named.items() if k in wanted}, strict=False)


def check_values(state: State, own: State, source: str) -> None:
    """Refuse what is no plain number of floating point where the network has such, and NaN and infinity.

    Args:
        state: The weights.
        own: Those that the network has before they are loaded, by the same names. Where they are infinite, such as in
            a mask, so may the weights be.
        source: What to call the weights in the error.

    Raises:
        CxlpError: Names the first tensor that holds them.
    """
    for key, value in state.items():
        like = own.get(key)
        if like is not None and like.is_floating_point():
            dense = value.layout == torch.strided and not value.is_quantized and not value.is_meta
            if not dense or not value.is_floating_point():
                raise CxlpError(
                    f"{source} holds {key} as {value.layout}, {value.dtype}, on {value.device}, where the network has "
                    f"{like.dtype}: save dense tensors of floating point"
                )
            value = value.to(like.dtype)
        if not bool(value.isfinite().all()) and (like is None or bool(like.isfinite().all())):
            raise CxlpError(f"{source} holds NaN or infinity in {key}: its training diverged, or the file is damaged")


def _problems(state: State, known: State, wanted: State) -> dict[str, list[str]]:
    """List the names of what does not fit, by what is wrong with them."""
    # Counters of BatchNorm's batches are absent from old files and unused in inference.
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
    """Give a state dict under its own names, and then under those that they may stand for."""
    yield state
    yield {_DENSE_LAYER.sub(r"\1\2.", key): value for key, value in state.items()}
    yield _read_by(whole, state, known)
    if translate is not None:
        yield translate(state)


def _prefixes(state: State, known: State, wanted: State) -> list[str]:
    """List the prefixes that names may have before the network's: none, and those that most of its names have."""
    if "missing" not in _problems(state, known, wanted):
        return [""]
    starts = [(key, [m.end() for m in re.finditer(r"\.", key)]) for key in state]
    found = Counter(key[:i] for key, places in starts for i in places if key[i:] in known)
    return ["", *(prefix for prefix, _ in found.most_common(4))]


def _read_by(whole: nn.Module, state: State, known: State) -> State:
    """Rename what the network's own ``load_state_dict`` renames, as torchvision's transformers do with older files."""
    memo: dict[int, Any] = {}  # a copy without memory
    for value in (*whole.parameters(), *whole.buffers()):
        empty = torch.empty_like(value, device="meta")
        memo[id(value)] = nn.Parameter(empty, value.requires_grad) if isinstance(value, nn.Parameter) else empty
    twin = copy.deepcopy(whole, memo)
    others = {k: v for k, v in state.items() if k in known and v.shape != known[k].shape}  # load_state_dict refuses
    try:
        left = twin.load_state_dict({k: v for k, v in state.items() if k not in others}, strict=False, assign=True)
    except Exception:  # whatever a network's own code refuses: then it has no other names for them
        return state
    read = {key: value for key, value in twin.state_dict().items() if not value.is_meta}
    return read | {key: state[key] for key in left.unexpected_keys} | others


def in_order(state: State, model: nn.Module) -> dict[str, Tensor]:
    """Rename a state dict by position, for a file whose tensors come in the network's own order.

    Raises:
        CxlpError: If the numbers of tensors differ (shapes are checked when loading).
    """
    names = list(model.state_dict())
    if len(names) != len(state):
        raise CxlpError(f"the file holds {len(state)} tensors, the network {len(names)}")
    return dict(zip(names, state.values(), strict=True))
