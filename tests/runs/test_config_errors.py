"""Error messages about invalid configs, from the parser of the command line."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from cxlp.commands.train import main
from cxlp.runs.cli import build_parser, parse
from cxlp.utils.errors import CxlpError
from tests.small_run import ARGUMENTS, BACKBONE, POOLING, write_pictures

DATA = "Valid: CUB200, Demo, Folder, H3D, MIT67, Table, Torchvision, VOC2007, or "
HEADS = (
    "Valid: AveragePooling, BilinearPooling, CovariancePooling, CrossLayerPooling, FisherVector, SparseFisherVector, "
    "TrainedGuidePooling, or "
)


def said(*args: str) -> str:
    """Return the error message for arguments, added to those of the demo."""
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
            "Did you mean 'run.name'? "
            "Valid in run: root, name, wandb, project, group, tags, notes, refit, resume, log_model, predictions, "
            "cost.",
        ),
        (
            "data.bach_size",
            "Did you mean 'data.batch_size'? "
            "Valid in data: root, batch_size, num_workers, augment, image_size, aspect, transform, validation, "
            "split_seed, on_broken.",
        ),
        (
            "data.augment.flips",
            "Did you mean 'data.augment.flip'? Valid in data.augment: crop_scale, flip, colour, erase, custom.",
        ),
        (
            "model.frozen.cc",
            "Did you mean 'model.frozen.c'? "
            "Valid in model.frozen: c, c_candidates, folds, pca_vectors, features, solver, store.",
        ),
        (
            "model.head.pca_dims",
            "Did you mean 'model.head.pca_dim'? Valid in model.head: "
            "pca_dim, size, stride, padding, align, channels, guide_dim, sketch, centre, whiten, spectral, zscore, "
            "channel_l2, sign, sqrt, second_root, l2, layers, views.",
        ),
        (
            "model.head.views.knd",
            "Did you mean 'model.head.views.kind'? Valid in model.head.views: kind, blocks, scale, stride.",
        ),
        (
            f"{BACKBONE[:-1]}.name",  # for an unknown group, its siblings are listed
            f"Did you mean '{BACKBONE}.name'? Valid in model: backbone, head, test_views, frozen, optimizer, start, "
            "closing_fit, cross_fit, label_smoothing, mix, mix_alpha, ema, freeze_batch_norm, recompute, compile.",
        ),
    ],
)
@pytest.mark.parametrize("by", ["argument", "file"])
def test_an_unknown_key(tmp_path: Path, key: str, sentence: str, by: str) -> None:
    if by == "argument":
        assert said(f"--{key}", "1") == f"unknown key {key}. {sentence}"
        return
    names = key.split(".")
    if key.startswith(("data.", "model.head.")):
        names.insert(1 if names[0] == "data" else 2, "init_args")
    nested: Any = 1
    for name in reversed(names):
        nested = {name: nested}
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(nested))
    assert said("--config", str(tmp_path / "mine.yaml")).startswith(f"unknown key {key}. Did you mean ")


@pytest.mark.parametrize("by", ["arguments", "file", "list"])
def test_an_option_of_another_class(tmp_path: Path, by: str) -> None:
    message = said("--data.test_fraction", "0.1")
    assert re.match(r"unknown key data\.test_fraction: Demo .*\(Folder, Table, Torchvision .*data\)", message)
    assert message.endswith(
        " Valid in data: root, batch_size, num_workers, augment, image_size, aspect, transform, validation, "
        "split_seed, on_broken."
    )
    head: Any = {"class_path": "AveragePooling", "init_args": {"guide_dim": 4}}
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump({"model": {"head": [head] if by == "list" else head}}))
    of_average = ["--model.head=AveragePooling", "--model.head.guide_dim=4"]
    message = said(*(of_average if by == "arguments" else ["--config", str(tmp_path / "mine.yaml")]))
    assert message.startswith("unknown key model.head.guide_dim: AveragePooling has no such option (")
    assert "CrossLayerPooling" in message and "FisherVector" not in message
    assert message.endswith(" Valid in model.head: zscore, sign, sqrt, l2, layers, views.")


def test_options_beside_class_path(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("model: {head: {class_path: AveragePooling, sqrt: false}}")
    assert re.match("model.head: .*class_path.*init_args$", said("--config", str(tmp_path / "mine.yaml")))


def test_a_list_of_heads_does_not_inherit_options(tmp_path: Path) -> None:
    """Its members inherit no options of the head in demo.yaml, which has ``pca_dim: 256``."""
    (tmp_path / "mine.yaml").write_text("model: {head: [CrossLayerPooling, {class_path: AveragePooling}]}")
    listed = ["--config", str(tmp_path / "mine.yaml")]
    for args in (listed, ["--model.head", '["CrossLayerPooling"]'], ["--model.head=[CrossLayerPooling]"]):
        head = parse(["--config", "demo.yaml", *args])["model"]["head"][0]
        assert (head["class_path"], head["init_args"]["pca_dim"]) == ("cxlp.CrossLayerPooling", 500)
    # the parser would give this option to the last head
    assert said(*listed, "--model.head.sqrt", "false").startswith("--model.head.sqrt: model.head is a list")
    assert parse(["--config", "demo.yaml", *listed, "--model.head=AveragePooling", "--model.head.sqrt", "false"])


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("seed_everything", "x", "int"),
        ("run.tags", "5", "list in brackets"),
        ("trainer.max_epochs", "1.5", "int (or null)"),
        ("trainer.gradient_clip_val", "x", "int or float (or null)"),
        ("data.batch_size", "1.5", "int"),
        ("data.num_workers", "many", "int (or null)"),
        ("model.frozen.folds", "two", "int"),
        (f"{POOLING}.pca_dim", "many", "int (or null)"),
        (f"{POOLING}.sqrt", "maybe", "bool"),
        (f"{BACKBONE}.layers", "conv4", "list in brackets or auto"),
    ],
)
def test_a_value_of_another_type(key: str, value: str, expected: str) -> None:
    assert said(f"--{key}", value) == f"{key} is {value!r}: expected {expected}"


def test_a_single_transform_instead_of_a_list() -> None:
    message = said("--data.augment.custom", "{class_path: torchvision.transforms.v2.RandomErasing}")
    assert message.startswith("data.augment.custom is ") and "expected a list" in message
    assert message.endswith("[{'class_path': 'torchvision.transforms.v2.RandomErasing'}]")


@pytest.mark.parametrize(
    ("key", "expected"),
    [
        ("run.wandb", "auto, online, offline or off"),
        ("data.aspect", "warp or crop"),
        ("model.frozen.c", "float or auto"),
        (f"{POOLING}.align", "strict, to_local or to_guide"),
    ],
)
def test_an_unknown_word(key: str, expected: str) -> None:
    assert said(f"--{key}", "maybe") == f"{key} is 'maybe': expected {expected}"


@pytest.mark.parametrize(
    ("key", "expected"),
    [
        ("data.batch_size", "int"),
        ("data.root", "str or Path"),
        ("data.validation", "float, auto or official"),
        ("data.augment.flip", "float"),
        ("model.frozen.c", "float or auto"),
        ("model.frozen.c_candidates", "list in brackets"),
        (f"{POOLING}.align", "strict, to_local or to_guide"),
        (f"{POOLING}.views.kind", "whole, flip, crops, blocks or regions"),
        (f"{BACKBONE}.layers", "list in brackets or auto"),
    ],
)
def test_null_for_a_required_value(key: str, expected: str) -> None:
    assert said(f"--{key}", "null") == f"{key} is null: expected {expected}"


def test_null_for_an_optional_value(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    nullable = [f"{BACKBONE}.weights", f"{POOLING}.pca_dim", "data.num_workers"]
    nullable += ["run.group", "trainer.max_epochs"]
    other = ["--data.root", "none", "--run.wandb", "off", "--trainer.accelerator", "cpu", "--trainer.logger", "false"]
    args = ["--config", "demo.yaml", *other, *(part for key in nullable for part in (f"--{key}", "null"))]
    config = parse(args)
    assert all(
        config[key.replace("data.", "data.init_args.").replace("head.", "head.init_args.")] is None for key in nullable
    )
    built = build_parser().instantiate(config)
    assert built["model"].heads[0].pca_dim is None and built["data"].num_workers is None


@pytest.mark.parametrize(
    ("key", "path", "sentence"),
    [
        ("data", "Nope", f"there is no class 'Nope'. {DATA}"),
        ("data", "CUB", f"there is no class 'CUB'. Did you mean 'CUB200'? {DATA}"),
        ("data", "Cub200", f"there is no class 'Cub200'. Did you mean 'CUB200'? {DATA}"),
        ("data", "cxlp.tasks.Frozen", f"'cxlp.tasks.Frozen' is not a subclass of ImageDataModule. {DATA}"),
        ("model.head", "Croos", f"there is no class 'Croos'. Did you mean 'CrossLayerPooling'? {HEADS}"),
        ("model.head", "torch.nn.Linear", f"'torch.nn.Linear' is not a subclass of Head. {HEADS}"),
        ("model.head", "null", f"null is not a subclass of Head. {HEADS}"),
    ],
)
def test_a_class_of_another_kind(key: str, path: str, sentence: str) -> None:
    assert said(f"--{key}", path).startswith(f"{key}: {sentence}")
    if path != "null":
        assert said(f"--{key}.class_path", path).startswith(f"{key}: {sentence}")


@pytest.mark.parametrize("value", ["null", "Nope"])
def test_a_single_value_for_a_group_of_keys(value: str) -> None:
    shown = value if value == "null" else repr(value)
    assert re.match(f"model.optimizer is {shown}.*--model.optimizer.name$", said("--model.optimizer", value))


def test_null_in_a_file_for_a_group_of_keys(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("model: {frozen: null}")
    assert said("--config", str(tmp_path / "mine.yaml")) == "model.frozen is null: expected FrozenConfig"


def test_other_errors_keep_the_parsers_message() -> None:
    assert said("--run.name") == "argument --run.name: expected one argument"


@pytest.mark.parametrize(
    ("key", "value", "sentence"),
    [
        ("seed_everything", "-3", "seed_everything is -3: "),
        ("data.num_workers", "-1", "data.num_workers is -1: it must lie between 0 and 1024, or be null"),
        (f"{BACKBONE}.image_size", "0", "the backbone's image_size is 0: set it to 1 to 16384 pixels"),
        (f"{BACKBONE}.image_size", "-3", "the backbone's image_size is -3: set it to 1 to 16384 pixels"),
    ],
)
def test_a_value_out_of_range(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    key: str,
    value: str,
    sentence: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    write_pictures(tmp_path)
    assert main([*ARGUMENTS, f"--{key}", value]) == 2
    assert f"error: {sentence}" in capsys.readouterr().err


@pytest.mark.parametrize("head", ["Head", "cxlp.heads.local.LocalHead"])
def test_an_abstract_head_is_refused(head: str) -> None:
    assert said("--model.head", head).startswith(f"model.head: {head!r} is an abstract base class. {HEADS}")


@pytest.mark.parametrize(
    ("key", "path", "words"),
    [
        ("data", "nope.Nope", ("cannot be imported", "no module 'nope'", "PYTHONPATH")),
        ("model.head", "torch.nn.Linaer", ("torch.nn", "has no 'Linaer'", "Did you mean 'Linear'")),
    ],
)
def test_a_wrong_import_path_names_the_first_missing_part(key: str, path: str, words: tuple[str, ...]) -> None:
    with pytest.raises(CxlpError) as found:
        parse(["--config", "demo.yaml", f"--{key}", path])
    assert all(word in str(found.value) for word in (f"{key} {path!r}", *words))
