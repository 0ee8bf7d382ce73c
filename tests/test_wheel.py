"""The wheel: its content, and its use without a checkout."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder into which the wheel of this checkout is installed, without its dependencies."""
    folder = tmp_path_factory.mktemp("wheel")
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, "wheel", "--no-deps", "--no-build-isolation", "-w", folder, ROOT], check=True, timeout=300)
    (wheel,) = folder.glob("cxlp-*.whl")
    subprocess.run([*pip, "install", "--no-deps", "--target", folder / "site", wheel], check=True, timeout=300)
    return folder / "site"


def command(installed: Path, place: Path, *arguments: str) -> "subprocess.CompletedProcess[str]":
    """Run the installed command in a folder."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(installed), os.environ.get("PYTHONPATH", "")])}
    line = [sys.executable, str(installed / "bin" / "cxlp"), *arguments]
    return subprocess.run(line, cwd=place, env=environment, capture_output=True, text=True, timeout=300, check=False)


@pytest.mark.slow
def test_the_wheel_contains_the_package_and_the_configs(installed: Path) -> None:
    def files(folder: Path) -> set[str]:
        found = (path for path in folder.rglob("*") if path.is_file() and "__pycache__" not in path.parts)
        return {str(path.relative_to(folder)) for path in found}

    configs = {f"configs/{name}" for name in files(ROOT / "configs")}
    assert "configs/demo.yaml" in configs and "py.typed" in files(ROOT / "cxlp")
    assert files(installed / "cxlp") == files(ROOT / "cxlp") | configs


@pytest.mark.slow
def test_the_wheel_works_in_an_empty_folder(installed: Path, tmp_path: Path) -> None:
    (metadata,) = installed.glob("cxlp-*.dist-info")
    version = metadata.name.removeprefix("cxlp-").removesuffix(".dist-info")
    assert command(installed, tmp_path, "--version").stdout == f"cxlp {version}\n"
    shown = command(installed, tmp_path, "train", "--config", "demo.yaml", "--print_config")
    assert shown.returncode == 0, shown.stderr
    assert yaml.safe_load(shown.stdout)["data"]["class_path"] == "cxlp.data.demo.Demo"
    missing = command(installed, tmp_path, "train", "--config", "nowhere.yaml")
    assert missing.returncode == 2 and str(installed / "cxlp" / "configs") in missing.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_a_series_runs_with_the_wheel_alone(installed: Path, tmp_path: Path) -> None:
    (tmp_path / "data" / "folder").mkdir(parents=True)
    series = command(installed, tmp_path, "train", "--config", "folder.yaml", "--seeds", "1", "--run.name", "a")
    # The run, in its own process, reports that there are no images; the series reports that the run failed.
    assert series.returncode == 1 and "folder: no class folders in data/folder" in series.stderr
    assert "no result: seed 0" in series.stdout
