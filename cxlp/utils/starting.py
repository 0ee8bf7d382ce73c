"""Detection of processes that fail while the ranks of a run start and wait for each other."""

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
    """Context in which this process ends if another rank fails before the rendezvous of all ranks.

    Without it, this process would wait for the failed process, in a call that no signal interrupts, until the launcher
    kills it.

    Args:
        launched: Function that returns the launcher's list of processes, which is empty before they are started.
        tidy: Function that is called before this process ends.

    Yields:
        An event that the caller sets after the rendezvous. Later failures are detected by the collectives.
    """
    have_met = Event()

    def watch() -> None:
        while not have_met.wait(0.5):
            processes = launched()
            if any(process.poll() for process in processes):
                processes.clear()  # so that the launcher does not kill this process before it ends
                tidy()
                print(f"error: {STOPPED}", file=sys.stderr, flush=True)  # noqa: T201
                os._exit(2)

    threading.Thread(target=watch, daemon=True).start()
    try:
        yield have_met
    finally:
        have_met.set()
