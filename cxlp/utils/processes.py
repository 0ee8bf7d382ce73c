"""How processes end: by signals, after the process that started them, and with those that they have started."""

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import IO, Any

#: What a process says that ends because of another one.
STOPPED = "another process of this run has stopped: see its message"
#: Seconds that a process which must end because of another one has for an orderly end.
GRACE = 10.0
#: Seconds that a process has for it after a signal: as many as Kubernetes and Slurm wait before they kill.
GRACE_AFTER_SIGNAL = 30.0

#: The signals that ask a process to end: Ctrl-C, a supervisor's (docker stop, scancel, kill), a closed terminal's.
_SIGNALS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]
#: Processes that end with this one.
_STARTED: list[subprocess.Popen[Any]] = []
#: The lists of them that a launcher watches, which kills this process where one of them has failed.
_LAUNCHED: list[list[subprocess.Popen[Any]]] = []
#: Within :func:`raising_on_signals`: what signals are written into.
_WATCHED: list[int] = []
#: The environment variable that tells a run which process waits for it.
_PARENT = "CXLP_PARENT"


class Ended(KeyboardInterrupt):
    """A signal has asked this process to end. Other libraries tidy up after it as they do after Ctrl-C.

    Args:
        number: The signal's.
    """

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


@contextmanager
def raising_on_signals() -> Iterator[None]:
    """Have SIGINT, SIGTERM and SIGHUP raise :class:`Ended` in the main thread, inside a ``with``.

    SIGINT does so also in a job that a shell has started in the background, which would ignore it. SIGHUP stays ignored
    where it is, which is what ``nohup`` is for. A second signal ends the process at once, unless it comes within a
    second: supervisors signal a process and its group. So does the first one, after :data:`GRACE_AFTER_SIGNAL`, where
    the main thread does not come back to Python, or takes so long to tidy up (after Ctrl-C, somebody is there to press
    it again). In a forked process (a loader's worker) they end that one silently.
    """
    if threading.current_thread() is not threading.main_thread():  # only there can handlers be set
        yield
        return
    own, told = os.getpid(), False

    def handle(number: int, frame: FrameType | None) -> None:
        nonlocal told
        if os.getpid() != own:
            os._exit(128 + number)
        if not told:
            told = True
            _forget_workers()
            raise Ended(number)

    reading, writing = socket.socketpair()
    writing.setblocking(False)
    watcher = threading.Thread(target=_watch, args=(reading,), daemon=True)
    watcher.start()
    others = signal.set_wakeup_fd(writing.fileno(), warn_on_full_buffer=False)
    _WATCHED.append(writing.fileno())
    earlier = {}
    for number in _SIGNALS:
        if number == signal.SIGINT or signal.getsignal(number) is not signal.SIG_IGN:
            earlier[number] = signal.signal(number, handle)
    try:
        yield
    finally:
        for number, handler in earlier.items():
            if handler is not None:  # set by something other than Python
                signal.signal(number, handler)
        if (present := signal.set_wakeup_fd(others)) != _WATCHED.pop():
            signal.set_wakeup_fd(present)
        if os.getpid() == own:
            writing.shutdown(socket.SHUT_RDWR)  # to close it is not enough: forked processes may hold it, too
            watcher.join()
        reading.close()
        writing.close()


@contextmanager
def keeping_handlers() -> Iterator[None]:
    """Put the handlers of signals back that were there before a ``with``: they are the caller's, as in a notebook."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    numbers = [*_SIGNALS, *([signal.SIGCHLD] if hasattr(signal, "SIGCHLD") else [])]
    earlier = {number: signal.getsignal(number) for number in numbers}
    try:
        yield
    finally:
        for number, handler in earlier.items():
            if handler is not None and signal.getsignal(number) is not handler:
                signal.signal(number, handler)


def _leave_watched() -> None:
    """Have a forked process's own signals end that process only."""
    if _WATCHED:
        signal.set_wakeup_fd(-1)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_leave_watched)


def _watch(received: socket.socket) -> None:
    """End this process after a second signal, or some time after the first one, until the socket is shut down.

    Python writes each signal's number into the socket as it comes: its handler waits for the main thread, which may be
    in a collective, or in the rendezvous before it, for peers that do not come.
    """
    number, since = 0, 0.0
    try:
        for (new,) in iter(lambda: received.recv(1), b""):
            now = time.monotonic()
            if number and new in _SIGNALS and now - since > 1:
                os._exit(128 + new)
            if not number and new in _SIGNALS:
                number, since = new, now
                received.settimeout(None if number == signal.SIGINT else GRACE_AFTER_SIGNAL)
    except TimeoutError:
        print(f"error: the end after {signal.Signals(number).name} took too long", file=sys.stderr, flush=True)  # noqa: T201
        os._exit(128 + number)


