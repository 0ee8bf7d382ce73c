"""A rank that fails ends all other ranks soon, with its message."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from cxlp.utils.processes import STOPPED
from tests.small_run import ARGUMENTS, write_pictures
from tests.small_run import POOLING as HEAD

FISHER = [f"--{HEAD}", "FisherVector", f"--{HEAD}.pca_dim", "4", f"--{HEAD}.atoms", "2"]
#: Seconds from the failure of a rank to the end of both; far less than the timeouts of process groups.
SOON = 20


@pytest.mark.slow
@pytest.mark.parametrize(
    ("broken", "more"),
    [("1 pass work", []), ("0 codebook stay", FISHER), ("0 pass wait", [])],
    ids=["rank 1 within the pass", "rank 0 in the codebook, and it cannot leave", "rank 0, and nobody tells rank 1"],
)
def test_if_one_rank_fails_both_end(tmp_path: Path, broken: str, more: list[str]) -> None:
    write_pictures(tmp_path)
    ddp = ["--trainer.devices", "2", "--trainer.strategy", "ddp", "--data.batch_size", "2", "--run.name", "two"]
    environment = {**os.environ, "BROKEN": broken}
    environment["PYTHONPATH"] = str(Path(__file__).parents[2])
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.broken_run", *ARGUMENTS, *more, *ddp],
        cwd=tmp_path, env=environment, stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip
    last = threading.Timer(10 * SOON, os.killpg, (process.pid, signal.SIGKILL))
    last.start()
    assert process.stderr is not None
    lines, failed = [], 0.0
    for line in process.stderr:  # until both have ended, which inherited the pipe
        lines.append(line)
        if "broken on purpose" in line:
            failed = time.monotonic()
    status = process.wait(timeout=SOON)
    last.cancel()
    assert time.monotonic() - failed < SOON
    said = "".join(lines)
    assert said.count("error: broken on purpose") == 1
    assert "Traceback" not in said
    # If rank 1 fails, Lightning's launcher may kill rank 0 before rank 0 loses its connection and ends by itself.
    was_killed = broken.startswith("1") and status == -signal.SIGKILL
    assert was_killed or (status == 2 and STOPPED in said)


@pytest.mark.slow
def test_a_start_that_fails_on_one_rank_leaves_no_files(tmp_path: Path) -> None:
    write_pictures(tmp_path)
    ddp = ["--trainer.devices", "2", "--trainer.strategy", "ddp", "--data.batch_size", "2", "--run.name", "two"]
    environment = {**os.environ, "BROKEN": "1 setup work", "PYTHONPATH": str(Path(__file__).parents[2])}
    environment |= {"WANDB_MODE": "offline"}
    done = subprocess.run(
        [sys.executable, "-m", "tests.broken_run", *ARGUMENTS, "--run.wandb", "offline", *ddp],
        cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=20 * SOON,
    )  # fmt: skip
    assert done.returncode != 0 and done.stderr.count("error: broken on purpose") == 1
    assert "Traceback" not in done.stderr
    assert not list((tmp_path / "runs").glob("*")) and not (tmp_path / "wandb").exists()
