"""Locks among processes, on one machine or on several that share a disk.

``filelock`` takes them by ``flock``: such a lock ends with its process, however that ends, and holds between containers
and machines. A forked loader worker does not keep it for the seconds by which it outlives a killed run, since
``filelock`` closes the worker's copies.
"""

import shutil
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryFile

from filelock import BaseFileLock, FileLock, Timeout

from cxlp.utils.errors import CxlpError
from cxlp.utils.progress import say

_HELD: list[BaseFileLock] = []  # a lock that nobody refers to is released


@contextmanager
def locked(path: Path, what: str) -> Iterator[None]:
    """Be the only process that works on something; wait for another one that does.

    Args:
        path: The lock file; its folder is made, and it is deleted in the end.
        what: What is worked on, to tell the user what is waited for.

    Raises:
        CxlpError: If nothing can be written or locked there.
    """
    try:
        lock = _take(path, blocking=False)
    except Timeout:
        say(f"Another process fetches {what}: waiting for it", sys.stderr)
        lock = _take(path, blocking=True)
    try:
        yield
    finally:
        let_go(lock)


def hold(folder: Path) -> BaseFileLock:
    """Keep a folder for this process, until :func:`let_go` or its end.

    Returns:
        What to give to :func:`let_go`, if only this folder is to be let go.

    Raises:
        CxlpError: If another process has it: two would overwrite each other's files.
    """
    return _hold(folder / ".lock")


def is_held(folder: Path) -> bool:
    """Whether another process keeps a folder."""
    if not (folder / ".lock").is_file():
        return False
    try:
        let_go(hold(folder))
    except CxlpError as error:
        return isinstance(error.__cause__, Timeout)  # else it cannot be written there
    return False


def hold_part(part: Path) -> BaseFileLock:
    """:func:`hold` a file or folder that is about to be made, by a file beside it, so that it never lies there free."""
    return _hold(part.with_suffix(".lock"))


def delete_abandoned(parts: Iterable[Path]) -> list[Path]:
    """Delete the parts that no process holds any longer; return those that one does, or that cannot be locked."""
    left = []
    for part in parts:
        try:
            lock = hold_part(part)
        except CxlpError:
            left.append(part)
            continue
        if part.is_dir():
            shutil.rmtree(part, ignore_errors=True)
        else:
            part.unlink(missing_ok=True)
        let_go(lock)
    return left


def let_go(lock: BaseFileLock | None) -> None:
    """Release a lock, unless that is done, and delete its file."""
    if lock not in _HELD:
        return
    _HELD.remove(lock)
    # Deleted while it is held: who waits sees that the old file has no name any more. On Windows filelock does it.
    if lock.is_locked and sys.platform != "win32":
        Path(lock.lock_file).unlink(missing_ok=True)
    lock.release()


def let_go_all() -> None:
    """Release all that this process holds."""
    while _HELD:
        let_go(_HELD[-1])


def _hold(path: Path) -> BaseFileLock:
    try:
        return _take(path, blocking=False)
    except Timeout as error:
        raise CxlpError(f"another process is working in {path.parent}: wait for it, or stop it") from error


def _take(path: Path, blocking: bool) -> BaseFileLock:
    lock = FileLock(path, thread_local=False)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with TemporaryFile(dir=path.parent):  # where no file can be made, filelock would try for ever
            pass
        lock.acquire(blocking=blocking)
    except Timeout:  # an OSError, too
        raise
    except OSError as error:
        raise CxlpError(f"cannot write into {path.parent}, or not lock files there: {error.strerror}") from error
    _HELD.append(lock)
    return lock
