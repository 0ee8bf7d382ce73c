"""Misspelt arguments: one suggestion, the valid values once, and no import of torch."""

import subprocess
import sys
from pathlib import Path

import pytest

from cxlp.__main__ import COMMANDS, main
from cxlp.commands import train
from cxlp.studies.system_names import system_names

DEMO = ["train", "--config", "demo.yaml"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["trian"], "there is no command 'trian'. Did you mean 'train'? Valid: download, check, layers, train,"),
        (["download", "cub20"], "there is no data set 'cub20'. Did you mean 'cub200'? Valid: cub200, demo, folder,"),
        (["download", "torchvision/Flowers"], "Did you mean 'Flowers102'? Valid: CIFAR10, "),
        (
            ["predict", "x", "y", "--formt", "csv"],
            "no option --formt. Did you mean '--format'? Valid: --help, ",
        ),
        (["predict", "x", "y", "--format", "cvs"], "--format is 'cvs'. Did you mean 'csv'? Valid: csv, jsonl."),
        (["runs", "--sort", "accurcy"], "--sort is 'accurcy'. Did you mean 'accuracy'? Valid: name, data,"),
        (
            ["test", "x", "--splitt", "val"],
            "option --splitt. Did you mean '--split'? Valid: --help, --split, --out.",
        ),
        (["compare", "--sistems", "CL"], "no option --sistems. Did you mean '--systems'? Valid: --help, --systems,"),
        (["compare", *DEMO[1:], "--systems", "CLL"], "unknown system 'CLL'. Did you mean 'CL'? Valid: CNN-Global,"),
        (["compare", *DEMO[1:], "--recipes", "finetun.yaml"], "Did you mean 'finetune.yaml'? Valid: aircraft.yaml,"),
        (["train", "--config", "dmo.yaml"], "Did you mean 'demo.yaml'? Valid: aircraft.yaml,"),
        (
            ["train", "--confg", "demo.yaml"],
            "unknown key confg. Did you mean 'config'? Valid: config, ",
        ),
        ([*DEMO, "--model.hed", "x"], "unknown key model.hed. Did you mean 'model.head'? Valid in model: backbone,"),
        ([*DEMO, "--model.hed.pca_dim", "3"], "Did you mean 'model.head.pca_dim'? Valid in model: backbone, head,"),
        ([*DEMO, "--model.pca_dim", "3"], "Did you mean 'model.head.pca_dim'? Valid in model: backbone, head,"),
        ([*DEMO, "--model.head.pca_dims", "3"], "Did you mean 'model.head.pca_dim'? Valid in model.head: pca_dim,"),
        ([*DEMO, "--trainer.max_epoc", "3"], "Did you mean 'trainer.max_epochs'? Valid in trainer: accelerator,"),
        ([*DEMO, "--model.head", "AvergePooling"], "Did you mean 'AveragePooling'? Valid: AveragePooling, "),
        ([*DEMO, "--data", "Fodler"], "Did you mean 'Folder'? Valid: CUB200, "),
        ([*DEMO, "--model.head.align", "strct"], "expected strict, to_local or to_guide. Did you mean 'strict'?"),
        ([*DEMO, "--model.frozen.c", "aut"], "model.frozen.c is 'aut': expected float or auto. Did you mean 'auto'?"),
        ([*DEMO, "--model.start", "frozn"], "or of a run's folder. Did you mean 'frozen'?"),
        ([*DEMO, "--trainer.precision", "bf16-mixd"], "or auto (or null). Did you mean 'bf16-mixed'?"),
        ([*DEMO, "--run.wandb", "ofline"], "expected auto, online, offline or off. Did you mean 'offline'?"),
        (["predict", "runs/birsd", "x"], "checkpoint not found: runs/birsd. Did you mean 'runs/birds'?"),
        (["layers", "tmm/resnet18"], "there is no library 'tmm'. Did you mean 'timm'? Valid: torchvision, timm."),
        ([*DEMO, "--model.backbone.name", "resnet5"], "Did you mean 'resnet50'? Valid: resnet50, "),
    ],
)
def test_one_suggestion_and_one_list(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    said: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs" / "birds").mkdir(parents=True)
    try:
        status = main(arguments)
    except SystemExit as ended:  # argparse exits
        status = int(str(ended.code))
    message = capsys.readouterr().err
    assert status == 2 and said in message, message
    assert message.startswith("error: ") and message.count("\n") == 1
    assert message.count("Did you mean") == 1 and message.count("Valid") <= 1
    assert not (tmp_path / "data").exists()  # nothing was drawn or downloaded


@pytest.mark.parametrize(
    "arguments",
    [
        ["trian"],
        ["download", "torchvision/Flowers"],
        ["compare", "--sistems", "CL"],
        ["compare", *DEMO[1:], "--systems", "CLL"],
        ["compare", "--list"],
        [*DEMO, "--model.hed", "x"],
        [*DEMO, "--model.head.align", "strct"],
        [*DEMO, "--trainer.precision", "bf16-mixd"],
        ["predict", "runs/birsd", "x"],
        ["runs", "brids", "--root", "."],
        ["dashboard", "--projct", "x"],
    ],
)
def test_no_torch_is_imported_for_it(tmp_path: Path, arguments: list[str]) -> None:
    code = f"""
import sys
from cxlp.__main__ import main
try:
    main({arguments!r})
except SystemExit:
    pass
sys.exit("torch" in sys.modules)
"""
    place = {"PYTHONPATH": str(Path.cwd()), "PATH": "/usr/bin", "HOME": str(tmp_path)}
    assert subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=place, timeout=60).returncode == 0


def test_systems_are_listed_without_a_config(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", "--list"]) == 0
    assert capsys.readouterr().out.splitlines() == system_names("caffenet", 3)
    assert main(["compare", "--list", *DEMO[1:]]) == 0
    listed = capsys.readouterr().out.splitlines()
    assert listed == system_names("efficientnet_lite0", 1) and "CL, 3x3" in listed
    assert main(["compare", *DEMO[1:], "--sweep", "model.frozen.c=[1, 10]", "--list"]) == 0
    assert capsys.readouterr().out == "1\n10\n"


@pytest.mark.parametrize("command", [c.__name__.rpartition(".")[2] for c in COMMANDS if c.run is not train.run])
def test_each_command_knows_its_options(capsys: pytest.CaptureFixture[str], command: str) -> None:
    with pytest.raises(SystemExit):
        main([command, "--help"])
    page = capsys.readouterr().out
    needed = {
        "predict": ["x", "y"],
        "explain": ["x", "y"],
        "embed": ["x", "y", "--out", "z"],
        "export": ["x", "--out", "z"],
    }
    with pytest.raises(SystemExit):
        main([command, *needed.get(command, ["x"] * (command not in ("compare", "dashboard"))), "--hlp"])
    said = capsys.readouterr().err
    assert "there is no option --hlp. Did you mean '--help'? Valid: --help" in said
    listed = said.partition("Valid: ")[2].strip().rstrip(".").split(", ")
    assert listed == [option for option in listed if option in page] and len(listed) > 1
