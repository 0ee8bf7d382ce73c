"""Where a backbone's weights come from, and loading them strictly."""

import hashlib
import http.client
import os
import urllib.request
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn
from tqdm import tqdm

from cxlp.errors import CxlpError, did_you_mean


def fetch(url: str, target: Path, *, sha256: str | None = None, md5: str | None = None, by_hand: str = "") -> Path:
    """Download a file once: with progress, verified, written aside and renamed when whole.

    Args:
        url: Where it is.
        target: Where it goes; nothing is done if it is there already.
        sha256: Its checksum, as hexadecimal digits.
        md5: The same, for a file whose owner publishes that one.
        by_hand: A sentence for the error: what to do without a network.

    Returns:
        ``target``.

    Raises:
        CxlpError: If the transfer fails or the checksum differs; nothing is left at ``target``.
    """
    if target.exists():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    # One name per process: two runs that fetch at once do not write into each other's file.
    partial = target.with_name(f"{target.name}.{os.getpid()}.part")
    digest = hashlib.sha256() if sha256 else hashlib.md5(usedforsecurity=False)
    try:
        request = urllib.request.Request(url, headers={"User-Agent": "cxlp"})
        with urllib.request.urlopen(request, timeout=30) as response, partial.open("wb") as file:
            total = int(response.headers.get("Content-Length") or 0)
            with tqdm(total=total or None, unit="B", unit_scale=True, desc=target.name) as progress:
                while chunk := response.read(1 << 20):
                    file.write(chunk)
                    digest.update(chunk)
                    progress.update(len(chunk))
        if total and partial.stat().st_size != total:  # a lost connection ends the stream without an error
            raise OSError(f"the connection was lost after {partial.stat().st_size} of {total} bytes")
        expected = sha256 or md5
        if expected and digest.hexdigest() != expected:
            raise CxlpError(f"{url} came with checksum {digest.hexdigest()}, expected {expected}. {by_hand}")
        partial.replace(target)
    except (OSError, http.client.HTTPException) as error:  # URLError is an OSError
        raise CxlpError(f"cannot download {url}: {error}. {by_hand}") from error
    finally:
        partial.unlink(missing_ok=True)
    return target


def read_state_dict(path: Path) -> dict[str, Tensor]:
    """Read a state dict from a file of ``torch.save``, without running code from it.

    Args:
        path: The file; a ``state_dict`` or ``model`` entry and a ``module.`` prefix are looked through.

    Raises:
        CxlpError: If the file is missing, unreadable, or holds no tensors.
    """
    if not path.is_file():
        near = [p.name for p in path.parent.glob("*") if p.is_file()] if path.parent.is_dir() else []
        hint = did_you_mean(path.name, near) if near else f"There is no folder {path.parent}."
        raise CxlpError(f"weights file not found: {path}. {hint}")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch.load raises many kinds, from UnpicklingError to EOFError
        raise CxlpError(f"{path} is not a readable weights file (torch.save of a state dict): {error}") from error
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
    wanted, known = kept.state_dict(), whole.state_dict()
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
            "local file (--model.network.backbone.weights FILE), random weights (... null), or use "
            "--config efficientnet_lite0.yaml, whose weights come with pip"
        ) from error
