"""The page of ``train.py --help``: it is short, and its keys and configs exist."""

import re
import subprocess
import sys

import pytest

from cxlp.commands.train import main
from cxlp.commands.train_help import help_page
from cxlp.runs.arguments import CONFIGS, SEARCH
from cxlp.runs.early import check_early


def test_it_fits_on_a_page() -> None:
    lines = help_page().splitlines()
    assert len(lines) <= 80 and max(len(line) for line in lines) <= 120


def test_each_shipped_config_has_a_line() -> None:
    page = help_page()
    for file in CONFIGS.glob("*.yaml"):
        assert (f"\n  {file.name} " in page) == (file.name != SEARCH)


def test_its_keys_and_values_are_accepted() -> None:
    examples = re.findall(
        r"--((?:data|model|trainer|run)\.[\w.]+|seeds|seed_everything)(?: ([a-z0-9][\w.-]*))?", help_page()
    )
    assert len(examples) > 25
    for key, value in examples:
        if not key.endswith(".help") and (key, value) != ("model.start", "runs"):
            config = {"data.table": "table.yaml", "data.name": "flowers.yaml"}.get(key, "cub200.yaml")
            own = {"data.table": __file__, "data.name": "Flowers102"}.get(key, "null")  # these two are help options
            check_early(["--config", config, f"--{key}", value or own])


@pytest.mark.parametrize("arguments", [["--help"], ["--config", "demo.yaml", "-h"]])
def test_it_is_printed(capsys: pytest.CaptureFixture[str], arguments: list[str]) -> None:
    assert main(arguments) == 0
    assert capsys.readouterr().out == help_page()


def test_help_names_train_py() -> None:
    done = subprocess.run([sys.executable, "train.py", "--help"], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("usage: python train.py --config CONFIG")


def test_help_all_lists_all_keys(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help-all"]) == 0
    said = capsys.readouterr().out
    assert "--trainer.gradient_clip_val" in said and "--model.optimizer.layer_decay" in said
