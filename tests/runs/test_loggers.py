"""Loggers: finding wandb's key, the result of each mode, and unreachable servers. No test uses the network."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import pytest
import wandb
from pytorch_lightning.loggers import CSVLogger, WandbLogger

from cxlp.reports.history import wandb_command
from cxlp.reports.outputs import Outputs
from cxlp.runs.loggers import ForgivingCSVLogger, ForgivingWandbLogger, RunConfig, build_loggers, labelled
from cxlp.runs.wandb_runs import close_wandb, curve_of_costs, has_wandb_key, start_wandb, summary_of
from cxlp.utils.errors import CxlpError

KEY = "0123456789" * 4
HOST = "https://wandb.birds.test:8443"


@pytest.fixture(autouse=True)
def nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A user without wandb: no variables, no settings, and a missing netrc file, whose path is returned."""
    for name in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    file = tmp_path / "netrc"
    monkeypatch.setenv("NETRC", str(file))
    monkeypatch.setenv("WANDB_CONFIG_DIR", str(tmp_path / "settings"))
    monkeypatch.setenv("WANDB_SILENT", "true")
    wandb.teardown()  # wandb reads the variables once in a process
    yield file
    wandb.teardown()


# --- the key


def test_a_key_in_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not has_wandb_key()
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    assert has_wandb_key()
    monkeypatch.setenv("WANDB_API_KEY", "")
    assert not has_wandb_key()


def test_a_key_in_the_netrc_file_counts_for_its_server_only(nobody: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # the key of wandb's own service, also under its former name
    for name in (urlparse(wandb.setup().settings.base_url).netloc, "api.wandb.ai"):
        nobody.write_text(f"machine {name} login user password {KEY}\n")
        assert has_wandb_key()
    monkeypatch.setenv("WANDB_BASE_URL", HOST)
    wandb.teardown()
    assert not has_wandb_key()
    # wandb login --host writes the port, too
    nobody.write_text(f"machine wandb.birds.test:8443 login user password {KEY}\n")
    assert has_wandb_key()


def test_the_netrc_file_of_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / ".netrc").write_text(f"machine api.wandb.ai login user password {KEY}\n")
    (tmp_path / ".netrc").chmod(0o600)
    assert not has_wandb_key()  # NETRC names another file
    monkeypatch.delenv("NETRC")
    assert has_wandb_key()
    monkeypatch.setenv("NETRC", "~/.netrc")
    assert has_wandb_key()


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"machine api.wandb.ai login user\n",
        b"machine github.com login user password secret\n",
        b"machine api.wandb.ai user\n",
        b"\xff\xfe\x00 no text\n",
    ],
    ids=["empty", "no password", "another machine", "bad syntax", "bytes"],
)
def test_a_netrc_file_without_a_key(nobody: Path, content: bytes) -> None:
    nobody.write_bytes(content)
    assert not has_wandb_key()


# --- the modes


class Started:
    """Replaces a wandb run."""

    id = "run1"

    def define_metric(self, name: str, **kwargs: Any) -> None:
        """Accept an axis."""


