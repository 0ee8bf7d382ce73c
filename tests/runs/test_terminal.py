"""The output of a run in a terminal and in a pipe, and its log; the remains of a failed start."""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import pytest

from cxlp.commands.train import main
from cxlp.frozen import fit
from cxlp.frozen.fit import FrozenFit
from cxlp.runs import opening, provenance
from cxlp.tasks import FineTune
from cxlp.utils.errors import CxlpError
from tests.small_run import ARGUMENTS, FINETUNE, prepared, run

CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f]")
SHOWN = ["--trainer.enable_progress_bar", "true"]


def logged(folder: Path) -> list[str]:
    """Return the lines of a run's log."""
    return (folder / "log.txt").read_text(encoding="utf-8").splitlines()


# --- output


def test_in_a_pipe_and_in_the_log_there_are_only_whole_lines(work: Path) -> None:
    command = [*ARGUMENTS, *FINETUNE, *SHOWN, "--run.name", "a", "--run.wandb", "offline"]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run(
        [sys.executable, "-m", "cxlp", "train", *command], capture_output=True, text=True, check=True, env=environment
    )
    assert not CONTROL.search(done.stdout + done.stderr)
    out = done.stdout.splitlines()
    assert [line.split()[0] for line in out[:7]] == [
        "data", "images", "network", "stages", "device", "precision", "folder",
    ]  # fmt: skip
    assert {line[:12].rstrip() == line.split()[0] and line[12] != " " for line in out[:7]} == {True}, "aligned"
    assert out[1].endswith("11 to train, 7 held out, 9 to test")
    assert out[3].endswith("frozen fit, 2 gradient epochs; tested: the best by val/accuracy")
    assert out[6].endswith("runs/a")
    assert re.fullmatch(
        r"frozen fit     cross-validated .*%   val/accuracy .*%   best .*% \(frozen fit\)   .* s", out[7]
    )
    assert out[8].startswith("frozen fit: training accuracy ") and out[9].startswith("warning: fine-tuning ")
    assert [line.split("   ")[0] for line in out[10:12]] == ["epoch 1 of 2", "epoch 2 of 2"]
    assert all("train loss 0." in line or "train loss 1." in line for line in out[10:12])
    assert "v_num" not in done.stdout and not re.search(r"epoch 0|Epoch", done.stdout)
    log = logged(Path("runs/a"))
    assert "cxlp train --config" in log[0] and sorted(log[1:]) == sorted(
        line.rstrip() for line in (done.stdout + done.stderr).splitlines()
    )


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no pty")
def test_in_a_terminal_one_bar_is_shown_below_the_lines(work: Path) -> None:
    import fcntl
    import pty
    import struct
    import termios

    slow = "import cxlp.utils.progress as p; p.DELAY = 0.0; import cxlp.__main__ as m; m.main()"
    command = [*ARGUMENTS, *FINETUNE, *SHOWN, "--run.name", "a"]
    child, terminal = pty.fork()
    if child == 0:
        os.environ["PYTHONPATH"] = str(Path(__file__).parents[2])
        os.execv(sys.executable, [sys.executable, "-c", slow, "train", *command])
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 100, 0, 0))  # otherwise it has no width
    raw = b""
    while True:
        try:
            found = os.read(terminal, 1 << 16)
        except OSError:  # Linux's error if the other end is closed
            break
        if not found:
            break
        raw += found
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    text = raw.decode().replace("\r\n", "\n")
    assert "\x1b[A" not in text, "there are never two bars"
    for bar in ("frozen fit:", "epoch 1 of 2:", "epoch 2 of 2, validation:", "test:"):
        assert f"\r{bar}" in text
    shown = [line.rpartition("\r")[2] for line in text.split("\n")]  # the final state of each line
    assert [line.split("  ")[0] for line in shown if re.match(r"(epoch|frozen fit) ", line)] == [
        "frozen fit", "epoch 1 of 2", "epoch 2 of 2",
    ]  # fmt: skip
    assert not any("it/s" in line or "batches" in line for line in shown)
    assert not CONTROL.search(Path("runs/a/log.txt").read_text(encoding="utf-8"))


