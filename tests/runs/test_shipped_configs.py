"""The shipped configs: commented, found, and run."""

import itertools
import json
import re
from pathlib import Path

import pytest
import yaml

from cxlp.commands.train import main
from cxlp.runs.arguments import CONFIGS, find_configs
from cxlp.utils.errors import CxlpError
from tests.runs.birds import NETWORK, QUIET
from tests.small_run import BACKBONE, POOLING


@pytest.mark.slow
def test_every_shipped_overlay_builds(birds: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small = [f"--{BACKBONE}.weights", "null", f"--{BACKBONE}.image_size", "96"]
    small += [f"--{POOLING}.pca_dim", "4"]
    for overlay in ("squeezenet", "vgg16", "resnet50", "efficientnet_lite0"):
        args = ["--config", "cub200.yaml", "--config", f"{overlay}.yaml", *small, *QUIET, "--run.name", overlay]
        assert main(args) == 0, overlay


RECIPES = [file for file in sorted(CONFIGS.glob("*.yaml")) if "max_epochs: " in file.read_text()]


@pytest.mark.slow
@pytest.mark.parametrize("file", RECIPES, ids=lambda file: file.name)
def test_every_shipped_recipe_trains(birds: Path, file: Path) -> None:
    begin = ["--config", "cub200.yaml", *NETWORK, *QUIET, "--run.name", "a", "--config", file.name]
    small = [f"--{BACKBONE}.weights", "null", f"--{BACKBONE}.image_size", "64"]
    small += [f"--{POOLING}.pca_dim", "4", "--model.optimizer.hold_epochs", "0.5"]
    if "guide_dim" in file.read_text():
        small += [f"--{POOLING}.guide_dim", "4"]
    assert main([*begin, *small, "--data.validation", "0.34", "--trainer.max_epochs", "1"]) == 0
    assert json.loads(Path("runs/a/metrics.json").read_text())["seconds"]["fine-tuning"] > 0


@pytest.mark.parametrize("file", sorted(CONFIGS.glob("*.yaml")), ids=lambda file: file.name)
def test_shipped_configs_explain_each_key(file: Path) -> None:
    lines = file.read_text().splitlines()
    assert lines[0].startswith("# ")
    assert "python train.py --config" in file.read_text()
    assert isinstance(yaml.safe_load(file.read_text()), dict)
    for before, line in itertools.pairwise(lines):
        is_value = re.match(r"\s*\w+:\s*[^\s#]", line) and "class_path" not in line
        assert not is_value or " # " in line or before.strip().startswith("#"), f"{line.strip()!r} has no comment"


def test_configs_are_found_by_name_here_and_beside_the_package(birds: Path) -> None:
    assert find_configs(["--config", "demo"]) == ["--config", str(CONFIGS / "demo.yaml")]
    assert find_configs(["--config=demo.yaml", "--x"]) == [f"--config={CONFIGS / 'demo.yaml'}", "--x"]
    (birds / "demo.yaml").write_text("seed_everything: 1\n")
    assert find_configs(["-c", "demo.yaml"]) == ["-c", str(birds / "demo.yaml")]  # the nearer one wins
    with pytest.raises(CxlpError, match="cub200"):
        find_configs(["--config", "cub2000"])