def _forget_workers() -> None:
    """Keep loaders from raising an error, in the middle of whatever this process does, for each worker that ends."""
    if hasattr(signal, "SIGCHLD") and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)


def how_ended(error: BaseException, outer: BaseException | None = None) -> tuple[int, str] | None:
    """Tell how an exception ends this process if a signal, or Ctrl-C, is behind it.

    Args:
        error: What was raised, perhaps while the process tidied up: Lightning makes a ``SystemExit`` of Ctrl-C.
        outer: What was being handled when the work began, and has nothing to do with its end.

    Returns:
        The exit status, 128 and the signal's number as shells have it, and what to tell; ``None``: no signal was.
    """
    behind: BaseException | None = error
    while behind is not None and behind is not outer and not isinstance(behind, KeyboardInterrupt):
        behind = behind.__context__
    if behind is None or behind is outer:
        return None
    _forget_workers()  # a Trainer that ends puts the handlers back that it has found
    _end(_STARTED, GRACE_AFTER_SIGNAL / 10)  # they may wait for this process
    number = behind.number if isinstance(behind, Ended) else signal.SIGINT
    return 128 + number, "interrupted" if number == signal.SIGINT else f"stopped by {signal.Signals(number).name}"


def leave_soon(status: int, said: str = "") -> None:
    """End this process after :data:`GRACE` seconds, whatever it is waiting for then.

    Peers learn that a process has failed when it is gone: its connections are closed, and its launcher ends the others.
    An orderly end can wait forever, though: NCCL's waits for peers which wait for this process.

    Args:
        status: The exit status.
        said: What is printed if the end was not orderly.
    """
    # The peers fail because of this process: its launcher must not kill it for that, and its exit status with it.
    for launched in _LAUNCHED:
        launched.clear()

    def leave() -> None:
        time.sleep(GRACE)
        if said:
            print(f"error: {said}", file=sys.stderr, flush=True)  # noqa: T201
        os._exit(status)

    threading.Thread(target=leave, daemon=True).start()


def run_to_end(command: Sequence[str], output: IO[str], environment: dict[str, str]) -> int:
    """Run a command and wait for its end; if this process is told to end, or fails, the command ends before it.

    Args:
        command: What :func:`leave_with_parent` is called in, so that it ends even after this process was killed.
        output: Takes what it prints, except errors.
        environment: Its environment.

    Returns:
        Its exit status.
    """
    process = subprocess.Popen(command, stdout=output, env={**environment, _PARENT: str(os.getpid())})
    try:
        return process.wait()
    except BaseException:
        _end([process], GRACE_AFTER_SIGNAL)
        raise


def end_together(processes: list[subprocess.Popen[Any]]) -> None:
    """Have processes that a launcher has started end before this one, when a signal ends it.

    Args:
        processes: The launcher's own list: :func:`leave_soon` takes them out of it.
    """
    _STARTED.extend(process for process in processes if process not in _STARTED)
    if processes and not any(processes is launched for launched in _LAUNCHED):
        _LAUNCHED.append(processes)


def _end(processes: Sequence[subprocess.Popen[Any]], grace: float) -> None:
    for process in processes:
        process.terminate()
    deadline = time.monotonic() + grace
    for process in processes:
        try:
            process.wait(timeout=max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def is_waited_for() -> bool:
    """Whether another process, which speaks for it, has started this one."""
    return _PARENT in os.environ or os.environ.get("LOCAL_RANK", "0") != "0"


def leave_with_parent(poll: float = 1.0) -> bool:
    """End this process soon after the one that started it, if that was :func:`run_to_end` or rank 0 of this run.

    Lightning's launcher ends rank 0 when another rank fails, but nobody ends the others when rank 0 does. Under gloo
    their collectives fail; under NCCL they would wait for its timeout, half an hour.

    Returns:
        Whether such a process waits for this one, and speaks for it.
    """
    is_rank = int(os.environ.get("LOCAL_RANK", 0)) > 0
    waiting = os.environ.pop(_PARENT, None)  # not for processes that this one starts
    if not is_rank and waiting is None:
        return False
    parent = os.getppid() if waiting is None or is_rank else int(waiting)

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(poll)
        if is_rank:
            leave_soon(2, STOPPED)
        else:
            os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, daemon=True).start()
    return True
