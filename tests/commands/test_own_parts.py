"""A run with a user's own head and backbone: each command imports them, or reports that it cannot."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import cxlp
from cxlp.__main__ import main
from cxlp.utils.errors import CxlpError
from cxlp.utils.importing import import_object
from tests.small_run import ARGUMENTS, write_pictures

MODULE = """
from timm import create_model

from cxlp import CrossLayerPooling


def trunk():
    return create_model("test_resnet")


class Mean(CrossLayerPooling):
    pass
"""
COMMANDS = {
    "predict": ["predict", "{run}", "pictures/test", "--out", "found.csv", "--workers", "0"],
    "test": ["test", "{run}", "--out", "tested"],
    "explain": ["explain", "{run}", "pictures/test/kind0", "--out", "explained"],
    "embed": ["embed", "{run}", "pictures/test", "--out", "found.npz", "--workers", "0"],
    "embed by config": ["embed", "{run}/config.yaml", "pictures/test", "--out", "own.npz", "--workers", "0"],
    "export": ["export", "{run}", "--out", "found.pt2", "--format", "torch"],
    "resume": ["train", "--config", "{run}/config.yaml", "--ckpt_path", "{run}"],
}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with pictures, a folder with the user's module, and a run with it."""
    folder = tmp_path_factory.mktemp("own")
    write_pictures(folder)
    (folder / "code").mkdir()
    (folder / "code" / "own_things.py").write_text(MODULE)
    return folder


@pytest.fixture
def run(place: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The run, whose module has not been imported yet."""
    monkeypatch.chdir(place)
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry != str(place)])
    if not Path("runs/mine").exists():
        with monkeypatch.context() as patch:
            patch.syspath_prepend(place / "code")
            arguments = ["own_things.trunk" if arg == "timm/test_resnet" else arg for arg in ARGUMENTS]
            assert main(["train", *arguments, "--model.head", "own_things.Mean", "--run.name", "mine"]) == 0
    sys.modules.pop("own_things", None)
    yield "runs/mine"
    sys.modules.pop("own_things", None)


@pytest.mark.parametrize("command", COMMANDS)
def test_each_command_names_the_missing_module(run: str, command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([arg.format(run=run) for arg in COMMANDS[command]]) == 2
    said = capsys.readouterr().err
    assert "'own_things." in said and "cannot be imported: there is no module 'own_things' in " in said
    assert str(Path.cwd()) in said and "own_things.py or own_things/" in said
    assert sorted(path.name for path in Path().iterdir()) == ["code", "pictures", "runs"]


@pytest.mark.parametrize("command", COMMANDS)
def test_each_command_imports_own_parts(
    run: str, command: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, place: Path
) -> None:
    monkeypatch.syspath_prepend(place / "code")
    arguments = [arg.format(run=place / run).replace("pictures", str(place / "pictures")) for arg in COMMANDS[command]]
    if command == "resume":
        assert main(arguments) == 0  # the data are relative to this folder
        return
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pictures").symlink_to(place / "pictures")
    assert main(arguments) == 0


def test_in_python(run: str, monkeypatch: pytest.MonkeyPatch, place: Path) -> None:
    with pytest.raises(CxlpError, match="there is no module 'own_things' in "):
        cxlp.load(run)
    monkeypatch.syspath_prepend(place / "code")
    assert next(cxlp.load(run).network.each_head()).name == "Mean"


def test_errors_of_imports(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(place / "code")
    with pytest.raises(CxlpError, match=r"'own_things\.Meen': own_things \(.*own_things\.py\) has no 'Meen'\. Did"):
        import_object("own_things.Meen", "head")
    with pytest.raises(CxlpError, match=r"__main__\.\w+' was defined in .* script or notebook"):
        import_object("__main__.Mean", "head")
    del sys.modules["own_things"]
