"""Reading a checkpoint, and the network in it."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from cxlp.backbones.backbone import Backbone
from cxlp.backbones.library import preprocessing, register
from cxlp.backbones.weights import check_values
from cxlp.heads.base import Head
from cxlp.heads.views import Views
from cxlp.models.network import Network
from cxlp.utils.errors import CxlpError
from cxlp.utils.files import find_checkpoint


def read_checkpoint(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read a checkpoint that a run wrote, without running code; building the network in it may, see below.

    Args:
        path: The file, or the folder of a run, whose ``checkpoints/best.ckpt`` is meant.

    Raises:
        CxlpError: If the file is missing or not a checkpoint of cxlp.
    """
    path = find_checkpoint(path)
    try:
        checkpoint: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        _ = checkpoint["cxlp"]["network"]["heads"], "".join(checkpoint["state_dict"].keys())
    except Exception as error:  # torch.load raises many kinds, from UnpicklingError to EOFError
        # Only its kind: the message advises to load the file without the protection against code in it.
        raise CxlpError(f"{path} is not a checkpoint of cxlp ({type(error).__name__})") from error
    return checkpoint


def load_network(path: str | Path, backbone: Backbone | nn.Module | None = None) -> Network:
    """Build the network of a checkpoint, in evaluation mode.

    Nothing else is needed. The file holds no code, but heads and backbones that it names by import path are imported
    and called: load only checkpoints that you trust.

    Args:
        path: A checkpoint that a run wrote.
        backbone: A network like the one that was cut, where that was an ``nn.Module`` without a name.

    Raises:
        CxlpError: If the file is missing or not a checkpoint of cxlp, or the network cannot be built again.
    """
    return network_of(read_checkpoint(path), backbone, str(path))


def network_of(
    checkpoint: dict[str, Any], backbone: Backbone | nn.Module | None = None, source: str = "the checkpoint"
) -> Network:
    """Build the network of a checkpoint that :func:`read_checkpoint` has read, see :func:`load_network`."""
    network = network_from_spec(checkpoint["cxlp"]["network"], backbone, source)
    load_weights(network, checkpoint, source)
    return network.eval()


def network_from_spec(
    spec: Mapping[str, Any], backbone: Backbone | nn.Module | None = None, source: str = "the network's description"
) -> Network:
    """Build a network again, with random weights.

    Args:
        spec: What :meth:`Network.spec` gave. Modules that it names by import path, a user's own, are imported.
        backbone: The network to cut, or the backbone, where it was made of an ``nn.Module`` that has no name.
        source: What to call it in the error.

    Raises:
        CxlpError: If it cannot be built again, or the backbone is described otherwise.
    """
    try:
        return _build(spec, backbone)
    except (TypeError, ValueError, KeyError, IndexError, AttributeError, RuntimeError) as error:
        # Values of another kind than a network writes, each of which would be found somewhere else.
        said = " ".join(str(error).split())[:400]
        raise CxlpError(f"{source} is broken, its network cannot be built: {said} ({type(error).__name__})") from error


def _build(spec: Mapping[str, Any], backbone: Backbone | nn.Module | None) -> Network:
    arguments = {**spec["backbone"], "weights": None}  # they come from the checkpoint: nothing is downloaded
    if backbone is None and spec["registered_by"] is not None:
        register(arguments["name"], spec["registered_by"])
    if backbone is None and arguments["name"] is None:
        raise CxlpError(
            "the network's backbone was made of an nn.Module, which a checkpoint does not hold: give one of the "
            "same kind as the argument backbone of cxlp.load or cxlp.load_network, or a network with it as the "
            "argument network of load_from_checkpoint"
        )
    if isinstance(backbone, Backbone):
        backbone = backbone.narrowed(arguments["layers"])
        _check_same(backbone, arguments)
    elif backbone is None:
        backbone = Backbone(**arguments)
    else:
        # What the saved name stood for, if there was one, is not known of a module.
        known = {} if arguments["name"] is None else preprocessing(arguments)
        backbone = Backbone(**{**arguments, **known, "name": backbone})
    return Network(
        backbone,
        [Head.from_spec(head) for head in spec["heads"]],
        spec["classes"] or None,  # no classes yet: no classifier either
        spec["multi_label"],
        Views(**spec["test_views"]),
    )


def load_weights(network: Network, checkpoint: dict[str, Any], source: str) -> None:
    """Give a network the weights of a checkpoint that :func:`read_checkpoint` has read.

    Args:
        network: Built as the checkpoint's was.
        checkpoint: A checkpoint of either task.
        source: What to call it in the error.

    Raises:
        CxlpError: If it holds another network, or numbers that are not finite.
    """
    prefix = "network."
    state = {k.removeprefix(prefix): v for k, v in checkpoint["state_dict"].items() if k.startswith(prefix)}
    # What is no tensor, load_state_dict names, unless it is a module's own extra state.
    check_values({k: v for k, v in state.items() if isinstance(v, Tensor)}, network.state_dict(), source)
    try:
        network.load_state_dict(state)
    except RuntimeError as error:
        said = " ".join(str(error).split())
        raise CxlpError(f"{source} holds another network than the one described: {said[:400]}") from error


def _check_same(backbone: Backbone, spec: Mapping[str, Any]) -> None:
    """Refuse a backbone that differs from the one described: its maps would be others than the heads were fitted to."""
    own = backbone.spec()
    found, wanted = ({**each, **preprocessing(each)} for each in (own, spec))
    for key in ("layers", "activation", "image_size", "mean", "std"):
        if found[key] != wanted[key]:
            raise CxlpError(
                f"the backbone's {key} is {found[key]}, but that of the network which was saved is {wanted[key]}: give "
                "a backbone made with the same arguments"
            )
