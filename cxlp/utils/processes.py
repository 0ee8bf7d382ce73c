"""Termination of processes: by signals, after their parent, and together with their children."""

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

#: Error message of a process that ends because another process has failed.
STOPPED = "another process of this run has stopped: see its message"
#: Seconds for the cleanup of a process that ends because another process has failed.
GRACE = 10.0
#: Seconds for the cleanup of a process after a signal, equal to the time after which Kubernetes and Slurm kill.
GRACE_AFTER_SIGNAL = 30.0

#: Signals that ask a process to end: Ctrl-C, a supervisor (docker stop, scancel, kill), a closed terminal.
_SIGNALS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]
#: Child processes that end together with this process.
_STARTED: list[subprocess.Popen[Any]] = []
#: Launchers' lists of child processes. A launcher kills this process if a process in its list fails.
_LAUNCHED: list[list[subprocess.Popen[Any]]] = []
#: File descriptors that signal numbers are written to within :func:`raising_on_signals`.
_WATCHED: list[int] = []
#: Environment variable with the process id of the process that waits for a run.
_PARENT = "CXLP_PARENT"


class Ended(KeyboardInterrupt):
    """Raised when a signal asks this process to end. Libraries clean up as they do after Ctrl-C.

    Args:
        number: Signal number.
    """

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


@contextmanager
def raising_on_signals() -> Iterator[None]:
    """Context in which SIGINT, SIGTERM and SIGHUP raise :class:`Ended` in the main thread.

    SIGINT does so even in a background job of a shell, where it would be ignored. SIGHUP remains ignored if it was
    ignored before, as by ``nohup``. A second signal ends the process at once, unless it arrives within a second, since
    supervisors signal both a process and its group. After SIGTERM or SIGHUP, the process also ends after
    :data:`GRACE_AFTER_SIGNAL` seconds if the main thread has not returned to Python or finished its cleanup. There is
    no such limit after Ctrl-C, which the user can press again. In forked processes, such as loader workers, a signal
    ends that process silently.
    """
    if threading.current_thread() is not threading.main_thread():  # other threads cannot set handlers
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
            if handler is not None:  # None: not set by Python
                signal.signal(number, handler)
        if (present := signal.set_wakeup_fd(others)) != _WATCHED.pop():
            signal.set_wakeup_fd(present)
        if os.getpid() == own:
            writing.shutdown(socket.SHUT_RDWR)  # close() is not enough, since forked processes may have copies
            watcher.join()
        reading.close()
        writing.close()


@contextmanager
def keeping_handlers() -> Iterator[None]:
    """Context that restores the signal handlers of its caller, such as a notebook, at its end."""
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
    """Detach a forked process from the parent's socket, so that its signals do not affect the parent."""
    if _WATCHED:
        signal.set_wakeup_fd(-1)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_leave_watched)


def _watch(received: socket.socket) -> None:
    """End this process after a second signal, or some time after the first signal.

    Python writes each signal number to the socket immediately. The handler in Python, in contrast, waits for the main
    thread, which may be waiting for other ranks in a collective or a rendezvous.
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
        print(f"error: the cleanup after {signal.Signals(number).name} took too long", file=sys.stderr, flush=True)  # noqa: T201
        os._exit(128 + number)


def _forget_workers() -> None:
    """Reset SIGCHLD, so that loaders do not raise an error in this process for each worker that ends."""
    if hasattr(signal, "SIGCHLD") and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)


def exit_status_of(error: BaseException, outer: BaseException | None = None) -> tuple[int, str] | None:
    """Return the exit status and message for an exception that was caused by a signal or Ctrl-C.

    Args:
        error: The exception, which may have been raised during cleanup: Lightning converts Ctrl-C to ``SystemExit``.
        outer: The exception that was being handled when the work started, which is unrelated to ``error``.

    Returns:
        The exit status, 128 plus the signal number as in shells, and a message; ``None`` if no signal was the cause.
    """
    behind: BaseException | None = error
    while behind is not None and behind is not outer and not isinstance(behind, KeyboardInterrupt):
        behind = behind.__context__
    if behind is None or behind is outer:
        return None
    _forget_workers()  # a Trainer restores the earlier handlers at its end
    _end(_STARTED, GRACE_AFTER_SIGNAL / 10)  # child processes may be waiting for this process
    number = behind.number if isinstance(behind, Ended) else signal.SIGINT
    return 128 + number, "interrupted" if number == signal.SIGINT else f"stopped by {signal.Signals(number).name}"


def leave_soon(status: int, said: str = "") -> None:
    """End this process after :data:`GRACE` seconds at the latest.

    Other ranks notice a failure only when the process has ended: then its connections are closed, and its launcher ends
    the other ranks. A normal exit may wait forever, because NCCL waits for ranks that wait for this process.

    Args:
        status: Exit status.
        said: Message that is printed if the process does not exit by itself.
    """
    # The other ranks fail because of this process. Its launcher must not kill it for that and change its exit status.
    for launched in _LAUNCHED:
        launched.clear()

    def leave() -> None:
        time.sleep(GRACE)
        if said:
            print(f"error: {said}", file=sys.stderr, flush=True)  # noqa: T201
        os._exit(status)

    threading.Thread(target=leave, daemon=True).start()


def run_to_end(command: Sequence[str], output: IO[str], environment: dict[str, str]) -> int:
    """Run a command and wait for it. If this process is interrupted or fails, the command is ended first.

    Args:
        command: The command. It must call :func:`leave_with_parent`, so that it ends even if this process is killed.
        output: File for the command's standard output.
        environment: Environment variables of the command.

    Returns:
        Exit status of the command.
    """
    process = subprocess.Popen(command, stdout=output, env={**environment, _PARENT: str(os.getpid())})
    try:
        return process.wait()
    except BaseException:
        _end([process], GRACE_AFTER_SIGNAL)
        raise


def end_together(processes: list[subprocess.Popen[Any]]) -> None:
    """Register processes of a launcher, which are ended first if a signal ends this process.

    Args:
        processes: The launcher's list itself, not a copy, since :func:`leave_soon` clears it.
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
    """Return whether this process was started by another process of cxlp, which prints messages for it."""
    return _PARENT in os.environ or os.environ.get("LOCAL_RANK", "0") != "0"


def leave_with_parent(poll: float = 1.0) -> bool:
    """End this process soon after its parent, if that is :func:`run_to_end` or rank 0 of this run.

    Lightning's launcher ends rank 0 if another rank fails, but the other ranks continue if rank 0 fails. With gloo,
    their collectives fail. With NCCL, they would wait for its timeout of half an hour.

    Returns:
        Whether there is such a parent, which prints messages for this process.
    """
    is_rank = int(os.environ.get("LOCAL_RANK", 0)) > 0
    waiting = os.environ.pop(_PARENT, None)  # removed, so that child processes do not inherit it
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
