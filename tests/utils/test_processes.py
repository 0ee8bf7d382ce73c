"""The end of processes: by signals, with their children, and when their parent ends."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cxlp.utils.processes import Ended, exit_status_of

ROOT = Path(__file__).parents[2]
#: A process that waits for a signal, and prints how it ends.
WAITING = """
import os, signal, sys, time
from cxlp.utils import processes
with processes.raising_on_signals():
    try:
        print("ready", flush=True)
        time.sleep(60)
    except BaseException as error:
        status, said = processes.exit_status_of(error)
        print(said, flush=True)
        time.sleep(float(sys.argv[1]))
        os._exit(status)
"""
#: A process that starts a child and waits for it; and the child, which prints its process id.
STARTING = """
import os, sys
from cxlp.utils import processes
with processes.raising_on_signals():
    processes.run_to_end([sys.executable, "-c", sys.argv[1]], sys.stdout, dict(os.environ))
"""
STARTED = """
import os, time
from cxlp.utils import processes
with processes.raising_on_signals():
    assert processes.leave_with_parent(poll=0.02)
    print(os.getpid(), flush=True)
    time.sleep(60)
"""


def start(code: str, *args: str, **options: Any) -> subprocess.Popen[str]:
    """Start code in a new process; return when it has printed a line."""
    command = [sys.executable, "-c", code, *args]
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen(command, cwd=ROOT, text=True, start_new_session=True, **pipes, **options)


def line(process: "subprocess.Popen[str]") -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


@pytest.fixture
def waiting() -> Iterator["subprocess.Popen[str]"]:
    process = start(WAITING, "60")
    assert line(process) == "ready"
    yield process
    process.kill()
    process.communicate()


@pytest.mark.parametrize(
    ("name", "status", "said"),
    [("SIGINT", 130, "interrupted"), ("SIGTERM", 143, "stopped by SIGTERM"), ("SIGHUP", 129, "stopped by SIGHUP")],
)
def test_signals_end_a_process_with_the_status_of_shells(name: str, status: int, said: str) -> None:
    process = start(WAITING, "0")
    assert line(process) == "ready"
    process.send_signal(signal.Signals[name])
    assert process.communicate(timeout=30) == (f"{said}\n", "") and process.returncode == status


def ignoring(number: int) -> Any:
    return lambda: signal.signal(number, signal.SIG_IGN)


def test_a_job_in_the_background_can_be_interrupted() -> None:
    process = start(WAITING, "0", preexec_fn=ignoring(signal.SIGINT))
    assert line(process) == "ready"
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=30)
    assert process.returncode == 130


def test_nohup_keeps_a_process_from_ending_with_its_terminal() -> None:
    process = start(WAITING, "0", preexec_fn=ignoring(signal.SIGHUP))
    assert line(process) == "ready"
    process.send_signal(signal.SIGHUP)
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(timeout=0.2)
    process.terminate()
    process.communicate(timeout=30)
    assert process.returncode == 143


def test_a_second_signal_ends_a_process_during_its_cleanup(waiting: "subprocess.Popen[str]") -> None:
    waiting.terminate()
    assert line(waiting) == "stopped by SIGTERM"
    waiting.terminate()  # as supervisors do, which signal a process and its group
    with pytest.raises(subprocess.TimeoutExpired):
        waiting.wait(timeout=1.2)
    waiting.send_signal(signal.SIGINT)
    assert waiting.wait(timeout=30) == 130


def test_a_cleanup_that_takes_too_long_is_aborted() -> None:
    code = WAITING.replace("with processes", "processes.GRACE_AFTER_SIGNAL = 0.1\nwith processes", 1)
    process = start(code, "60")
    assert line(process) == "ready"
    process.terminate()
    _, said = process.communicate(timeout=30)
    assert (process.returncode, said) == (143, "error: the cleanup after SIGTERM took too long\n")


#: A process whose main thread waits in native code, where Python's signal handlers do not run.
NATIVE = """
import ctypes, time
from cxlp.utils import processes
processes.GRACE_AFTER_SIGNAL = 0.3
with processes.raising_on_signals():
    print("ready", flush=True)
    lock = ctypes.CDLL(None)
    mutex = ctypes.create_string_buffer(128)
    lock.pthread_mutex_lock(mutex)
    lock.pthread_mutex_lock(mutex)
"""


@pytest.mark.parametrize("numbers", ["SIGTERM", "SIGHUP", "SIGINT SIGINT"])
def test_signals_end_a_process_in_native_code(numbers: str) -> None:
    process = start(NATIVE)
    assert line(process) == "ready"
    time.sleep(0.1)
    *first, last = (signal.Signals[name] for name in numbers.split())
    for number in first:
        process.send_signal(number)
        with pytest.raises(subprocess.TimeoutExpired):  # a user can press Ctrl-C again
            process.wait(timeout=1.2)
    process.send_signal(last)
    try:
        _, said = process.communicate(timeout=10)
    finally:
        process.kill()
    assert process.returncode == 128 + last
    assert said == ("" if first else f"error: the cleanup after {last.name} took too long\n")


#: A process that has handled a signal and continues; and one that has forked a child, which ends.
HANDLED = """
import os, signal, time
from cxlp.utils import processes
processes.GRACE_AFTER_SIGNAL = 0.2
try:
    with processes.raising_on_signals():
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(60)
except processes.Ended:
    time.sleep(0.6)
"""
FORKED = """
import os, signal, time
from cxlp.utils import processes
processes.GRACE_AFTER_SIGNAL = 0.2
with processes.raising_on_signals():
    child = os.fork()
    if not child:
        time.sleep(60)
    time.sleep(0.1)
    os.kill(child, signal.SIGTERM)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 143
    time.sleep(0.6)
"""


@pytest.mark.parametrize("code", [HANDLED, FORKED], ids=["handled", "of another process"])
def test_a_handled_signal_has_no_later_effect(code: str) -> None:
    process = start(code + "print('done')")
    assert process.communicate(timeout=30) == ("done\n", "") and process.returncode == 0


def test_a_forked_process_ends_silently() -> None:
    code = WAITING.replace("        time.sleep(60)", "        os.fork()\n        time.sleep(60)", 1)
    process = start(code, "0")
    assert line(process) == "ready"
    time.sleep(0.1)
    os.killpg(process.pid, signal.SIGTERM)
    assert process.communicate(timeout=30) == ("stopped by SIGTERM\n", "") and process.returncode == 143


def is_there(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return "Z" not in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT", "SIGKILL"])
def test_children_end_with_their_parent(name: str) -> None:
    process = start(STARTING, STARTED)
    started = int(line(process))
    process.send_signal(signal.Signals[name])
    process.wait(timeout=30)
    deadline = time.monotonic() + (20 if name == "SIGKILL" else 0)  # it checks periodically
    while is_there(started) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not is_there(started)
    process.communicate()


def test_a_signal_is_recognised_in_errors_of_libraries() -> None:
    found: list[tuple[int, str] | None] = []
    for raised in (Ended(signal.SIGTERM), KeyboardInterrupt(), ValueError("mine")):
        try:
            try:
                raise raised
            except BaseException:
                raise SystemExit(1)  # noqa: B904 (as Lightning does)
        except SystemExit as error:
            found.append(exit_status_of(error))
    assert found == [(143, "stopped by SIGTERM"), (130, "interrupted"), None]
