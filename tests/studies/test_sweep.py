"""``configs/sweep.yaml``: what wandb's agent would start, by wandb's own expansion of the command, is a valid run."""

from typing import Any

import pytest
import yaml
from wandb.sdk.launch.sweeps import utils

from cxlp.commands.train import main
from cxlp.heads import Head
from cxlp.runs.arguments import CONFIGS
from cxlp.runs.cli import model_of, parse
from tests.networks import build

SWEEP: dict[str, Any] = yaml.safe_load((CONFIGS / "sweep.yaml").read_text())


def values(parameter: dict[str, Any]) -> list[Any]:
    """What a parameter may be: its values, or its ends."""
    if "value" in parameter:
        return [parameter["value"]]
    return parameter.get("values") or [parameter["min"], parameter["max"]]


def command(chosen: dict[str, Any]) -> list[str]:
    """The command that an agent starts, after ``wandb_agent.Agent._command_run``."""
    parts = utils.create_sweep_command_args({"args": {key: {"value": value} for key, value in chosen.items()}})
    parts |= {"env": ["/usr/bin/env"], "interpreter": ["python"], "program": [SWEEP["program"]]}
    found: list[str] = []
    for part in utils.create_sweep_command(list(SWEEP["command"])):
        found += parts[part[2:-1]] if part.startswith("${") else [part]
    return found


def test_an_agent_starts_train_py_with_the_chosen_values() -> None:
    chosen = {key: values(parameter)[0] for key, parameter in SWEEP["parameters"].items()}
    started = command(chosen)
    assert started[:4] == ["/usr/bin/env", "python", "train.py", "--config=cub200.yaml"]
    config = parse(started[3:]).as_dict()
    model = model_of(parse(started[3:]))
    (head,) = model.heads
    assert head.spec()["class_path"] == chosen["model.head"]
    assert head.options()["pca_dim"] == chosen["model.head.pca_dim"]
    assert model.frozen.c == chosen["model.frozen.c"]
    assert config["data"]["init_args"]["validation"] == chosen["data.validation"] > 0  # what it is chosen by
    assert config["run"]["project"] == SWEEP["project"]


def test_each_of_its_values_is_accepted_and_every_network_can_be_built() -> None:
    choices = {key: values(parameter) for key, parameter in SWEEP["parameters"].items()}
    for head in choices["model.head"]:
        for i in range(max(map(len, choices.values()))):
            chosen = {key: options[i % len(options)] for key, options in choices.items()} | {"model.head": head}
            (made,) = model_of(parse(command(chosen)[3:])).heads
            assert made.spec()["class_path"] == head and made.options()["pca_dim"] == chosen["model.head.pca_dim"]
        given = made.spec()["init_args"] | {"pca_dim": 4, **({"size": 1} if "size" in made.options() else {})}
        assert build(Head.from_spec({"class_path": head, "init_args": given})).out_features > 0


def test_it_is_no_config_of_train_py(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--config", "sweep.yaml"]) == 2
    assert "wandb sweep" in capsys.readouterr().err
    assert main(["--config", "swep.yaml"]) == 2
    assert "sweep.yaml" not in capsys.readouterr().err
