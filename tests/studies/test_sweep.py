"""``configs/sweep.yaml``: the commands that wandb's agent would start are valid runs."""

from dataclasses import replace
from typing import Any

import pytest
import yaml
from wandb.sdk.launch.sweeps import utils

from cxlp.backbones.backbone import Backbone
from cxlp.commands.train import main
from cxlp.heads import CovariancePooling
from cxlp.heads.normalisation import Normalise
from cxlp.models.network import Network
from cxlp.runs.arguments import CONFIGS
from cxlp.runs.cli import model_of, parse

SWEEP: dict[str, Any] = yaml.safe_load((CONFIGS / "sweep.yaml").read_text())


def values(parameter: dict[str, Any]) -> list[Any]:
    """The values of a parameter, or the ends of its range."""
    if "value" in parameter:
        return [parameter["value"]]
    return parameter.get("values") or [parameter["min"], parameter["max"]]


def command(chosen: dict[str, Any]) -> list[str]:
    """Return the command that an agent starts, as in ``wandb_agent.Agent._command_run``."""
    parts = utils.create_sweep_command_args({"args": {key: {"value": value} for key, value in chosen.items()}})
    parts |= {"env": ["/usr/bin/env"], "interpreter": ["python"], "program": [SWEEP["program"]]}
    found: list[str] = []
    for part in utils.create_sweep_command(list(SWEEP["command"])):
        found += parts[part[2:-1]] if part.startswith("${") else [part]
    return found


def chosen_first() -> dict[str, Any]:
    """Return the first value of each parameter."""
    return {key: values(parameter)[0] for key, parameter in SWEEP["parameters"].items()}


def test_an_agent_starts_train_py_with_the_chosen_values() -> None:
    chosen = chosen_first()
    started = command(chosen)
    overlay = "--config=efficientnet_lite0.yaml"
    assert started[:5] == ["/usr/bin/env", "python", "train.py", "--config=cub200.yaml", overlay]
    config = parse(started[3:]).as_dict()
    model = model_of(parse(started[3:]))
    (head,) = model.heads
    assert head.spec()["class_path"] == chosen["model.head"]
    assert head.options()["pca_dim"] == chosen["model.head.pca_dim"]
    assert model.frozen.c == chosen["model.frozen.c"]
    assert config["data"]["init_args"]["validation"] == chosen["data.validation"] > 0  # the metric of the choice
    assert config["run"]["project"] == SWEEP["project"]


def test_each_of_its_values_is_accepted() -> None:
    choices = {key: values(parameter) for key, parameter in SWEEP["parameters"].items()}
    for head in choices["model.head"]:
        for i in range(max(map(len, choices.values()))):
            chosen = {key: options[i % len(options)] for key, options in choices.items()} | {"model.head": head}
            (made,) = model_of(parse(command(chosen)[3:])).heads
            assert made.spec()["class_path"] == head and made.options()["pca_dim"] == chosen["model.head.pca_dim"]


def test_its_operators_share_all_other_options() -> None:
    """On the search's own backbone, at the ends of each range: the same places, one root, unit length."""
    backbone = Backbone.from_config(replace(model_of(parse(command(chosen_first())[3:])).backbone, weights=None))
    places = set()
    for name in SWEEP["parameters"]["model.head"]["values"]:
        for size in SWEEP["parameters"]["model.head.pca_dim"]["values"]:
            started = command({**chosen_first(), "model.head": name, "model.head.pca_dim": size})
            (head,) = model_of(parse(started[3:])).heads
            assert Network(backbone, head, classes=3).out_features > size
            assert head.unit_length
            assert isinstance(head.normalise, Normalise)
            steps = head.normalise.steps
            roots = steps["sqrt"] + steps["spectral"] + isinstance(head, CovariancePooling)
            assert roots == 1 and not (steps["zscore"] or steps["channel_l2"] or steps["sign"]), name
            places.add(getattr(head, "size", 1))
    assert places == {1}


def test_train_py_refuses_the_sweep(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--config", "sweep.yaml"]) == 2
    assert "wandb sweep" in capsys.readouterr().err
    assert main(["--config", "swep.yaml"]) == 2
    assert "sweep.yaml" not in capsys.readouterr().err
