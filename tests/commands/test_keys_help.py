"""``--GROUP.help``: the parser's keys with their defaults, without importing torch."""

import re
import subprocess
import sys
from typing import Any

import pytest

from cxlp.commands.keys_help import GROUPS, keys_help
from cxlp.commands.train import main
from cxlp.data import DATA_MODULES
from cxlp.runs.arguments import CLASSES
from cxlp.runs.cli import build_parser, parse


def page(*arguments: str) -> str:
    found = keys_help(arguments)
    assert found is not None
    return found


def told(*arguments: str) -> dict[str, str]:
    """Return the keys of a page with their defaults."""
    return dict(re.findall(r"^  --([\w.]+\w) .*\(default: (.*)\)$", page(*arguments), re.M))


@pytest.mark.parametrize("group", GROUPS)
def test_keys_and_defaults_are_those_of_the_parser(group: str) -> None:
    parser = build_parser()
    defaults: Any = parser.get_defaults()
    if group == "data" or group.startswith("data."):
        defaults = parse(["--config", "demo.yaml"])
        defaults["data"] = defaults["data"]["init_args"]
        # demo.yaml and the data set have other defaults
        changed = {"data.root", *(f"data.{key}" for key in ("num_workers", "image_size", "split_seed"))}
    elif group.startswith("model.head"):
        defaults["model"]["head"] = parse(["--config", "cub200.yaml"])["model"]["head"]["init_args"]
        changed = {"model.head.size"}
    else:
        changed = set()
    found = told(f"--{group}.help")
    assert found
    for key, default in found.items():
        value = defaults[key]
        if key not in changed:
            shown = "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
            assert re.sub("[\\[\\]()' ,]", "", default) == re.sub("[\\[\\]()' ,]", "", shown), key


@pytest.mark.parametrize("path", CLASSES["model.head"])
def test_each_head_lists_its_keys(path: str) -> None:
    name = path.rpartition(".")[2]
    said = page("--model.head.help", name)
    assert said.startswith(f"model.head, {name}: ") and "--model.head.layers" in said
    options = re.split(r"^  --", said.partition("\n\n")[2].rpartition("\n\n")[0], flags=re.M)[1:]
    assert options and all("\n      " in option for option in options)  # each key has a meaning


@pytest.mark.parametrize("name", DATA_MODULES)
def test_each_data_set_lists_its_keys(name: str) -> None:
    said = page(f"--data.help={name}")
    assert "--data.root" in said and "--data.validation" in said and "(a group: --data.augment.help)" in said


def test_the_trainers_defaults_equal_those_of_a_run() -> None:
    assert told("--trainer.help")["trainer.max_epochs"] == "0"


@pytest.mark.parametrize("arguments", [["--modl.help"], ["--data.help", "Nowhere"], ["--model.frozen.help", "Folder"]])
def test_unknown_groups_and_classes_are_refused(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 2
    assert capsys.readouterr().err.startswith(f"error: {arguments[0]}")


def test_it_needs_no_torch() -> None:
    line = [sys.executable, "-X", "importtime", "train.py", "--config", "demo.yaml", "--model.help"]
    done = subprocess.run(line, capture_output=True, text=True, check=True)
    assert " torch\n" not in done.stderr and done.stdout.startswith("model: ")
