"""The precision of a run's stages."""

from pathlib import Path
from typing import Any

import pytest
import torch
from pytorch_lightning.accelerators import CUDAAccelerator

from cxlp.models.checkpoint import read_checkpoint
from cxlp.runs import opening
from cxlp.runs.cli import parse
from cxlp.runs.trainers import describe_precision, without_gradients
from cxlp.utils.precision import Precision
from tests.small_run import ARGUMENTS, FINETUNE, run, write_pictures


@pytest.fixture
def hardware(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Set the fastest precision of this machine."""

    def say(name: Any) -> None:
        monkeypatch.setattr(opening, "without_gradients", lambda trainer: Precision(name, "the test says so"))

    return say


def precisions(folder: Path, *names: str) -> list[str]:
    """Return the precision in the checkpoints."""
    return [read_checkpoint(folder / "checkpoints" / f"{name}.ckpt")["cxlp_run"]["precision"] for name in names]


def test_without_gradients_the_fastest_precision_is_used_and_printed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hardware: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    write_pictures(tmp_path)
    hardware("bf16-mixed")
    folder = run("auto", *FINETUNE, "--trainer.precision", "auto")
    assert precisions(folder, "frozen", "last") == ["bf16-mixed", "32-true"]
    assert "precision   bf16-mixed, since the test says so; gradient epochs 32-true\n" in capsys.readouterr().out
    folder = run("given", "--trainer.precision", "32-true")
    assert precisions(folder, "frozen") == ["32-true"]
    assert "precision   32-true, as given\n" in capsys.readouterr().out


def test_a_run_is_tested_in_the_precision_of_its_fit_also_on_another_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hardware: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    write_pictures(tmp_path)
    hardware("bf16-mixed")
    folder = run("moved")
    before = (folder / "metrics.json").read_text()
    (folder / "metrics.json").unlink()
    hardware("32-true")
    capsys.readouterr()
    run("moved", "--ckpt_path", str(folder))
    assert "Testing in bf16-mixed" in capsys.readouterr().out
    assert '"test/accuracy"' in before


def test_accelerators(monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = [*ARGUMENTS, "--trainer.accelerator", "auto"]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(CUDAAccelerator, "parse_devices", lambda given: {"1": [0], "1,": [1], -1: [0, 1]}[given])
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 6))
    assert without_gradients(parse(arguments)["trainer"]).name == "bf16-mixed"
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 0))
    assert without_gradients(parse(arguments)["trainer"]).name == "32-true"
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7 + device.index, 0))  # two GPUs
    assert without_gradients(parse([*arguments, "--trainer.devices", "1,"])["trainer"]).name == "bf16-mixed"
    both = without_gradients(parse([*arguments, "--trainer.devices", "auto"])["trainer"])
    assert both == ("32-true", "CUDA 7.0 does not support bfloat16")
    other = without_gradients(parse([*arguments, "--trainer.accelerator", "tpu"])["trainer"])
    assert other.name == "32-true" and "accelerator tpu" in other.why
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": True}, raising=False)
    assert without_gradients(parse(ARGUMENTS)["trainer"]).name == "bf16-mixed"  # accelerator cpu


def test_a_precision_plugin_is_described() -> None:
    found = Precision("bf16-mixed", "the test says so")
    plugin = "--trainer.plugins+=pytorch_lightning.plugins.precision.DoublePrecision"
    trainer = parse([*ARGUMENTS, plugin])["trainer"]
    assert describe_precision(trainer, found) == "set by the plugin DoublePrecision"
    other = "--trainer.plugins+=pytorch_lightning.plugins.io.TorchCheckpointIO"
    trainer = parse([*ARGUMENTS, other])["trainer"]
    assert describe_precision(trainer, found) == "bf16-mixed, since the test says so"
