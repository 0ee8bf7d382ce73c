"""Runs that are continued elsewhere."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.small_run import ARGUMENTS, FINETUNE, write_pictures


@pytest.mark.slow
def test_a_run_resumes_in_two_processes_as_in_one(tmp_path: Path) -> None:
    write_pictures(tmp_path)

    def train(*arguments: str) -> None:
        script = Path(__file__).parents[2] / "train.py"
        subprocess.run([sys.executable, str(script), *arguments], check=True, timeout=300, cwd=tmp_path)

    train(*ARGUMENTS, *FINETUNE, "--run.name", "one", "--trainer.max_epochs", "2")
    shutil.copytree(tmp_path / "runs" / "one", tmp_path / "runs" / "two")
    ddp = [
        "--trainer.devices",
        "2",
        "--trainer.strategy",
        "ddp",
        "--data.batch_size",
        "2",
    ]  # half the batch size of one process
    found = []
    for name, more in (("one", []), ("two", ddp)):
        folder = f"runs/{name}"
        train("--config", f"{folder}/config.yaml", "--ckpt_path", folder, "--trainer.max_epochs", "4", *more)
        found.append(torch.load(tmp_path / folder / "checkpoints" / "last.ckpt", weights_only=True))
    assert [saved["epoch"] for saved in found] == [3, 3]
    for key, value in found[0]["state_dict"].items():
        torch.testing.assert_close(found[1]["state_dict"][key], value, rtol=1e-4, atol=1e-5)
