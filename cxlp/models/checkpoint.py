"""Read a checkpoint, and build the network that it describes."""

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
    """Read a checkpoint of a run, without executing code from the file.

    Building the network from the checkpoint can execute code, see :func:`load_network`.

    Args:
        path: The checkpoint file, or the folder of a run, whose ``checkpoints/best.ckpt`` is read.

    Raises:
        CxlpError: If the file is missing or not a checkpoint of cxlp.
    """
    path = find_checkpoint(path)
    try:
        checkpoint: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        _ = checkpoint["cxlp"]["network"]["heads"], "".join(checkpoint["state_dict"].keys())
    except Exception as error:  # torch.load raises many types, from UnpicklingError to EOFError
        # Only the type: torch's message suggests to disable weights_only, which protects against code in the file.
        raise CxlpError(f"{path} is not a checkpoint of cxlp ({type(error).__name__})") from error
    return checkpoint


def load_network(path: str | Path, backbone: Backbone | nn.Module | None = None) -> Network:
    """Build the network of a checkpoint, in evaluation mode.

    The checkpoint alone is enough. It contains no code, but heads and backbones that it names by import path are
    imported and called: load only checkpoints that you trust.

    Args:
        path: A checkpoint of a run.
        backbone: A network of the same architecture as the checkpoint's. Only needed if that backbone was built from an
            ``nn.Module`` and therefore has no name.

    Raises:
        CxlpError: If the file is missing or not a checkpoint of cxlp, or the network cannot be built.
    """
    return network_of(read_checkpoint(path), backbone, str(path))


def network_of(
    checkpoint: dict[str, Any], backbone: Backbone | nn.Module | None = None, source: str = "the checkpoint"
) -> Network:
    """Build the network of a checkpoint returned by :func:`read_checkpoint`, see :func:`load_network`."""
    network = network_from_spec(checkpoint["cxlp"]["network"], backbone, source)
    load_weights(network, checkpoint, source)
    return network.eval()


def network_from_spec(
    spec: Mapping[str, Any], backbone: Backbone | nn.Module | None = None, source: str = "the network's description"
) -> Network:
    """Build a network from its specification, with random weights.

    Args:
        spec: Result of :meth:`Network.spec`. Users' classes that it names by import path are imported.
        backbone: The backbone, or the network to cut. Needed if the backbone was built from an ``nn.Module`` and
            therefore has no name.
        source: Name of the specification for error messages.

    Raises:
        CxlpError: If the network cannot be built, or the given backbone does not match the specification.
    """
    try:
        return _build(spec, backbone)
    except (TypeError, ValueError, KeyError, IndexError, AttributeError, RuntimeError) as error:
        # Values of the wrong type or structure raise errors in many different places.
        said = " ".join(str(error).split())[:400]
        raise CxlpError(f"{source} is broken, its network cannot be built: {said} ({type(error).__name__})") from error


def _build(spec: Mapping[str, Any], backbone: Backbone | nn.Module | None) -> Network:
    arguments = {**spec["backbone"], "weights": None}  # the checkpoint has the weights: nothing is downloaded
    if backbone is None and spec["registered_by"] is not None:
        register(arguments["name"], spec["registered_by"])
    if backbone is None and arguments["name"] is None:
        raise CxlpError(
            "the network's backbone was built from an nn.Module, which is not part of the checkpoint: pass a module of "
            "the same architecture as the argument backbone of cxlp.load or cxlp.load_network, or a network that "
            "contains it as the argument network of load_from_checkpoint"
        )
    if isinstance(backbone, Backbone):
        backbone = backbone.narrowed(arguments["layers"])
        _check_same(backbone, arguments)
    elif backbone is None:
        backbone = Backbone(**arguments)
    else:
        # A module has no preprocessing: use the preprocessing of the saved name, if there is a name.
        known = {} if arguments["name"] is None else preprocessing(arguments)
        backbone = Backbone(**{**arguments, **known, "name": backbone})
    return Network(
        backbone,
        [Head.from_spec(head) for head in spec["heads"]],
        spec["classes"] or None,  # without classes, there is no classifier
        spec["multi_label"],
        Views(**spec["test_views"]),
    )


def load_weights(network: Network, checkpoint: dict[str, Any], source: str) -> None:
    """Load the weights of a checkpoint returned by :func:`read_checkpoint` into a network.

    Args:
        network: A network that is built like the checkpoint's network.
        checkpoint: A checkpoint of either task.
        source: Name of the checkpoint for error messages.

    Raises:
        CxlpError: If the weights belong to another network, or are not finite.
    """
    prefix = "network."
    state = {k.removeprefix(prefix): v for k, v in checkpoint["state_dict"].items() if k.startswith(prefix)}
    # Values that are not tensors: load_state_dict rejects them, except for the extra state of modules.
    check_values({k: v for k, v in state.items() if isinstance(v, Tensor)}, network.state_dict(), source)
    try:
        network.load_state_dict(state)
    except RuntimeError as error:
        said = " ".join(str(error).split())
        raise CxlpError(f"{source} has the weights of another network than it describes: {said[:400]}") from error


def _check_same(backbone: Backbone, spec: Mapping[str, Any]) -> None:
    """Raise :class:`CxlpError` if a backbone does not match its specification."""
    own = backbone.spec()
    found, wanted = ({**each, **preprocessing(each)} for each in (own, spec))
    for key in ("layers", "activation", "image_size", "mean", "std"):
        if found[key] != wanted[key]:
            raise CxlpError(
                f"the backbone's {key} is {found[key]}, but the saved network's is {wanted[key]}: pass a backbone that "
                "was built with the same arguments"
            )
