"""The scripts of examples/ run on a few of the demo's birds, offline and with a tiny backbone."""

import runpy
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torchvision

from tests.data.torchvision_copies import flowers

FOLDER = Path(__file__).parents[1] / "examples"
#: The backbone of the scripts, and its replacement here.
BACKBONE = '"efficientnet_lite0", layers=("blocks.6.0", "conv_head")'
SMALL = '"timm/test_resnet", layers=("layer3.0.conv2", "layer3"), weights=None, image_size=32'
SCRIPTS = sorted(FOLDER.glob("*.py"))


@pytest.fixture(autouse=True)
def few_birds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Work in an empty folder, where the demo has five training images and one test image per species."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("cxlp.data.demo.datamodule.ProcessPoolExecutor", lambda *_, **__: ThreadPoolExecutor(1))
    monkeypatch.setattr("cxlp.data.demo.datamodule.COUNTS", {"train": 5, "test": 1})


def run(name: str, *arguments: str) -> None:
    before = sys.argv
    sys.argv = [name, *arguments]
    try:
        with tempfile.TemporaryDirectory() as folder:
            script = Path(folder, name)
            script.write_text((FOLDER / name).read_text().replace(BACKBONE, SMALL).replace("pca_dim=128", "pca_dim=8"))
            runpy.run_path(str(script), run_name="__main__")
    finally:
        sys.argv = before


def test_each_example_is_on_the_site_and_tested() -> None:
    own = Path(__file__).read_text()
    assert len(SCRIPTS) == 5
    for script in SCRIPTS:
        assert len(script.read_text().splitlines()) <= 40, script
        assert f'run("{script.name}"' in own


@pytest.mark.slow
def test_the_head_in_plain_pytorch(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def random_weights(*_: Any, **__: Any) -> Any:
        return torchvision.models.squeezenet1_0().state_dict()

    monkeypatch.setattr(torchvision.models.SqueezeNet1_0_Weights, "get_state_dict", random_weights)
    run("head_in_pytorch.py")
    assert "of 10 test images right" in capsys.readouterr().out


@pytest.mark.slow
def test_plain_lightning(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run("plain_lightning.py")
    said = capsys.readouterr().out
    (best,) = (tmp_path / "runs" / "plain_lightning").rglob("*.ckpt")
    assert f"{best.relative_to(tmp_path)} holds 1,536 features" in said and "test/accuracy" in said


@pytest.mark.slow
def test_frozen_on_a_data_set_of_torchvision(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    flowers(tmp_path / "data" / "torchvision", monkeypatch)
    run("frozen_torchvision.py")
    assert "test/accuracy" in capsys.readouterr().out


@pytest.mark.slow
def test_nearest_neighbours(capsys: pytest.CaptureFixture[str]) -> None:
    run("nearest_neighbours.py")
    lines = capsys.readouterr().out.splitlines()
    assert sum(line.startswith("  0.") for line in lines) == 12  # three of each of four


@pytest.mark.slow
def test_an_explained_image(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from tests.small_run import run as train
    from tests.small_run import write_pictures

    write_pictures(tmp_path)
    train("NAME")
    capsys.readouterr()
    run("explain_image.py", "runs/NAME", "pictures/test/kind0/00.png")
    said = capsys.readouterr().out
    assert said.startswith("pictures/test/kind0/00.png: kind") and Path("explained.png").is_file()
