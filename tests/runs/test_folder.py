"""Folders of runs: what is found in them, taken up, and left alone; processes of their own."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from cxlp.runs.folder import finished, last_checkpoint, refit_folder, run_in, take_up
from cxlp.utils.errors import CxlpError
from cxlp.utils.locking import hold, let_go


def with_file(folder: Path, name: str) -> Path:
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).touch()
    return folder


def test_what_a_stopped_run_left_is_gone_on_with(tmp_path: Path) -> None:
    folder = with_file(tmp_path / "a", "checkpoints/last.ckpt")
    assert take_up(folder) == last_checkpoint(folder) == folder / "checkpoints" / "last.ckpt"


@pytest.mark.parametrize(
    ("there", "newest"),
    [
        (["frozen"], "frozen"),
        (["frozen", "finetuned"], "frozen"),  # the first gradient epoch was not over
        (["frozen", "finetuned", "last"], "last"),
        (["frozen", "finetuned", "last", "closing", "best"], "closing"),
        (["start", "finetuned"], None),
    ],
)
def test_a_run_goes_on_from_its_newest_stage(tmp_path: Path, there: list[str], newest: str | None) -> None:
    for name in there:
        with_file(tmp_path, f"checkpoints/{name}.ckpt")
    found = last_checkpoint(tmp_path)
    assert (found and found.stem) == newest


def test_what_cannot_be_gone_on_with_is_cleared_away(tmp_path: Path) -> None:
    # killed while the first checkpoint was written, with half-made features
    folder = with_file(with_file(tmp_path / "a", "checkpoints/.last.ckpt.part"), "features/rows.bin")
    assert take_up(folder) is None and not folder.exists()
    assert take_up(folder) is None
    # killed in the first gradient epoch behind another run's checkpoint
    folder = with_file(with_file(tmp_path / "b", "checkpoints/start.ckpt"), "checkpoints/finetuned.ckpt")
    assert take_up(folder) is None and not folder.exists()


def test_a_run_that_is_alive_is_left_alone(tmp_path: Path) -> None:
    folder = with_file(tmp_path / "a", "config.yaml")
    held = hold(folder)
    try:
        with pytest.raises(CxlpError, match="another process is working in"):
            take_up(folder)
    finally:
        let_go(held)
    assert (folder / "config.yaml").exists()


def test_results_are_the_runs_own_or_its_refits(tmp_path: Path) -> None:
    folder = with_file(tmp_path / "a", "config.yaml")
    assert finished(folder) is None
    with_file(refit_folder(folder), "metrics.json")
    assert finished(folder) == tmp_path / "a" / "refit"
    assert finished(with_file(tmp_path / "b", "metrics.json")) == tmp_path / "b"


@pytest.mark.parametrize(("status", "leaves"), [(1, True), (0, False)], ids=["status", "nothing left"])
def test_a_process_that_fails_is_told_of_with_its_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, status: int, leaves: bool
) -> None:
    folder = with_file(tmp_path / "a", "checkpoints/last.ckpt")
    seen: list[list[str]] = []
    monkeypatch.setenv("WANDB_RUN_ID", "abc")
    start = subprocess.Popen

    def instead(command: list[str], **options: object) -> "subprocess.Popen[bytes]":
        seen.append(command)
        assert options["env"]["WANDB_RUN_ID"] == "abc"  # type: ignore[index]
        if leaves:
            with_file(folder, "metrics.json")
        return start([sys.executable, "-c", f"print('what it says'); raise SystemExit({status})"], **options)  # type: ignore[call-overload, no-any-return]

    monkeypatch.setattr(subprocess, "Popen", instead)
    with pytest.raises(CxlpError, match=r"failed, see above and .*a\.txt"):
        run_in(folder, ["--config", "x"], tmp_path / "logs" / "a.txt")
    assert "WANDB_RUN_ID" not in os.environ  # it is one run's: the next one gets an id of its own
    assert (tmp_path / "logs" / "a.txt").read_text() == "what it says\n"
    assert seen[0][4:] == [
        *("--config", "x", "--run.root", str(tmp_path), "--run.name", "a"),
        *("--ckpt_path", str(folder / "checkpoints" / "last.ckpt")),
    ]


def test_a_stopped_run_with_checkpoints_of_its_own_is_not_deleted(tmp_path: Path) -> None:
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    own = tmp_path / "run" / "checkpoints" / "epoch=19.ckpt"
    own.touch()
    with pytest.raises(CxlpError, match=r"no checkpoint to go on from, but epoch=19\.ckpt: move it away"):
        take_up(tmp_path / "run")
    assert own.is_file()
    own.unlink()
    assert take_up(tmp_path / "run") is None and not (tmp_path / "run").exists()
