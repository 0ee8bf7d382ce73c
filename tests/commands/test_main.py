"""``python -m cxlp``: output and exit status."""

import importlib
import shlex
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest

import cxlp
from cxlp.__main__ import COMMANDS, main
from cxlp.data import DATA_MODULES
from cxlp.data.cub200 import CUB200
from cxlp.data.datamodule import ImageDataModule
from cxlp.utils.program import train_program


@pytest.mark.parametrize("name", DATA_MODULES)
def test_each_data_set_has_a_module_of_its_name(name: str) -> None:
    path, _, class_name = DATA_MODULES[name].rpartition(".")
    assert path == f"cxlp.data.{name}"
    assert issubclass(getattr(importlib.import_module(path), class_name), ImageDataModule)


def test_download_finds_an_existing_data_set(cub200: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["download", "cub200", "--root", str(cub200)]) == 0
    assert capsys.readouterr().out == f"CUB-200-2011: 18 train + 9 test images in {cub200}\n"


def test_download_goes_to_the_default_root(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("cxlp.data.demo.datamodule.COUNTS", {"train": 1, "test": 1})
    assert main(["download", "demo"]) == 0
    assert capsys.readouterr().out.endswith("demo: 10 train + 10 test images in data/demo\n")
    assert len(list(Path("data/demo").rglob("*.jpg"))) == 20


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["cub"], "there is no data set 'cub'. Did you mean 'cub200'?"),
        (["imagenet"], "there is no data set 'imagenet'. Valid: cub200, demo, "),
        (["folder", "--root", "nowhere"], "folder: "),
        (["demo", "--root", "."], "demo: . contains other files"),
    ],
)
def test_user_errors_have_no_traceback(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], args: list[str], said: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "thesis.txt").touch()
    assert main(["download", *args]) == 2
    assert capsys.readouterr().err.startswith(f"error: {said}")
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_an_interrupt_prints_no_traceback(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupt(self: CUB200) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(CUB200, "prepare_data", interrupt)
    assert main(["download", "cub200", "--root", str(tmp_path / "x")]) == 130
    assert capsys.readouterr().err == "interrupted\n"


@pytest.mark.parametrize("args", [[], ["download"], ["runs", "--sort"], ["compare", "--reach", "x"]])
def test_wrong_arguments_end_with_status_2(args: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(args)
    assert caught.value.code == 2
    assert "usage: python -m cxlp" in capsys.readouterr().err


def test_help_names_the_data_sets_and_an_example(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["download", "--help"])
    assert caught.value.code == 0
    text = capsys.readouterr().out
    assert "python -m cxlp download cub200" in text
    assert ", ".join(DATA_MODULES) in " ".join(text.split())


@pytest.mark.parametrize("name", [command.__name__.rpartition(".")[2] for command in COMMANDS])
def test_help_is_a_page_with_a_summary_and_examples(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    with suppress(SystemExit):
        main([name, "--help"])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith(f"usage: python -m cxlp {name}") and len(lines) <= 80
    summary = lines[lines.index("") + 1]
    assert summary[0].isupper() and len(summary) > 30
    examples = lines[lines.index("examples:") + 1 :]
    assert any(line.startswith(f"  python -m cxlp {name}") for line in examples)


@pytest.mark.parametrize(
    "arguments", [["--help"], ["--config", "a", "--data.x=1", "--version", "--run.name", "b c"], []]
)
def test_train_gets_its_arguments_unchanged(monkeypatch: pytest.MonkeyPatch, arguments: list[str]) -> None:
    given: list[list[str]] = []

    def train(args: list[str]) -> int:
        given.append(args)
        return 7

    monkeypatch.setattr("cxlp.commands.train.main", train)
    assert main(["train", *arguments]) == 7 and given == [arguments]


@pytest.mark.parametrize(
    ("script", "name", "train"),
    [
        ("/venv/bin/cxlp", "cxlp", "cxlp train"),
        ("/site/cxlp/__main__.py", "python -m cxlp", "python -m cxlp train"),
        ("train.py", "python -m cxlp", "python train.py"),
    ],
)
def test_messages_name_the_command_that_the_user_gave(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], script: str, name: str, train: str
) -> None:
    monkeypatch.setattr(sys, "argv", [script])
    assert train_program() == train
    with pytest.raises(SystemExit):
        main(["download", "--help"])
    text = capsys.readouterr().out
    assert text.startswith(f"usage: {name} download ") and f"  {name} download cub200\n" in text


def test_the_version_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["--version"])
    assert caught.value.code == 0 and capsys.readouterr().out == f"cxlp {cxlp.__version__}\n"


def test_torch_is_imported_only_where_a_command_needs_it() -> None:
    code = "import sys, cxlp.__main__; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 0


def test_it_runs_as_a_module() -> None:
    run = subprocess.run([sys.executable, "-m", "cxlp", "download", "x"], capture_output=True, text=True, timeout=120)
    assert run.returncode == 2
    assert run.stderr.startswith("error: there is no data set 'x'")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs the device /dev/full")
def test_a_full_disk_behind_standard_output_is_one_line() -> None:
    command = [sys.executable, "-m", "cxlp", "layers", "timm/test_resnet", "--json"]
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, timeout=120, check=False)
    assert done.returncode == 2 and done.stderr.startswith("error: cannot write: ") and done.stderr.count("\n") == 1


@pytest.mark.skipif(sys.platform == "win32", reason="needs a POSIX shell")
def test_a_closed_standard_output_is_no_error() -> None:
    command = f"{shlex.quote(sys.executable)} -m cxlp layers timm/test_resnet --json >&-"
    done = subprocess.run(["sh", "-c", command], stderr=subprocess.PIPE, text=True, timeout=120, check=False)
    assert (done.returncode, done.stderr) == (0, "")
