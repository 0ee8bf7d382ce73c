"""The sentences for what is wrong with a config, through the parser of the command line."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from cxlp.data import DATA_MODULES
from cxlp.runs.cli import build_parser, parse
from cxlp.utils.errors import CxlpError
from tests.small_run import BACKBONE, POOLING

DATA = ", ".join(DATA_MODULES.values())


def said(*args: str) -> str:
    """What the command line says of arguments, added to those of the demo."""
    with pytest.raises(CxlpError) as error:
        parse(["--config", "demo.yaml", *args])
    return str(error.value)


@pytest.mark.parametrize(
    ("key", "sentence"),
    [
        (
            "sed_everything",
            "Did you mean 'seed_everything'? "
            "Valid: config, seed_everything, model, data, trainer, run, ckpt_path, seeds.",
        ),
        (
            "run.nam",
            "Did you mean 'run.name', 'run.tags', 'run.wandb'? "
            "Valid in run: root, name, wandb, project, group, tags, refit, log_model, cost.",
        ),
        (
            "data.bach_size",
            "Did you mean 'data.batch_size', 'data.image_size', 'data.aspect'? "
            "Valid in data: root, batch_size, num_workers, augment, image_size, aspect, validation, split_seed.",
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
            f"{BACKBONE[:-1]}.name",  # a group that is not there has no members to list
            f"Did you mean '{BACKBONE}.name', '{BACKBONE}.layers', '{BACKBONE}.weights'?",
        ),
    ],
)
@pytest.mark.parametrize("by", ["argument", "file"])
def test_an_unknown_key(tmp_path: Path, key: str, sentence: str, by: str) -> None:
    if by == "argument":
        assert said(f"--{key}", "1") == f"unknown key {key}. {sentence}"
        return
    names = key.split(".")
    if names[0] == "data":
        names.insert(1, "init_args")
    nested: Any = 1
    for name in reversed(names):
        nested = {name: nested}
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(nested))
    assert said("--config", str(tmp_path / "mine.yaml")).startswith(f"unknown key {key}. Did you mean ")


@pytest.mark.parametrize(
    ("args", "key", "chosen", "owner"),
    [
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
        (f"{POOLING}.pca_dim", "many", "int (or null)"),
        (f"{POOLING}.sqrt", "maybe", "bool"),
        (f"{BACKBONE}.layers", "conv4", "tuple"),
    ],
)
def test_a_value_of_another_type(key: str, value: str, expected: str) -> None:
    assert said(f"--{key}", value) == f"{key} is {value!r}: expected {expected}"


@pytest.mark.parametrize("layers", [["a"], ["a", "b", "c"]])
def test_a_pair_has_two(layers: list[str]) -> None:
    shown = repr(str(layers))
    assert said(f"--{BACKBONE}.layers", json.dumps(layers)) == (
        f"{BACKBONE}.layers is {shown}: expected tuple with 2 elements"
    )


@pytest.mark.parametrize(
    ("key", "expected"),
    [
        ("run.wandb", "Literal['auto', 'online', 'offline', 'off']"),
        ("data.aspect", "Literal['warp', 'crop']"),
        ("model.frozen.c", "float or Literal['auto']"),
        (f"{POOLING}.align", "Literal['strict', 'to_local', 'to_guide']"),
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
        ("model.frozen.c_candidates", "Sequence"),
        (
            f"{POOLING}.method",
            "Literal['cross', 'bilinear', 'average_local', 'average_guide', 'covariance', 'fisher', "
            "'sparse_fisher', 'trained_guide']",
        ),
        (f"{BACKBONE}.layers", "tuple"),
    ],
)
def test_null_where_there_must_be_a_value(key: str, expected: str) -> None:
    assert said(f"--{key}", "null") == f"{key} is null: expected {expected}"


def test_null_where_it_means_something(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    nullable = [f"{BACKBONE}.weights", f"{POOLING}.pca_dim", "data.num_workers"]
    nullable += ["run.group", "trainer.max_epochs"]
    other = ["--data.root", "none", "--run.wandb", "off", "--trainer.accelerator", "cpu", "--trainer.logger", "false"]
    args = ["--config", "demo.yaml", *other, *(part for key in nullable for part in (f"--{key}", "null"))]
    config = parse(args)
    assert all(config[key.replace("data.", "data.init_args.")] is None for key in nullable)
    built = build_parser().instantiate(config)
    assert built["model"].network.pooling.pca_dim is None and built["data"].num_workers is None


@pytest.mark.parametrize(
    ("key", "path", "sentence"),
    [
        ("data", "Nope", f"there is no class 'Nope'. Valid: {DATA}"),
        ("data", "cxlp.data.Nope", f"there is no class 'cxlp.data.Nope'. Valid: {DATA}"),
        ("data", "cxlp.nope.Nope", f"there is no class 'cxlp.nope.Nope'. Valid: {DATA}"),
        ("data", "cxlp.tasks.Frozen", f"cxlp.tasks.Frozen is no ImageDataModule. Valid: {DATA}"),
    ],
)
def test_a_class_that_cannot_stand_there(key: str, path: str, sentence: str) -> None:
    assert said(f"--{key}.class_path", path) == f"{key}.class_path: {sentence}"


def test_the_classes_of_data_are_named_all() -> None:
    message = said("--data.class_path", "torch.nn.Linear")
    assert message.startswith("data.class_path: torch.nn.Linear is no ImageDataModule. Valid: ")
    assert all(name in message for name in ("cxlp.data.cub200.CUB200", "cxlp.data.folder.Folder"))


@pytest.mark.parametrize("value", ["null", "Nope"])
def test_a_group_of_keys_takes_no_single_value(value: str) -> None:
    shown = value if value == "null" else repr(value)
    assert said("--model.optimizer", value) == (
        f"model.optimizer is {shown}: it is a group of keys, such as --model.optimizer.name"
    )


def test_null_in_a_file_is_no_group_of_keys(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("model: {frozen: null}")
    assert said("--config", str(tmp_path / "mine.yaml")) == "model.frozen is null: expected FrozenConfig"


def test_what_is_of_no_known_kind_keeps_the_words_of_the_parser() -> None:
    assert said("--run.name") == "argument --run.name: expected one argument"
