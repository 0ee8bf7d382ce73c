"""The sentences for what is wrong with a config, through the parser of the command line."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from cxlp.runs.arguments import find_configs, nested_as_configs
from cxlp.runs.cli import CLI
from cxlp.tasks import Frozen
from cxlp.utils.errors import CxlpError

TASKS = "cxlp.tasks.Frozen, cxlp.tasks.FineTune"


def said(*args: str) -> str:
    """What the command line says of arguments, added to those of the demo."""
    with pytest.raises(CxlpError) as error:
        CLI(nested_as_configs(find_configs(["--config", "demo.yaml", *args])))
    return str(error.value)


@pytest.mark.parametrize(
    ("key", "sentence"),
    [
        (
            "sed_everything",
            "Did you mean 'seed_everything'? Valid: config, seed_everything, model, data, ckpt_path, seeds.",
        ),
        (
            "run.nam",
            "Did you mean 'run.name', 'run.tags', 'run.wandb'? "
            "Valid in run: root, name, wandb, project, group, tags, refit, log_model, cost.",
        ),
        (
            "data.bach_size",
            "Did you mean 'data.batch_size', 'data.image_size', 'data.aspect'? "
            "Valid in data: root, batch_size, num_workers, image_size, aspect, validation, split_seed.",
        ),
        (
            "data.augment.flips",
            "Did you mean 'data.augment.flip', 'data.augment.erase', 'data.augment.colour'? "
            "Valid in data.augment: crop_scale, flip, colour, erase.",
        ),
        (
            "model.frozen.cc",
            "Did you mean 'model.frozen.c', 'model.frozen.store', 'model.frozen.folds'? "
            "Valid in model.frozen: c, c_candidates, folds, pca_vectors, features, store.",
        ),
        (
            "model.network.backbon.name",  # a group that is not there has no members to list
            "Did you mean 'model.network.backbone.name', 'model.network.backbone.layers', "
            "'model.network.backbone.weights'?",
        ),
    ],
)
@pytest.mark.parametrize("by", ["argument", "file"])
def test_an_unknown_key(tmp_path: Path, key: str, sentence: str, by: str) -> None:
    if by == "argument":
        assert said(f"--{key}", "1") == f"unknown key {key}. {sentence}"
        return
    names = key.split(".")
    if names[0] in ("model", "data"):
        names.insert(1, "init_args")
    nested: Any = 1
    for name in reversed(names):
        nested = {name: nested}
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(nested))
    assert said("--config", str(tmp_path / "mine.yaml")).startswith(f"unknown key {key}. Did you mean ")


@pytest.mark.parametrize(
    ("args", "key", "chosen", "owner"),
    [
        (["--model.start", "scratch"], "model.start", "cxlp.tasks.Frozen", "cxlp.tasks.FineTune"),
        (["--model.optimizer.name", "sgd"], "model.optimizer.name", "cxlp.tasks.Frozen", "cxlp.tasks.FineTune"),
        (["--model.optimizer", "{name: sgd}"], "model.optimizer", "cxlp.tasks.Frozen", "cxlp.tasks.FineTune"),
        (["--data.bbox", "true"], "data.bbox", "cxlp.data.demo.Demo", "cxlp.data.cub200.CUB200"),
        (["--data.test_fraction", "0.1"], "data.test_fraction", "cxlp.data.demo.Demo", "cxlp.data.folder.Folder"),
    ],
)
def test_a_key_of_another_class(args: list[str], key: str, chosen: str, owner: str) -> None:
    place = key.partition(".")[0]
    assert said(*args) == f"unknown key {key}: {chosen} has none, {owner} has; choose it by {place}.class_path"


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("seed_everything", "x", "bool or int"),
        ("run.tags", "5", "tuple"),
        ("trainer.max_epochs", "1.5", "int (or null)"),
        ("trainer.gradient_clip_val", "x", "int or float (or null)"),
        ("data.batch_size", "1.5", "int"),
        ("data.num_workers", "many", "int (or null)"),
        ("model.frozen.folds", "two", "int"),
        ("model.network.pooling.pca_dim", "many", "int (or null)"),
        ("model.network.pooling.sqrt", "maybe", "bool"),
        ("model.network.backbone.layers", "conv4", "tuple"),
    ],
)
def test_a_value_of_another_type(key: str, value: str, expected: str) -> None:
    assert said(f"--{key}", value) == f"{key} is {value!r}: expected {expected}"


@pytest.mark.parametrize("layers", [["a"], ["a", "b", "c"]])
def test_a_pair_has_two(layers: list[str]) -> None:
    shown = repr(str(layers))
    assert said("--model.network.backbone.layers", json.dumps(layers)) == (
        f"model.network.backbone.layers is {shown}: expected tuple with 2 elements"
    )


@pytest.mark.parametrize(
    ("key", "expected"),
    [
        ("run.wandb", "Literal['auto', 'online', 'offline', 'off']"),
        ("data.aspect", "Literal['warp', 'crop']"),
        ("model.frozen.c", "float or Literal['auto']"),
        ("model.network.pooling.align", "Literal['strict', 'to_local', 'to_guide']"),
    ],
)
def test_none_of_the_words_that_are_known(key: str, expected: str) -> None:
    assert said(f"--{key}", "maybe") == f"{key} is 'maybe': expected {expected}"


@pytest.mark.parametrize(
    ("key", "expected"),
    [
        ("data.batch_size", "int"),
        ("data.root", "str or Path"),
        ("data.validation", "float or Literal['official']"),
        ("data.augment.flip", "float"),
        ("model.frozen.c", "float or Literal['auto']"),
        ("model.frozen.c_candidates", "Sequence[float]"),
        (
            "model.network.pooling.method",
            "Literal['cross', 'bilinear', 'average_local', 'average_guide', 'covariance', 'fisher', "
            "'sparse_fisher', 'trained_guide']",
        ),
        ("model.network.backbone.layers", "tuple[str, str]"),
        ("model.network.backbone", "BackboneConfig"),
    ],
)
def test_null_where_there_must_be_a_value(key: str, expected: str) -> None:
    assert said(f"--{key}", "null") == f"{key} is null: expected {expected}"


def test_null_where_it_means_something(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    nullable = ["model.network.backbone.weights", "model.network.pooling.pca_dim", "data.num_workers"]
    nullable += ["run.group", "trainer.max_epochs"]
    other = ["--data.root", "none", "--run.wandb", "off", "--trainer.accelerator", "cpu", "--trainer.logger", "false"]
    args = ["--config", "demo.yaml", *other, *(part for key in nullable for part in (f"--{key}", "null"))]
    cli = CLI(nested_as_configs(find_configs(args)))
    assert isinstance(cli.model, Frozen) and cli.model.network.projection is None
    assert cli.datamodule.num_workers is None


@pytest.mark.parametrize(
    "path",
    ["Nope", "cxlp.tasks.Nope", "cxlp.nope.Nope", "cxlp.data.demo.Demo"],  # the last one is a class, of another kind
)
def test_a_class_that_cannot_stand_there(path: str) -> None:
    message = said("--model.class_path", path)
    assert message.startswith(f"model.class_path is {path!r}") and message.endswith(f"Valid: {TASKS}")


def test_the_classes_of_data_are_named_all() -> None:
    message = said("--data.class_path", "torch.nn.Linear")
    assert message.startswith("data.class_path is 'torch.nn.Linear'")
    assert all(name in message for name in ("cxlp.data.cub200.CUB200", "cxlp.data.folder.Folder"))


def test_what_is_of_no_known_kind_keeps_the_words_of_the_parser() -> None:
    assert said("--run.name") == "argument --run.name: expected one argument"
