"""A rank that fails alone ends all others soon, with its message."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from cxlp.distributed import STOPPED
from tests.small_run import ARGUMENTS, write_pictures

FISHER = ["--model.network.pooling.method", "fisher", "--model.network.pooling.gaussians", "2"]
#: Seconds from one rank's failure to the end of both; far less than the timeouts of the process groups.
SOON = 20


@pytest.mark.slow
@pytest.mark.parametrize(
    ("broken", "more"),
    [("1 pass work", []), ("0 codebook work", FISHER), ("0 pass wait", []), ("1 pass wait", []), ("0 pass stay", [])],
)
def test_one_rank_fails_and_both_end(tmp_path: Path, broken: str, more: list[str]) -> None:
    write_pictures(tmp_path)
    ddp = ["--trainer.devices", "2", "--trainer.strategy", "ddp", "--data.batch_size", "2", "--run.name", "two"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "BROKEN": broken}
    environment["PYTHONPATH"] = str(Path(__file__).parents[1])
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.broken_run", *ARGUMENTS, *more, *ddp],
        cwd=tmp_path, env=environment, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stderr is not None
    lines, failed = [], float("inf")
    for line in process.stderr:  # until both have ended, which have the pipe
        lines.append(line)
        if "broken on purpose" in line:
            failed = time.monotonic()
    assert time.monotonic() - failed < SOON
    status = process.wait(timeout=SOON)
    said = "".join(lines)
    assert said.count("error: broken on purpose") == 1
    assert "Traceback" not in said
    if broken == "1 pass wait":  # rank 0, which Lightning's launcher ends: it is stuck
        assert status == -9
    else:
        assert status == 2
        assert STOPPED in said