@pytest.fixture
def starts(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Record the arguments of each ``wandb.init``, which starts nothing."""
    calls: list[dict[str, Any]] = []

    def init(**kwargs: Any) -> Started:
        calls.append(kwargs)
        return Started()

    monkeypatch.setattr(wandb, "init", init)
    return calls


def kinds(run: RunConfig, folder: Path) -> list[type]:
    started = start_wandb(run, folder, "train")
    begin = None if started is None else lambda: started
    return [type(logger) for logger in build_loggers(run, folder, "frozen", begin, Outputs())]


@pytest.mark.parametrize(
    ("mode", "variable", "key", "started"),
    [
        ("auto", None, False, "offline"),
        ("auto", None, True, "online"),
        ("auto", "offline", True, "offline"),
        ("auto", "dryrun", True, "offline"),  # wandb's former word for it
        ("auto", "online", False, "online"),
        ("auto", "disabled", True, None),
        ("off", "online", True, None),
        ("offline", "online", True, "offline"),  # the config has precedence over the variable
        ("online", "disabled", False, "online"),
    ],
)
def test_modes(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    starts: list[dict[str, Any]],
    mode: Any,
    variable: str | None,
    key: bool,
    started: str | None,
) -> None:
    if variable:
        monkeypatch.setenv("WANDB_MODE", variable)
    if key:
        monkeypatch.setenv("WANDB_API_KEY", KEY)
    loggers = kinds(RunConfig(wandb=mode), tmp_path)
    assert [call["mode"] for call in starts] == ([started] if started else [])
    # wandb's logger comes first: Lightning writes into the first one's folder
    assert loggers == ([ForgivingWandbLogger, ForgivingCSVLogger] if started else [ForgivingCSVLogger])


def test_the_arguments_of_wandb_init(tmp_path: Path, starts: list[dict[str, Any]]) -> None:
    run = RunConfig(wandb="offline", project="birds", group="seeds", tags=("a", "b"), notes="of the nest")
    experiment = start_wandb(run, tmp_path / "first", "refit", "run1")
    (call,) = starts
    expected = {"dir": tmp_path / "first", "name": "first", "project": "birds", "group": "seeds", "tags": ("a", "b")}
    assert {k: call[k] for k in expected} == expected
    assert (call["job_type"], call["notes"]) == ("refit", "of the nest")
    assert (call["id"], call["resume"]) == ("run1", "allow")  # a resumed run continues the same wandb run
    # one wandb run for all stages, and CSV files for each
    for stage in ("frozen", "finetune"):
        wandb_logger, csv_logger = build_loggers(run, tmp_path / "first", stage, lambda: experiment, Outputs())
        assert isinstance(wandb_logger, WandbLogger) and isinstance(csv_logger, CSVLogger)
        assert wandb_logger.experiment is not experiment  # Trainers read it before they start
        wandb_logger.log_metrics({"train/loss_step": 1.0})
        assert wandb_logger.experiment is experiment
        assert Path(csv_logger.log_dir).is_relative_to(tmp_path / "first" / "csv" / stage)
    assert len(starts) == 1


def test_the_id_in_the_environment_is_used_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, starts: list[dict[str, Any]]
) -> None:
    monkeypatch.setenv("WANDB_RUN_ID", "of-the-agent")
    wandb.setup()  # which remembers it
    for folder in ("a", "a/refit", "b"):
        start_wandb(RunConfig(wandb="offline"), tmp_path / folder, "train")
    start_wandb(RunConfig(wandb="offline"), tmp_path / "a", "train", "of-a-resumed-run")
    ids = [call["id"] for call in starts]
    assert ids[0] == "of-the-agent" and ids[3] == "of-a-resumed-run" and len(set(ids)) == 4 and all(ids)
    assert [call["name"] for call in starts] == ["a", "a-refit", "b", "a"]
    monkeypatch.setenv("WANDB_RUN_ID", "of-the-agent")
    start_wandb(RunConfig(wandb="offline"), tmp_path / "a", "train", "of-the-agent")  # restarted
    start_wandb(RunConfig(wandb="offline"), tmp_path / "a/refit", "refit")
    assert starts[-1]["id"] != starts[-2]["id"] == "of-the-agent"


def test_runs_are_grouped_by_benchmark_and_tagged() -> None:
    run = labelled(RunConfig(tags=("mine", "vgg16")), "CUB-200-2011", "vgg16", "Frozen", "cross", "x" * 80)
    assert run.group == "CUB-200-2011"
    assert run.tags == ("mine", "vgg16", "CUB-200-2011", "Frozen", "cross", "x" * 64)
    assert labelled(RunConfig(group="seeds"), "CUB-200-2011").group == "seeds"
    assert labelled(RunConfig(), "CUB-200-2011", notes="ten birds").notes == "ten birds"
    assert labelled(RunConfig(notes="mine"), "CUB-200-2011", notes="ten birds").notes == "mine"


class Online:
    """Replaces a wandb run."""

    id, project = "run1", "birds"

    def __init__(self, offline: bool) -> None:
        self.offline, self.summary, self.finished = offline, dict[str, Any](), False
        self.artifacts: list[tuple[wandb.Artifact, list[str]]] = []

    def log_artifact(self, artifact: wandb.Artifact, aliases: list[str]) -> None:
        self.artifacts.append((artifact, aliases))

    def finish(self) -> None:
        self.finished = True


@pytest.mark.parametrize(("offline", "upload", "uploaded"), [(False, True, 1), (True, True, 0), (False, False, 0)])
def test_the_tested_checkpoint_is_uploaded_by_online_runs(
    tmp_path: Path, offline: bool, upload: bool, uploaded: int
) -> None:
    checkpoint = tmp_path / "best.ckpt"
    checkpoint.write_bytes(b"weights")
    run: Any = Online(offline)
    summary = {"metrics": {"test/accuracy": 0.5}, "seconds": {"test": 3.0}, "tested": str(checkpoint)}
    close_wandb(run, summary, str(checkpoint) if upload else None)
    assert run.summary == {"test/accuracy": 0.5, "seconds/test": 3.0, "tested/checkpoint": str(checkpoint)}
    assert run.finished
    assert len(run.artifacts) == uploaded
    for artifact, aliases in run.artifacts:
        assert (artifact.name, artifact.type, aliases) == ("model-run1", "model", ["tested"])
        assert list(artifact.manifest.entries) == ["best.ckpt"]
        assert artifact.metadata["test/accuracy"] == 0.5


def test_the_summary_has_one_value_per_key() -> None:
    metrics = {"test/accuracy": 0.8, "val/accuracy": 0.7, "frozen/cv_accuracy_C10": 0.6, "frozen/C": 10.0}
    results = {
        "metrics": metrics, "tested": "best.ckpt", "epoch": 3, "seconds": {"test": 2.0}, "solver": "kernel",
        "intervals": {"test/accuracy": {"low": 0.75, "high": 0.85, "by": "Wilson"}},
    }  # fmt: skip
    assert summary_of(results) == {
        "test/accuracy": 0.8, "test/accuracy_low": 0.75, "test/accuracy_high": 0.85, "tested/val/accuracy": 0.7,
        "frozen/C": 10.0, "tested/checkpoint": "best.ckpt", "tested/epoch": 3, "seconds/test": 2.0, "solver": "kernel",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("found", "points"),
    [
        (
            {"frozen/cv_mAP_C100": 0.4, "frozen/cv_mAP_C0.01": 0.2, "frozen/cv_mAP_C1e-05": 0.1, "frozen/C": 100.0,
             "frozen/cv_mAP": 0.4},
            [(1e-05, 0.1), (0.01, 0.2), (100.0, 0.4)],
        ),
        ({"frozen/C": 10.0, "frozen/cv_mAP": 0.3, "frozen/logit_scale": 2.0}, [(10.0, 0.3)]),
        ({"frozen/C": 10.0, "frozen/logit_scale": 2.0}, []),  # a closing fit, which does not cross-validate
    ],
)  # fmt: skip
def test_cross_validation_is_a_curve_over_c(found: dict[str, float], points: list[tuple[float, float]]) -> None:
    assert curve_of_costs(found) == [{"frozen/C": c, "frozen/cv_mAP": value} for c, value in points]


# --- unreachable servers


@pytest.mark.parametrize("message", ["no answer in 30 seconds\nmore of it", ""])
def test_an_unreachable_server_means_offline(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], message: str
) -> None:
    started = wandb.init

    def init(**kwargs: Any) -> Any:
        if kwargs["mode"] == "online":
            raise wandb.Error(message)
        return started(**kwargs)

    monkeypatch.setattr(wandb, "init", init)
    monkeypatch.setattr("builtins.input", lambda *a: pytest.fail("asked the user"))
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    experiment = start_wandb(RunConfig(), tmp_path, "train")
    assert experiment is not None and experiment.settings.mode == "offline"
    first = message.partition("\n")[0]
    assert capsys.readouterr().out == f"wandb cannot be started online, logging offline: {first}\n"
    (folder,) = (tmp_path / "wandb").glob("offline-run-*")
    assert wandb_command(tmp_path) == f"wandb leet {folder}   (upload: wandb sync {folder})"


def test_an_error_of_an_offline_run_is_not_hidden(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(**kwargs: Any) -> None:
        raise wandb.Error("no space left")

    monkeypatch.setattr(wandb, "init", refuse)
    with pytest.raises(wandb.Error, match="no space left"):
        start_wandb(RunConfig(wandb="offline"), tmp_path, "train")


# --- commands that show a run


def test_a_run_without_wandb_shows_no_command(tmp_path: Path) -> None:
    assert wandb_command(tmp_path) is None


def test_the_latest_offline_run_is_shown_and_all_are_uploaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folders = [tmp_path / "wandb" / f"offline-run-20260101_00000{i}-x" for i in (1, 2, 3)]
    for folder, seconds in zip(folders, (10, 30, 20), strict=True):  # by its modification time, not by its name
        folder.mkdir(parents=True)
        os.utime(folder, (seconds, seconds))
    oldest_first = f"{folders[0]} {folders[2]} {folders[1]}"
    assert wandb_command(tmp_path) == f"wandb leet {folders[1]}   (upload: wandb sync {oldest_first})"


def test_an_online_run_is_shown_by_its_link(tmp_path: Path) -> None:
    (tmp_path / "wandb" / "run-20260101_000000-x").mkdir(parents=True)
    assert wandb_command(tmp_path) == f"wandb leet {tmp_path / 'wandb' / 'latest-run'}   (or in the browser)"


def test_predictions_must_be_at_least_one() -> None:
    assert RunConfig(predictions=3).predictions == 3
    with pytest.raises(CxlpError, match=r"run\.predictions is 0.*\ball\b.*none"):
        RunConfig(predictions=0)
