"""Where a backbone's weights come from, and loading them strictly."""

from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from cxlp.utils.errors import CxlpError, did_you_mean

_SUFFIXES = (".pth", ".pt", ".bin", ".ckpt", ".onnx", ".tar")


def read_state_dict(path: Path) -> dict[str, Tensor]:
    """Read a state dict from a file of ``torch.save``, without running code from it.

    Args:
        path: The file; a ``state_dict`` or ``model`` entry and a ``module.`` prefix are looked through.

    Raises:
        CxlpError: If the file is missing, unreadable, or holds no tensors.
    """
    if not path.is_file():
        near = [p.name for p in path.parent.glob("*") if p.suffix in _SUFFIXES] if path.parent.is_dir() else []
        lacking = "are no weights in" if path.parent.is_dir() else "is no folder"
        hint = (
            did_you_mean(path.name, near) if near else f"There {lacking} {path.parent}. Give a file, default or null."
        )
        raise CxlpError(f"weights file not found: {path}. {hint}")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch.load raises many kinds, from UnpicklingError to EOFError
        # Only its kind: the message advises to load the file without the protection against code in it.
        kind = type(error).__name__
        raise CxlpError(f"{path} is not a readable weights file (torch.save of a state dict): {kind}") from error
    for key in ("state_dict", "model"):
        if isinstance(state, Mapping) and isinstance(state.get(key), Mapping):
            state = state[key]
    named = isinstance(state, Mapping) and all(isinstance(k, str) and isinstance(v, Tensor) for k, v in state.items())
    if not named or not state:
        raise CxlpError(f"{path} holds no state dict (a mapping of names to tensors)")
    return {key.removeprefix("module."): value for key, value in state.items()}


def load_strictly(kept: nn.Module, whole: nn.Module, state: Mapping[str, Tensor], source: str) -> None:
    """Load weights into a cut network, and say what does not fit.

    Every tensor of the kept part must be there in its shape. What lies behind the cut may have any
    shape (a classifier of other classes), but a name that the whole network does not know is
    refused: the file then belongs to another network.

    Args:
        kept: The cut network; its names are those of the whole one.
        whole: The network it was cut from.
        state: The weights.
        source: What to call them in the error.

    Raises:
        CxlpError: Names what is missing, unknown, or of another shape.
    """
    known = whole.state_dict()
    wanted = {k: v for k, v in kept.state_dict().items() if k in known}  # not constants, which tracing makes buffers
    # Counters of BatchNorm's batches are absent from old files and unused in inference.
    missing = [k for k in wanted if k not in state and not k.endswith("num_batches_tracked")]
    unknown = [k for k in state if k not in known]
    misfit = [
        f"{k}: {tuple(state[k].shape)} in the file, {tuple(v.shape)} in the network"
        for k, v in wanted.items()
        if k in state and state[k].shape != v.shape
    ]
    problems = [
        f"{len(found)} {what} ({'; '.join(found[:4])}{'; ...' if len(found) > 4 else ''})"
        for what, found in (("missing", missing), ("unknown", unknown), ("of another shape", misfit))
        if found
    ]
    if problems:
        raise CxlpError(f"{source} does not fit this network: {', '.join(problems)}")
    kept.load_state_dict({k: v for k, v in state.items() if k in wanted}, strict=False)


def in_order(state: Mapping[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """Rename a state dict by position, for a file whose tensors come in the network's own order.

    Raises:
        CxlpError: If the numbers of tensors differ (shapes are checked when loading).
    """
    names = list(model.state_dict())
    if len(names) != len(state):
        raise CxlpError(f"the file holds {len(state)} tensors, the network {len(names)}")
    return dict(zip(names, state.values(), strict=True))


def pretrained(load: Callable[[], nn.Module], name: str) -> nn.Module:
    """Call a hub's loader, and explain what to do where there is no network.

    Raises:
        CxlpError: If the loader fails for want of a network.
    """
    try:
        return load()
    except Exception as error:  # hubs raise their own kinds, from URLError to LocalEntryNotFoundError
        raise CxlpError(
            f"cannot get the pretrained weights of {name}: {type(error).__name__}: {str(error)[:200]}. Offline? Give a "
            "local FILE as the backbone's weights, null for random ones, or use "
            "--config efficientnet_lite0.yaml, whose weights come with pip"
        ) from error