def test_without_held_out_images_the_summary_names_the_last_epoch(
    work: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run("a", *FINETUNE, "--data.validation", "0", "--trainer.max_epochs", "1")
    said = capsys.readouterr().out
    assert "1 gradient epoch; tested: the last, since no images are held out" in said and "none held out" in said
    assert "best" not in said


def test_an_epoch_without_validation_shows_no_earlier_value(work: Path) -> None:
    log = logged(run("a", *FINETUNE, "--trainer.max_epochs", "3", "--trainer.check_val_every_n_epoch", "2"))
    epochs = [line for line in log if line.startswith("epoch ")]
    assert ["val/accuracy" in line for line in epochs] == [False, True, False]
    assert all("best" in line for line in epochs)


# --- the log of runs that end early


def stop(error: BaseException) -> Callable[..., NoReturn]:
    def stopped(*_: Any, **__: Any) -> NoReturn:
        raise error

    return stopped


@pytest.mark.parametrize("error", [CxlpError("broken"), KeyboardInterrupt(), ValueError("odd")], ids=repr)
def test_the_log_of_an_interrupted_run_is_complete_and_continued(
    work: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    ended, epochs = FineTune.on_train_epoch_start, []

    def begin(task: FineTune) -> None:
        epochs.append(task.current_epoch)
        if task.current_epoch == 1:
            raise error
        ended(task)

    with monkeypatch.context() as patch:
        patch.setattr(FineTune, "on_train_epoch_start", begin)
        arguments = [*ARGUMENTS, *FINETUNE, "--run.name", "a"]
        if isinstance(error, ValueError):
            with pytest.raises(ValueError, match="odd"):
                main(arguments)
        else:
            main(arguments)
    log = logged(Path("runs/a"))
    said = {"CxlpError": "error: broken", "ValueError": "ValueError: odd"}.get(
        type(error).__name__,
        "interrupted. To continue: python -m cxlp train --config runs/a/config.yaml --ckpt_path runs/a",
    )
    assert log[-1] == said and any(line.startswith("epoch 1 of 2") for line in log)
    best = next(line for line in log if line.startswith("epoch 1 of 2")).partition("best ")[2].split(")")[0]
    assert main(["--config", "runs/a/config.yaml", "--ckpt_path", "runs/a"]) == 0
    more = logged(Path("runs/a"))
    assert more[: len(log)] == log and [line[:3] for line in more].count("# 2") == 2
    resumed = more[len(log) :]
    assert any(line.startswith("stages ") and "frozen fit (done), 2 gradient epochs" in line for line in resumed)
    (second,) = (line for line in resumed if line.startswith("epoch "))
    assert second.startswith("epoch 2 of 2")
    value = float(second.partition("val/accuracy ")[2].split("%")[0])
    if value <= float(best.split("%")[0]):
        assert f"best {best})" in second, "the best epoch of the first session is kept"


def test_a_closed_pipe_does_not_end_the_run(work: Path) -> None:
    command = [sys.executable, "-m", "cxlp", "train", *ARGUMENTS, *FINETUNE, "--run.name", "a"]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment) as run:
        assert run.stdout is not None and run.stdout.readline().startswith("data ")
        run.stdout.close()
        run.wait(timeout=300)
    assert run.returncode == 3  # the table has no reader
    assert Path("runs/a/report.html").is_file()
    assert sum(line.startswith("epoch ") for line in logged(Path("runs/a"))) == 2


# --- failed starts


FAILURES: dict[str, tuple[list[str], Any, str]] = {
    "no memory": ([], (FrozenFit, "_check_space", stop(CxlpError("no room"))), "no room"),
    "no memory for SVMs": ([], (fit, "plan", stop(CxlpError("no memory"))), "no memory"),
    "set-up": ([], (opening, "build_parser", stop(CxlpError("no config"))), "no config"),
    "provenance": ([], (provenance, "git_state", stop(OSError("no git"))), ""),
    "interrupt": ([], (FrozenFit, "observe", stop(KeyboardInterrupt())), "interrupted"),
    "optimizer": (["--model.start", "scratch", "--model.optimizer.hold_epochs", "9"], None, "hold_epochs"),
    "optimizer of a start": (["--model.start", "first", "--model.optimizer.hold_epochs", "9"], None, "hold_epochs"),
    "batch": (["--model.start", "first"], (FineTune, "training_step", stop(CxlpError("broken"))), "broken"),
    "interrupted batch": (
        ["--model.start", "scratch"], (FineTune, "training_step", stop(KeyboardInterrupt())), "interrupted",
    ),
}  # fmt: skip


@pytest.mark.parametrize("failure", FAILURES)
def test_a_failed_start_leaves_no_folder_name_or_wandb_run(
    work: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], failure: str
) -> None:
    more, change, said = FAILURES[failure]
    if "first" in more:
        shutil.move(prepared("first", "--data.validation", "0.34"), "first")
    if more:
        more = [*FINETUNE, *more]
    begun: list[Any] = []
    monkeypatch.setattr(opening, "start_wandb", lambda *arguments: begun.append(arguments))
    arguments = [*ARGUMENTS, *more, "--run.name", "a", "--run.wandb", "offline"]
    with monkeypatch.context() as patch:
        if change is not None:
            patch.setattr(*change)
        if said:
            assert main(arguments) == (130 if said == "interrupted" else 2)
        else:
            with pytest.raises(OSError, match="no git"):
                main(arguments)
    assert said in capsys.readouterr().err and not begun
    assert not list(Path("runs").glob("*"))


def test_a_run_that_has_begun_keeps_its_folder_its_log_and_its_wandb_run(
    work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(FineTune, "on_validation_start", stop(CxlpError("broken")))
    arguments = [*ARGUMENTS, *FINETUNE, "--model.start", "scratch", "--run.name", "a", "--run.wandb", "offline"]
    assert main([*arguments, "--trainer.log_every_n_steps", "1"]) == 2
    assert logged(Path("runs/a"))[-1] == "error: broken"
    assert len(list(Path("runs/a/wandb").glob("offline-run-*"))) == 1
