"""Runs that are ended by signals: exit status, message, and continuation."""

from collections.abc import Iterator

import pytest

from tests.killing import Runner
from tests.small_run import ARGUMENTS, FINETUNE, metrics, write_pictures

COMMAND = [*ARGUMENTS, *FINETUNE, "--data.num_workers", "1", "--run.name", "a"]


@pytest.fixture(scope="module")
def runner(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runner]:
    folder = tmp_path_factory.mktemp("signals")
    write_pictures(folder)
    runner = Runner(folder)
    yield runner
    runner.close()


@pytest.mark.slow
def test_signals_end_a_run_at_any_moment_with_one_sentence(runner: Runner) -> None:
    folder = runner.log.parent
    go_on = "To continue: python train.py --config runs/a/config.yaml --ckpt_path runs/a"
    moments = {
        "SIGHUP pass frozen 1": (129, "stopped by SIGHUP. Nothing was saved yet: start again"),
        "SIGTERM stage finetune": (143, f"stopped by SIGTERM. {go_on}"),
        "SIGTERM save last 0": (143, f"stopped by SIGTERM. {go_on}"),
        "SIGINT batch 1 1": (130, f"interrupted. {go_on}"),
        "SIGTERM test": (143, f"stopped by SIGTERM. {go_on}"),
    }
    resumed: list[str] = []
    for moment, (status, said) in moments.items():
        runner.log.unlink(missing_ok=True)
        assert runner([*COMMAND, *resumed], moment) == status
        assert runner.log.read_text().replace(f"{folder}/", "").strip().endswith(said), (
            moment
        )  # after the output of the run
        if "start again" in said:
            assert not (folder / "runs" / "a").exists()
        else:
            resumed = ["--ckpt_path", "runs/a"]
    assert runner([*COMMAND, *resumed]) == 0
    assert metrics(folder / "runs" / "a")["metrics"]["test/accuracy"] >= 0
