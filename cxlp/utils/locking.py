"""A lock among processes, on one machine or on several that share a disk."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import IO

from tqdm import tqdm

from cxlp.utils.errors import CxlpError

fcntl: ModuleType | None
try:
    import fcntl
except ImportError:  # Windows
    fcntl = None


_HELD: list[IO[str]] = []  # an open file keeps its lock


@contextmanager
def locked(path: Path, what: str) -> Iterator[bool]:
    """Be the only process that works on something.

    By ``flock``, which ends with its process, however that ends, and which holds between containers and
    machines that share a disk (where process numbers say nothing).

    Args:
        path: The lock file; its folder is made, and it is deleted in the end.
        what: What is worked on, to tell the user what is waited for.

    Yields:
        Whether there is a lock at all: not on Windows, nor on file systems without locks.

    Raises:
        CxlpError: If nothing can be written there.
    """
    descriptor = -1
    try:
        while True:
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666) if fcntl else -1
            except OSError as error:
                raise CxlpError(f"cannot write into {path.parent}: {error.strerror}") from error
            is_locked = fcntl is not None and _flock(fcntl, descriptor, what)
            # Whoever had the lock has deleted the file: then this one is a lock on nothing.
            if not is_locked or _is_file_of(descriptor, path):
                break
            os.close(descriptor)
            descriptor = -1
        yield is_locked
    finally:
        if descriptor >= 0:
            path.unlink(missing_ok=True)
            os.close(descriptor)


def hold(folder: Path) -> IO[str] | None:
    """Keep a folder for this process, until :func:`let_go` or its end.

    Returns:
        What to give to :func:`let_go`, if only this folder is to be let go.

    Raises:
        CxlpError: If another process has it: two would overwrite each other's files.
    """
    return hold_file(folder / ".lock")


def hold_file(path: Path) -> IO[str] | None:
    """:func:`hold` by a file of any name, which is made."""
    if fcntl is None:
        return None
    file = path.open("w")
    _HELD.append(file)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        let_go(file)
        raise CxlpError(f"another process is working in {path.parent}: wait for it, or stop it") from error
    except OSError:  # a file system without locks
        return file
    return file


def abandoned(path: Path) -> bool:
    """Whether a folder or file that a process held is held no longer; never where files cannot be locked."""
    if fcntl is None:
        return False
    try:
        with (path / ".lock" if path.is_dir() else path).open() as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:  # held, or just being made
        return False
    return True


def let_go(file: IO[str] | None = None) -> None:
    """Give a folder free, or, without one, all that this process holds."""
    for held in [file] if file is not None else list(_HELD):
        _HELD.remove(held)
        held.close()


if hasattr(os, "register_at_fork"):
    # A loader's worker would have the files, too, and keep the locks for the seconds by which it outlives a killed run.
    # Its own copies are closed, which gives nothing free.
    os.register_at_fork(after_in_child=let_go)


def _flock(fcntl: ModuleType, descriptor: int, what: str) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        tqdm.write(f"Another process fetches {what}: waiting for it")
        fcntl.flock(descriptor, fcntl.LOCK_EX)
    except OSError:  # a file system without locks
        return False
    return True


def _is_file_of(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False
