"""Locks between processes, on one machine or on several machines with a shared disk.

``filelock`` uses ``flock``. Such a lock is released when its process ends for any reason, and works between containers
and machines. Forked loader workers, which outlive a killed run for some seconds, do not keep its locks, since
``filelock`` closes their copies.
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

_HELD: list[BaseFileLock] = []  # keeps references, since a lock without references is released


@contextmanager
def locked(path: Path, what: str) -> Iterator[None]:
    """Context with an exclusive lock, which waits for another process that has the lock.

    Args:
        path: Path of the lock file. Its folder is created, and the file is deleted at the end.
        what: Name of the file that is downloaded, for the message while waiting.

    Raises:
        CxlpError: If the lock file cannot be written or locked.
    """
    try:
        lock = _take(path, blocking=False)
    except Timeout:
        say(f"Another process is downloading {what}: waiting for it", sys.stderr)
        lock = _take(path, blocking=True)
    try:
        yield
    finally:
        release_lock(lock)


def hold(folder: Path) -> BaseFileLock:
    """Lock a folder for this process, until :func:`release_lock` or the end of the process.

    Returns:
        The lock, for :func:`release_lock`.

    Raises:
        CxlpError: If another process has locked the folder. Two processes would overwrite each other's files.
    """
    return _hold(folder / ".lock")


def is_held(folder: Path) -> bool:
    """Return whether another process has locked a folder."""
    if not (folder / ".lock").is_file():
        return False
    try:
        release_lock(hold(folder))
    except CxlpError as error:
        return isinstance(error.__cause__, Timeout)  # otherwise the folder is not writable
    return False


def hold_part(part: Path) -> BaseFileLock:
    """Lock a file or folder before it is created, with a lock file next to it."""
    return _hold(part.with_suffix(".lock"))


def delete_abandoned(parts: Iterable[Path]) -> list[Path]:
    """Delete the parts that no process has locked; return the parts that are locked or cannot be locked."""
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
        release_lock(lock)
    return left


def release_lock(lock: BaseFileLock | None) -> None:
    """Release a lock, unless it is already released, and delete its file."""
    if lock not in _HELD:
        return
    _HELD.remove(lock)
    # Deleted before the release: a waiting process detects that the old file was deleted. On Windows, filelock does it.
    if lock.is_locked and sys.platform != "win32":
        Path(lock.lock_file).unlink(missing_ok=True)
    lock.release()


def release_all_locks() -> None:
    """Release all locks of this process."""
    while _HELD:
        release_lock(_HELD[-1])


def _hold(path: Path) -> BaseFileLock:
    try:
        return _take(path, blocking=False)
    except Timeout as error:
        raise CxlpError(f"another process is working in {path.parent}: wait for it or stop it") from error


def _take(path: Path, blocking: bool) -> BaseFileLock:
    lock = FileLock(path, thread_local=False)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with TemporaryFile(dir=path.parent):  # in a folder that is not writable, filelock would retry forever
            pass
        lock.acquire(blocking=blocking)
    except Timeout:  # is an OSError
        raise
    except OSError as error:
        raise CxlpError(f"cannot write or lock files in {path.parent}: {error.strerror}") from error
    _HELD.append(lock)
    return lock
