"""Locks: one holder at a time, a message for those who wait, and release at the end of a process."""

import errno
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

from cxlp.utils.errors import CxlpError
from cxlp.utils.locking import delete_abandoned, hold, hold_part, locked, release_lock

ROOT = Path(__file__).parents[2]


def test_a_lock_is_exclusive_although_its_file_is_deleted_and_recreated(tmp_path: Path) -> None:
    inside: list[int] = []
    seen: list[int] = []

    def work(number: int) -> None:
        for _ in range(25):
            with locked(tmp_path / ".lock", "it"):
                inside.append(number)
                time.sleep(0.0005)
                seen.append(len(inside))
                inside.remove(number)

    threads = [Thread(target=work, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    assert seen == [1] * 150
    assert list(tmp_path.iterdir()) == []


def test_the_lock_of_a_killed_process_is_free(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / ".lock"
    code = "import fcntl, sys; f = open(sys.argv[1], 'w'); fcntl.flock(f, fcntl.LOCK_EX); print(flush=True); input()"
    holder = subprocess.Popen([sys.executable, "-c", code, file], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert holder.stdout is not None
    holder.stdout.readline()
    entered: list[bool] = []

    def work() -> None:
        with locked(file, "the birds"):
            entered.append(True)

    waiting = Thread(target=work)
    waiting.start()
    waiting.join(timeout=0.2)
    assert entered == []
    holder.kill()
    holder.communicate(timeout=20)
    waiting.join(timeout=20)
    assert entered == [True]
    assert capsys.readouterr().err == "Another process is downloading the birds: waiting for it\n"


def test_an_error_inside_frees_the_lock(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="mine"), locked(tmp_path / ".lock", "it"):
        raise ValueError("mine")
    assert list(tmp_path.iterdir()) == []
    release_lock(hold(tmp_path))


@pytest.mark.filterwarnings("ignore:flock not supported")
def test_a_file_system_without_flock_can_be_locked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fcntl.flock", refusing(errno.ENOSYS))
    with locked(tmp_path / "new" / ".lock", "it"), pytest.raises(CxlpError, match="another process is working in"):
        hold(tmp_path / "new")
    assert list((tmp_path / "new").iterdir()) == []
    release_lock(hold(tmp_path / "new"))


def test_a_folder_that_cannot_be_locked_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fcntl.flock", refusing(errno.ENOLCK))
    with pytest.raises(CxlpError, match=rf"{tmp_path}: No locks available"):
        hold(tmp_path)


def refusing(number: int) -> Callable[..., None]:
    """Replaces ``flock`` on a file system without locks."""

    def flock(*_: Any) -> None:
        raise OSError(number, os.strerror(number))

    return flock


def test_parts_without_a_lock_are_deleted(tmp_path: Path) -> None:
    folder, file, held = tmp_path / "a.part", tmp_path / "b.part", tmp_path / "c.part"
    lock = hold_part(held)
    for path in (folder, held):
        path.mkdir()
        (path / "rows.bin").touch()
    file.touch()
    assert delete_abandoned([folder, file, held]) == [held]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["c.lock", "c.part"]
    release_lock(lock)
    assert delete_abandoned([held]) == [] and list(tmp_path.iterdir()) == []


def test_a_folder_that_is_not_writable_is_named(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("a file")
    with (
        pytest.raises(CxlpError, match=rf"cannot write or lock files in {tmp_path}/taken"),
        locked(tmp_path / "taken" / "x", "it"),
    ):
        pass


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
def test_a_forked_process_neither_holds_nor_releases_locks(tmp_path: Path) -> None:
    tmp_path.joinpath("a.part").touch()
    held = hold_part(tmp_path / "a.part")
    ready, wait = os.pipe(), os.pipe()
    child = os.fork()
    if child == 0:
        os.write(ready[1], b".")
        os.read(wait[0], 1)
        os._exit(0)
    os.read(ready[0], 1)
    code = (
        "from cxlp.utils.locking import delete_abandoned as d; import sys; from pathlib import Path; "
        "print(d([Path(sys.argv[1])]) == [])"
    )

    def is_free() -> str:
        command = [sys.executable, "-c", code, str(tmp_path / "a.part")]
        return subprocess.run(command, check=True, capture_output=True, text=True, cwd=ROOT).stdout.strip()

    try:
        assert is_free() == "False"  # the child has closed its copy, which does not release the lock
        release_lock(held)
        assert is_free() == "True"  # although the child is alive
    finally:
        os.write(wait[1], b".")
        os.waitpid(child, 0)
