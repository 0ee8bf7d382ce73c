"""Reading a checkpoint, and the network in it."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from cxlp.models.network import Network, NetworkConfig
from cxlp.utils.errors import CxlpError


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """Read a checkpoint that a run wrote, without running code from it.

    Raises:
        CxlpError: If the file is missing or not a checkpoint of cxlp.
    """
    if not Path(path).is_file():
        raise CxlpError(f"checkpoint not found: {path}")
    try:
        checkpoint: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        _ = checkpoint["cxlp"]["network"]["config"]
    except Exception as error:  # torch.load raises many kinds, from UnpicklingError to EOFError
        # Only its kind: the message advises to load the file without the protection against code in it.
        raise CxlpError(f"{path} is not a checkpoint of cxlp ({type(error).__name__})") from error
    if "also" not in checkpoint["cxlp"]["network"]["config"]:
        raise CxlpError(f"{path} was written by an earlier cxlp, whose networks were built otherwise: run it again")
    return checkpoint


def load_network(path: str | Path) -> Network:
    """Build the network of a checkpoint, in evaluation mode; nothing else is needed, no code is run.

    Args:
        path: A checkpoint that a run wrote.

    Raises:
        CxlpError: If the file is missing or not a checkpoint of cxlp.
    """
    return network_of(read_checkpoint(path))


def network_of(checkpoint: dict[str, Any]) -> Network:
    """Build the network of a checkpoint that :func:`read_checkpoint` has read, in evaluation mode."""
    spec = checkpoint["cxlp"]["network"]
    config = NetworkConfig.from_values(spec["config"])
    # The weights come from the checkpoint: nothing is downloaded.
    config = replace(config, backbone=replace(config.backbone, weights=None))
    network = Network(config, spec["classes"] or None, spec["multi_label"])  # no classes yet: no classifier either
    prefix = "network."
    state = {k.removeprefix(prefix): v for k, v in checkpoint["state_dict"].items() if k.startswith(prefix)}
    network.load_state_dict(state)
    return network.eval()


def load_weights(network: Network, checkpoint: dict[str, Any], source: str) -> None:
    """Give a network the weights of a checkpoint that :func:`read_checkpoint` has read.

    Args:
        network: Built as the checkpoint's was.
        checkpoint: Of either task.
        source: What to call it in the error.

    Raises:
        CxlpError: If it holds another network.
    """
    prefix = "network."
    state = {k.removeprefix(prefix): v for k, v in checkpoint["state_dict"].items() if k.startswith(prefix)}
    try:
        network.load_state_dict(state)
    except RuntimeError as error:
        raise CxlpError(f"{source} holds another network than the model's keys describe: {error}") from error
