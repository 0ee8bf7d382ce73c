"""``cxlp.train``: the command line from Python, with data and classes of the user's script."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import wandb
import yaml

import cxlp
from cxlp.commands.train import main
from cxlp.runs.arguments import load_yaml
from cxlp.runs.overrides import as_arguments
from cxlp.runs.stages import Run
from cxlp.utils.errors import CxlpError
from tests.small_run import ARGUMENTS, metrics, prepared

#: The small run's arguments as keys.
KEYS: dict[str, Any] = {
    key.removeprefix("--"): load_yaml(value) for key, value in zip(ARGUMENTS[2::2], ARGUMENTS[3::2], strict=True)
} | {"run.wandb": "off"}  # YAML reads off as a boolean; here it is the string


def train(name: str, **more: Any) -> cxlp.RunResult:
    return cxlp.train("folder.yaml", {**KEYS, "run.name": name, **more})


def test_python_and_the_command_line_agree(work: Path) -> None:
    command = prepared("command")
    result = train("python")
    assert result.folder == Path("runs/python")
    assert result.metrics == metrics(command)["metrics"] and result.images == {"train": 18, "val": 0, "test": 9}
    interval = result.intervals["test/accuracy"]
    assert interval.low <= result.metrics["test/accuracy"] <= interval.high and interval.by == "Wilson"
    files = [sorted(str(f.relative_to(run)) for f in run.rglob("*")) for run in (command, result.folder)]
    assert files[0] == files[1]
    assert all(path.is_file() for path in (result.checkpoint, result.report, result.predictions))
    config, other = ((run / "config.yaml").read_text() for run in (result.folder, command))
    assert config.replace("python", "command") == other
    # the model is that of the test
    rows = pd.read_csv(result.predictions)
    found = result.model.predict([str(Path("pictures") / path) for path in rows["path"]], top=1)
    assert [each.classes[0] for each in found] == rows["class_1"].tolist()
    assert "test/accuracy" in repr(result) and "Wilson" in result._repr_html_()
    again = cxlp.RunResult("runs/python")
    assert again.metrics == result.metrics and again.failed == ()


def test_nested_keys_and_objects(work: Path) -> None:
    nested: dict[str, Any] = {}
    for key, value in KEYS.items():
        *groups, name = key.split(".")
        place = nested
        for group in groups:
            place = place.setdefault(group, {})
        place[name] = value
    nested["data"] |= {"root": work / "pictures", "batch_size": np.int64(4)}
    nested["model"]["head"] = cxlp.BilinearPooling(
        pca_dim=3, sqrt=False
    )  # replaces the config's head, with all its options
    nested["run"] = {"name": "nested", "wandb": "off"}
    result = cxlp.train(["folder.yaml"], nested)
    head = next(result.model.network.each_head())
    assert head.spec() == cxlp.BilinearPooling(pca_dim=3, sqrt=False).spec()
    saved = yaml.safe_load((result.folder / "config.yaml").read_text())
    assert saved["data"]["init_args"]["root"] == str(work / "pictures")
    by_class = {**KEYS, "data": {"class_path": "Folder", "init_args": {"root": "pictures"}}, "run.name": "by_class"}
    by_class |= {"model.head": cxlp.AveragePooling}
    del by_class["data.root"], by_class["model.head.pca_dim"]
    assert cxlp.train((), by_class).model.network.out_features == 192


def frame(of: str) -> pd.DataFrame:
    """The pictures as rows of a table; their labels as texts or as lists."""
    rows = []
    for path in sorted(Path("pictures").rglob("*.png")):
        label = path.parent.name
        labels = {"label": label} if of == "label" else {"labels": [label, "it; all"]}
        rows.append({"path": str(path), **labels, "split": path.parts[1]})
    return pd.DataFrame(rows)


def test_a_data_frame(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    keys = {key: value for key, value in KEYS.items() if key != "data.root"}
    table = frame("label")
    result = cxlp.train("table.yaml", {**keys, "data.table": table, "run.name": "frame"})
    assert result.metrics == metrics(prepared("folder"))["metrics"]
    # its config names a file: any later process finds the rows
    saved = yaml.safe_load((result.folder / "config.yaml").read_text())["data"]["init_args"]
    pd.testing.assert_frame_equal(pd.read_csv(saved["table"]), table)
    assert main(["--config", "runs/frame/config.yaml", "--run.name", "again"]) == 0
    assert metrics(Path("runs/again"))["metrics"] == result.metrics
    assert as_arguments((), {"data.table": table})[0] == f"--data.table={saved['table']}"
    # lists of labels are joined by a separator that no label contains
    several = as_arguments((), {"data": {"table": frame("labels"), "root": work}})
    assert "--data.separator=|" in several and f"--data.root={work}" in several
    written = Path(several[0].partition("=")[2]).read_text()
    assert "kind0|it; all" in written
    with pytest.raises(CxlpError, match=r"data\.table.*; \| , / #"):
        as_arguments((), {"data.table": pd.DataFrame({"path": ["a"], "labels": [[";|,/#"]]})})


@pytest.mark.parametrize(
    ("config", "keys", "said"),
    [
        ("nix.yaml", {}, "config file not found: nix.yaml"),
        ("folder.yaml", {"data.rot": 1}, r"unknown key data\.rot\. Did you mean 'data\.root'"),
        ("folder.yaml", {"model": {"head": {"pca_dim": "x"}}}, r"pca_dim is 'x': expected int \(or null\)"),
        ("folder.yaml", {"data.root": "nowhere"}, "folder: .*nowhere does not exist"),
        ("folder.yaml", {**KEYS, "model.head.pca_dim": 9999}, "pca_dim is 9999, but a local feature has 48"),
        ("folder.yaml", {**KEYS, "trainer.strategy": "ddp_spawn"}, "ddp_spawn: forked and spawned processes"),
        ("folder.yaml", {**KEYS, "trainer.strategy": "ddp_notebook"}, "ddp_notebook: forked and spawned processes"),
    ],
)
def test_errors_equal_those_of_the_command(
    work: Path, capfd: pytest.CaptureFixture[str], config: str, keys: dict[str, Any], said: str
) -> None:
    with pytest.raises(CxlpError, match=said) as caught:
        cxlp.train(config, keys)
    assert main(as_arguments(config, keys)) == 2
    assert capfd.readouterr().err.splitlines()[-1] == f"error: {caught.value}"
    assert not Path("runs").exists()


@pytest.mark.parametrize(
    ("config", "keys", "said"),
    [
        ((), {}, "there is nothing to run"),
        ({"data.root": "x"}, None, "dictionary.*config's name.*train"),
        (5, {}, "config is 5: .*list"),
        (["folder.yaml", 5], {}, r"config is \['folder\.yaml', 5\]"),
        ("folder.yaml", ["data.root"], r"overrides is \['data\.root'\].*dictionary"),
        ("folder.yaml", {"trainer.callbacks": [Path, object()]}, r"trainer\.callbacks is an object of class object"),
        ("folder.yaml", {"data.root": "tests", "seeds": 3}, "seeds.*command line.*seed_everything"),
    ],
)
def test_errors_that_only_python_can_cause(config: Any, keys: Any, said: str) -> None:
    with pytest.raises(CxlpError, match=said):
        cxlp.train(config, keys)


def test_several_processes_in_a_notebook(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "ps1", ">>> ", raising=False)
    monkeypatch.setattr("pytorch_lightning.trainer.connectors.accelerator_connector._IS_INTERACTIVE", True)
    for strategy in ("auto", "ddp"):
        with pytest.raises(CxlpError, match=r"a notebook can only fork processes.*!cxlp train .*RunResult"):
            train("many", **{"trainer.devices": 2, "trainer.strategy": strategy})
    assert train("one").metrics


@pytest.mark.parametrize("end", [KeyboardInterrupt(), SystemExit(1)])
def test_an_interruption_explains_how_to_resume(
    work: Path, monkeypatch: pytest.MonkeyPatch, end: BaseException
) -> None:
    def stop(self: Run, stage: Any) -> None:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # as Lightning leaves it
        if isinstance(end, SystemExit):
            try:
                raise KeyboardInterrupt
            except KeyboardInterrupt:
                raise end  # noqa: B904 (as Lightning does)
        raise end

    handler = signal.getsignal(signal.SIGINT)
    with monkeypatch.context() as patched:
        patched.setattr(Run, "test", stop)
        with pytest.raises(KeyboardInterrupt, match=r"interrupted.* cxlp\.train\(") as caught:
            train("stopped")
    assert signal.getsignal(signal.SIGINT) is handler
    result = eval("cxlp" + str(caught.value).partition("cxlp")[2], {"cxlp": cxlp})
    assert result.folder == work / "runs" / "stopped" and result.metrics == metrics(prepared("whole"))["metrics"]


def test_missing_results(tmp_path: Path) -> None:
    with pytest.raises(CxlpError, match=rf"{tmp_path}.*no results.*metrics\.json"):
        cxlp.RunResult(tmp_path)
    found = {"metrics": {"test/accuracy": 0.5}, "images": {}, "seconds": {}, "tested": "final weights"}
    (tmp_path / "metrics.json").write_text(json.dumps({**found, "outputs": {"failed": ["report.html"]}}))
    result = cxlp.RunResult(tmp_path)
    assert result.failed == ("report.html",)
    with pytest.raises(CxlpError, match="has no tested checkpoint"):
        _ = result.model


def test_a_failed_runs_wandb_run_is_not_reused(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(self: Run, stage: Any) -> None:
        raise CxlpError("no test today")

    with monkeypatch.context() as patched:
        patched.setattr(Run, "test", stop)
        with pytest.raises(CxlpError, match="no test today"):
            train("first", **{"run.wandb": "offline"})
    assert list(Path("runs/first/wandb").glob("offline-run-*")) and wandb.run is None


def test_an_earlier_interruption_does_not_end_this_run(work: Path) -> None:
    try:
        raise KeyboardInterrupt
    except KeyboardInterrupt:
        with pytest.raises(CxlpError, match="unknown key"):
            train("again", **{"data.rot": "pictures"})


SCRIPT = """
import multiprocessing, os
multiprocessing.set_start_method({start!r})
import cxlp
def say(*words):  # a line is one write: those of two processes never mix
    os.write(1, (" ".join(map(str, words)) + "\\n").encode())
