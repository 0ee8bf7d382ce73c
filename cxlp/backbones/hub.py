"""Pretrained weights from hubs, and a plain word soon where there is no network."""

import os
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from urllib.parse import urlparse
from urllib.request import getproxies

from torch import nn

from cxlp.utils.errors import CxlpError

#: Seconds that a hub's server has to answer.
PATIENCE = 5.0
_HINT = (
    "Offline? Give a local FILE as the backbone's weights, null for random ones, or use --config "
    "efficientnet_lite0.yaml, whose weights come with pip"
)


def pretrained(load: Callable[[], nn.Module], name: str, hugging_face: bool = False) -> nn.Module:
    """Call a hub's loader, and explain what to do where there is no network.

    Args:
        load: The loader.
        name: The network's name.
        hugging_face: Whether it is Hugging Face's. Where its server does not answer within :data:`PATIENCE`, its
            library is told to look into its cache only: by itself it tries again for a minute.

    Raises:
        CxlpError: If the loader fails for want of a network.
    """
    with _offline_where_unreachable() if hugging_face else nullcontext("") as unreachable:
        try:
            return load()
        except Exception as error:  # hubs raise their own kinds, from URLError to LocalEntryNotFoundError
            why = f"{type(error).__name__}: {str(error)[:200]}."
            if unreachable and type(error).__name__ == "LocalEntryNotFoundError":
                why = f"{unreachable} cannot be reached, and the cache does not hold them."
            raise CxlpError(f"cannot get the pretrained weights of {name}: {why} {_HINT}") from error


@contextmanager
def _offline_where_unreachable() -> Iterator[str]:
    """Have Hugging Face's library stay offline if its server cannot be reached; gives the server's name if so."""
    from huggingface_hub import constants

    server = urlparse(constants.ENDPOINT).hostname or ""
    if constants.HF_HUB_OFFLINE or answers(constants.ENDPOINT):
        yield ""
        return
    constants.HF_HUB_OFFLINE = True
    try:
        yield server
    finally:
        constants.HF_HUB_OFFLINE = False


def answers(url: str, patience: float | None = None) -> bool:
    """Whether a server takes a connection; taken for granted where a proxy stands between.

    Args:
        url: Of the server.
        patience: Seconds that it has; ``None``: :data:`PATIENCE`.
    """
    place, patience = urlparse(url), PATIENCE if patience is None else patience
    if place.scheme in getproxies() or os.environ.get("ALL_PROXY"):
        return True
    found: list[bool] = []

    def connect() -> None:
        port = place.port or (443 if place.scheme == "https" else 80)
        with suppress(OSError), socket.create_connection((place.hostname or "", port), timeout=patience):
            found.append(True)

    # In a thread: to look up a name has no timeout.
    thread = threading.Thread(target=connect, daemon=True)
    thread.start()
    thread.join(patience)
    return bool(found)
