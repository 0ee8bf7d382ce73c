"""The result is saved before secondary outputs; a failed output does not affect others, and sets the exit status."""

import errno
import os
from contextlib import nullcontext
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
import wandb
from pytorch_lightning.loggers import CSVLogger, WandbLogger

import cxlp.reports.result
import cxlp.runs.folder
import cxlp.runs.results
import cxlp.runs.wandb_runs
from cxlp.commands.train import main
from cxlp.reports.outputs import Outputs
from cxlp.runs.folder import finished, run_in
from cxlp.runs.loggers import RunConfig, build_loggers
from cxlp.tasks import Frozen
from cxlp.utils.errors import CxlpError
from tests.small_run import ARGUMENTS, metrics, prepared, write_pictures


@pytest.fixture(autouse=True)
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A new working directory with the pictures."""
    monkeypatch.chdir(tmp_path)
    write_pictures(tmp_path)
    return tmp_path


def full(*_: Any, **__: Any) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_the_result_is_written_before_secondary_outputs(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    good = metrics(prepared("good", "--run.cost", "true"))
    folder = Path("[/b]", "<$\\frac{1$> 🐦")  # a name that must not be read as markup, formula or tag
    found: list[dict[str, Any]] = []

    def broken(*_: Any) -> None:
        assert (folder / "checkpoints" / "best.ckpt").is_file()
        found.append(metrics(folder))
        raise RuntimeError("no font")

    monkeypatch.setattr(cxlp.reports.result, "draw_confusion", broken)
    monkeypatch.setattr(cxlp.runs.results, "measure_cost", broken)
    monkeypatch.setattr(cxlp.runs.results, "write_report", full)
    monkeypatch.setattr(CSVLogger, "save", full)
    place = ["--run.root", str(folder.parent), "--run.name", folder.name]
    assert main([*ARGUMENTS, *place, "--run.cost", "true"]) == 3
    lost = ["the log by ForgivingCSVLogger", "the cost", "confusion_matrix.png", "report.html"]
    seconds = metrics(folder)["seconds"]
    assert len(found) == 2 and metrics(folder) == {**found[1], "seconds": seconds, "outputs": {"failed": lost}}
    assert seconds["total"] == pytest.approx(sum(spent for phase, spent in seconds.items() if phase != "total"))
    assert {"start-up", "cost", "tables and pictures", "report", "other"} <= seconds.keys()
    assert metrics(folder)["metrics"] == good["metrics"] and metrics(folder).keys() == good.keys() - {"cost"}
    assert {"per_class.csv", "confusions.csv", "examples.csv", "examples"} <= {path.name for path in folder.iterdir()}
    said = capsys.readouterr()
    for name in lost:
        assert said.err.count(f"error: {name} could not be ") == 1
    assert f": {', '.join(lost)}" in said.err.replace("\n", "")
    assert "test/accuracy" in said.out and str(folder) in said.out


def test_a_run_that_is_killed_before_its_tables_is_resumed(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def killed(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(cxlp.reports.result.TestResult, "write", killed)
        assert main([*ARGUMENTS, "--run.name", "a"]) == 130
    folder = Path("runs", "a")
    assert (folder / "metrics.json").is_file() and finished(folder) is None
    monkeypatch.setattr(Frozen, "training_step", killed)  # only the test is repeated
    assert main([*ARGUMENTS, "--run.name", "a", "--run.resume", "auto"]) == 0
    assert finished(folder) == folder and (folder / "per_class.csv").is_file() and (folder / "report.html").is_file()


def test_a_closed_pipe_does_not_stop_the_run(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A closed pipe, as of ``train.py | head``, at which rich ends the process."""
    ended: list[Any] = []
    monkeypatch.setattr(cxlp.runs.results.Results, "show", Mock(side_effect=SystemExit(1)))
    monkeypatch.setattr(cxlp.runs.results, "close_wandb", lambda *arguments: ended.append(arguments))
    monkeypatch.setattr("cxlp.runs.opening.start_wandb", lambda *_: Mock(id="run1"))
    monkeypatch.setattr(cxlp.runs.results, "wandb_panels", lambda *_: {})
    assert main([*ARGUMENTS, "--run.name", "a", "--run.wandb", "offline"]) == 3
    assert len(ended) == 1 and Path("runs", "a", "report.html").is_file()
    assert "error: the table on standard output " in capsys.readouterr().err


def test_nonfinite_numbers_do_not_break_the_json() -> None:
    nan, inf = float("nan"), float("inf")
    assert cxlp.runs.results.finite({"a": {"b": nan, "c": 1.5}, "d": -inf, "e": "x", "f": 2}) == {
        "a": {"b": None, "c": 1.5}, "d": None, "e": "x", "f": 2,
    }  # fmt: skip


@pytest.mark.parametrize(("status", "passes"), [(0, True), (3, True), (1, False), (2, False)])
def test_a_series_takes_a_run_whose_report_is_missing(
    work: Path, monkeypatch: pytest.MonkeyPatch, status: int, passes: bool
) -> None:
    def run_to_end(*_: Any) -> int:
        (work / "a").mkdir()
        (work / "a" / "metrics.json").write_text('{"outputs": {"failed": []}}')
        return status

    monkeypatch.setattr(cxlp.runs.folder, "run_to_end", run_to_end)
    with nullcontext() if passes else pytest.raises(CxlpError, match="failed, see above"):
        assert run_in(work / "a", [], work / "logs" / "a.txt") == work / "a"


class Gone:
    """Replaces a wandb run whose process has died."""

    id, project = "run1", "birds"

    def __getattr__(self, name: str) -> Any:
        raise BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE))

    def define_metric(self, *_: Any, **__: Any) -> None:
        """Accept an axis."""


def test_training_continues_without_a_failed_logger(
    work: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    outputs = Outputs()
    experiment: Any = Gone()
    wandb_logger, csv_logger = build_loggers(RunConfig(), work, "frozen", lambda: experiment, outputs)
    assert isinstance(wandb_logger, WandbLogger) and isinstance(csv_logger, CSVLogger)
    for step in range(3):
        for logger in (wandb_logger, csv_logger):
            logger.log_metrics({"train/loss": 1.0}, step)
            logger.log_hyperparams({"provenance": {"data": "birds"}})
            logger.save()
    assert outputs.failed == ["the log by ForgivingWandbLogger"]
    assert capsys.readouterr().err.count("error: ") == 1
    assert len((Path(csv_logger.log_dir) / "metrics.csv").read_text().splitlines()) == 4


@pytest.mark.parametrize("chosen", [None, "elsewhere"])
def test_wandb_stages_its_files_in_the_runs_folder(
    work: Path, monkeypatch: pytest.MonkeyPatch, chosen: str | None
) -> None:
    """HOME may not be writable, on a compute node or in a container."""
    monkeypatch.setattr(cxlp.runs.wandb_runs, "DATA_DIR", chosen)
    monkeypatch.setattr(wandb, "init", lambda **_: Gone())
    monkeypatch.setenv("WANDB_DATA_DIR", "")
    cxlp.runs.wandb_runs.start_wandb(RunConfig(wandb="offline"), Path("runs", "a"), "train")
    assert os.environ["WANDB_DATA_DIR"] == (chosen or str(work / "runs" / "a" / "wandb"))