result = cxlp.train("folder.yaml", {{**{keys!r}, "run.name": "script", **{more!r}}})
say("accuracy", result.metrics["test/accuracy"])
"""
#: After it, in the same processes: another run, and a run with an error.
MORE = """
import time
from cxlp.utils import processes
processes.GRACE = 0.2
again = cxlp.train("runs/script/config.yaml", {"run.name": "again"})
say(again.folder, again.metrics == result.metrics)
try:
    cxlp.train("runs/script/config.yaml", {"run.nam": "wrong"})
except cxlp.CxlpError:
    time.sleep(1)
say("goes on")
"""


def script(start: str, behind: str = "", **more: Any) -> "subprocess.CompletedProcess[str]":
    """Run a script without ``if __name__ == "__main__"``."""
    Path("script.py").write_text(SCRIPT.format(start=start, keys=KEYS, more=more) + behind)
    environment = {**os.environ, "PYTHONPATH": str(Path(cxlp.__file__).parents[1])}
    return subprocess.run(
        [sys.executable, "script.py"], capture_output=True, text=True, env=environment, timeout=300, check=False
    )


@pytest.mark.slow
def test_a_spawning_script_without_a_guard_is_explained(work: Path) -> None:
    ended = script("spawn", "", **{"data.num_workers": 1})
    assert ended.returncode == 1
    last = ended.stderr.strip().splitlines()[-1]
    assert last.startswith("cxlp.utils.errors.CxlpError: ") and "__main__" in last and "data.num_workers" in last
    assert 'if __name__ == "__main__":' in ended.stderr
    assert script("spawn").returncode == 0


@pytest.mark.slow
def test_each_of_two_processes_has_the_result(work: Path) -> None:
    ended = script("fork", MORE, **{"data.num_workers": 1, "trainer.devices": 2, "trainer.strategy": "ddp"})
    assert ended.returncode == 0, ended.stderr
    expected = metrics(prepared("one"))["metrics"]["test/accuracy"]
    said = [line for line in ended.stdout.splitlines() if line.startswith("accuracy")]
    assert said == [f"accuracy {expected}"] * 2
    lines = ended.stdout.splitlines()
    assert lines.count("runs/again True") == lines.count("goes on") == 2
    assert sorted(path.name for path in Path("runs").iterdir()) == ["again", "one", "script"]
