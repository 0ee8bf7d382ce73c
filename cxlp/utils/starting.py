"""The start of several processes that wait for each other, and one of which may fail."""

import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import Event
from typing import Any

from cxlp.utils.processes import STOPPED


@contextmanager
def watching_start(launched: Callable[[], list[subprocess.Popen[Any]]], tidy: Callable[[], None]) -> Iterator[Event]:
    """End this process inside a ``with`` if one that its launcher has started fails before all of them have met.

    This process would wait for it, in a call that no signal interrupts, until the launcher kills it.

    Args:
        launched: The launcher's own list, empty until it has started them.
        tidy: Called before the end.

    Yields:
        To be set when all have met: what fails later, the others learn by their collectives.
    """
    have_met = Event()

    def watch() -> None:
        while not have_met.wait(0.5):
            processes = launched()
            if any(process.poll() for process in processes):
                processes.clear()  # so that the launcher does not kill this process meanwhile
                tidy()
                print(f"error: {STOPPED}", file=sys.stderr, flush=True)  # noqa: T201
                os._exit(2)

    threading.Thread(target=watch, daemon=True).start()
    try:
        yield have_met
    finally:
        have_met.set()
