"""Errors before torch is imported: the same values are refused as by the parser, with the same messages."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from cxlp.heads import AveragePooling
from cxlp.runs.arguments import CONFIGS, SEARCH
from cxlp.runs.cli import parse
from cxlp.runs.early import check_early
from cxlp.utils.errors import CxlpError

DEMO = ["--config", "demo.yaml"]
#: Keys and values with early errors.
WRONG = [
    ("sed_everything", "1"), ("modle.x.y", "1"), ("run.nam", "1"), ("data.bach_size", "1"), ("data.augment.flips", "1"),
    ("data.augmentt.flip", "1"), ("model.foo", "1"), ("model.frozen.cc", "1"), ("model.backbon.name", "1"),
    ("model.head.pca_dims", "1"), ("model.head.views.knd", "1"), ("data.test_fraction", "0.1"),
    ("trainer.max_epoch", "3"), ("trainer.max_epochs", "1O"), ("trainer.max_epochs", "1.5"), ("seeds", "x"),
    ("seed_everything", "x"), ("data.batch_size", "abc"), ("data.batch_size", "true"), ("data.batch_size", ""),
    ("data.num_workers", "many"), ("data.aspect", "maybe"), ("model.frozen.c", "maybe"), ("run.wandb", "maybe"),
    ("model.head.sqrt", "maybe"), ("model.head.align", "maybe"), ("trainer.barebones", "x"), ("run.cost", "1"),
    ("trainer.limit_train_batches", "x"), ("data", "CUB"), ("data", "Nope"),
    ("model.head", "Croos"),
]  # fmt: skip
#: Values that only the parser can check.
LEFT = [
    ("data", "cub200"), ("trainer.precision", "auto"),
    ("data.batch_size", "5"), ("data.batch_size", "1_0"),
    ("model.frozen.c", "1e3"), ("model.frozen.c", "auto"), ("run.cost", "True"), ("seeds", "null"), ("run.tags", "5"),
    ("model.head", "null"), ("model.head", "AveragePooling"), ("model.head", "my_package.Head"), ("data", "my.Own"),
    ("model.optimizer", "null"), ("trainer.precision", "bf16-mixed"), ("trainer.callbacks", "EarlyStopping"),
    ("trainer.callbacks.monitor", "val/loss"), ("trainer.deterministic", "warn"), ("trainer.devices", "[0, 1]"),
    ("model.backbone.layers", "[a, b]"), ("run.name", "--x y"), ("model.head.init_args.pca_dim", "3"),
    ("data.init_args.batch_size", "3"), ("model.head", '["CrossLayerPooling"]'), ("model.head", "{class_path: Nope}"),
    ("data.init_args", "{batch_size: 3}"), ("data.dict_kwargs", "{}"), ("run.refit", "no"), ("run.refit", "off"),
]  # fmt: skip


def said(check: Any, arguments: list[str]) -> str | None:
    try:
        check(arguments)
    except CxlpError as error:
        return str(error)
    return None


def as_file(folder: Path, key: str, value: str, init_args: bool) -> list[str]:
    names = key.split(".")
    if init_args and key.startswith(("data.", "model.head.")):
        names.insert(1 if names[0] == "data" else 2, "init_args")
    nested = yaml.safe_load(value) if value else value
    for name in reversed(names):
        nested = {name: nested}
    file = folder / "mine.yaml"
    file.write_text(yaml.safe_dump(nested))
    return [*DEMO, "--config", str(file)]


@pytest.mark.parametrize("by", ["two words", "one word", "file", "file without init_args"])
@pytest.mark.parametrize(("key", "value"), WRONG)
def test_wrong_keys_and_values_give_the_parsers_messages(tmp_path: Path, key: str, value: str, by: str) -> None:
    arguments = {"two words": [*DEMO, f"--{key}", value], "one word": [*DEMO, f"--{key}={value}"]}.get(by)
    arguments = arguments or as_file(tmp_path, key, value, init_args=by == "file")
    early = said(check_early, arguments)
    assert early is not None and early == said(parse, arguments)


@pytest.mark.parametrize(("key", "value"), LEFT)
def test_values_that_may_be_right_are_left_to_the_parser(key: str, value: str) -> None:
    assert said(check_early, [*DEMO, f"--{key}", value]) is None
    assert said(check_early, [*DEMO, f"--{key}={value}"]) is None


def test_options_in_a_nested_value_belong_to_the_class() -> None:
    assert "Did you mean 'data.batch_size'" in str(said(check_early, [*DEMO, "--data.init_args", "{bach_size: 3}"]))
    folder = [*DEMO, "--data", "Folder", "--data.init_args", '{"root": "nowhere"}']
    assert "nowhere does not exist" in str(said(check_early, folder))


def test_options_of_an_unknown_class_pass_to_a_later_class(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("imgs/a").mkdir(parents=True)
    Path("mine.yaml").write_text("data: {class_path: mymod.MyFolder, init_args: {root: imgs}}\n")
    assert said(check_early, ["--config", "mine.yaml", "--data", "Folder"]) is None


def test_yaml_is_read_as_the_parser_reads_it(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("run: {name: 2024-01-02, group: 2024-01-02 10:11:12}\n")
    for check in (check_early, parse):
        assert said(check, [*DEMO, "--config", str(file)]) is None


class OwnHead(AveragePooling):
    """A class that the parser knows because it has been imported."""


def test_custom_classes_may_have_short_names(tmp_path: Path) -> None:
    assert said(check_early, [*DEMO, "--model.head", "OwnHead", "--model.head.whatever", "1"]) is None
    file = tmp_path / "mine.yaml"
    file.write_text("model: {head: {class_path: mymod.MyHead}}\n")
    assert said(check_early, [*DEMO, "--config", str(file), "--model.head", "Another"]) is None
    assert "there is no class 'Another'" in str(said(check_early, [*DEMO, "--model.head", "Another"]))


def test_groups_may_be_given_by_their_class(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("run: {class_path: cxlp.runs.loggers.RunConfig, init_args: {name: x}}\n")
    for check in (check_early, parse):
        assert said(check, [*DEMO, "--config", str(file)]) is None


def test_printing_the_config_needs_no_files() -> None:
    assert said(check_early, [*DEMO, "--ckpt_path", "nowhere", "--print_config"]) is None


def test_a_key_without_a_value() -> None:
    assert str(said(check_early, [*DEMO, "--trainer.max_epoch"])).startswith("unknown key trainer.max_epoch. ")
    assert said(check_early, [*DEMO, "--run.name"]) is None


def test_the_last_named_class_determines_the_options(tmp_path: Path) -> None:
    assert said(check_early, [*DEMO, "--data", "CUB200", "--data.bbox", "true"]) is None
    assert "CUB200 has no such option" in str(said(check_early, [*DEMO, "--data", "CUB200", "--data.test_fraction=.1"]))
    averaged = [*DEMO, "--model.head", "AveragePooling"]
    assert "AveragePooling has no such option" in str(said(check_early, [*averaged, "--model.head.pca_dim", "3"]))
    assert said(check_early, [*DEMO, "--data", "my.Own", "--data.whatever", "1"]) is None


@pytest.mark.parametrize("config", sorted(path.name for path in CONFIGS.glob("*.yaml") if path.name != SEARCH))
def test_shipped_configs_pass(config: str) -> None:
    assert said(lambda a: check_early([*a, "--data", "Demo"]), ["--config", "cub200.yaml", "--config", config]) is None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--run.name", "birds/first"], "run.name is 'birds/first'"),
        (["--ckpt_path", "runs/x"], "checkpoint not found: runs/x."),
        (["--ckpt_path", "."], ". contains no checkpoint"),
        (["--model.start", "runs/x"], "model.start is 'runs/x': expected frozen, projection, scratch, or the path"),
        (["--run.refit", "x.ckpt"], "run.refit is 'x.ckpt': expected true, false, or the best checkpoint"),
        (["--model.backbone.weights", "x.pth"], "weights file not found: x.pth. Did you mean 'y.pth'?"),
        (["--data", "Folder", "--data.root", "nowhere"], "nowhere does not exist; expected nowhere/train/<class>/*"),
        (["--data", "Table", "--data.table", "nope.csv"], "table not found: "),
        (["--data", "Table", "--data.table", "nope.xlsx"], "nope.xlsx is a spreadsheet: save it as CSV"),
        (["--data", "Torchvision", "--data.name", "Flowers"], "Did you mean 'Flowers102'"),
        (["--data", "Torchvision"], "data.name is not set"),
    ],
)
def test_a_missing_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], message: str) -> None:
    monkeypatch.chdir(tmp_path)
    Path("y.pth").touch()
    assert message in str(said(check_early, [*DEMO, *arguments]))


def test_existing_files_and_special_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    for name in ("best.ckpt", "frozen.ckpt"):
        (tmp_path / "run" / "checkpoints" / name).touch()
    there = ["--ckpt_path", "run", "--model.start", "run", "--run.refit", "run/checkpoints/best.ckpt"]
    assert said(check_early, [*DEMO, *there, "--model.backbone.weights", "run/checkpoints/best.ckpt"]) is None
    gone = ["--model.start", "gone", "--run.refit", "gone.ckpt"]
    for going_on in (["--ckpt_path", "run"], ["--run.resume", "auto"], ["--seeds", "2"]):
        assert said(check_early, [*DEMO, *gone, *going_on]) is None  # such a run may no longer need them
    words = ["--ckpt_path", "null", "--model.start", "projection", "--run.refit", "True"]
    assert said(check_early, [*DEMO, *words, "--model.backbone.weights", "null"]) is None
    cub = [*DEMO, "--data", "CUB200", "--data.root"]
    for left in (["x/y"], ["run", "--data.download", "false"], ["null", "--data.download", "false"]):
        assert said(check_early, [*cub, *left]) is None
    Path("CUB_200_2011.tgz").touch()
    assert said(check_early, [*cub, "CUB_200_2011", "--data.download", "false"]) is None, "the run unpacks it"


@pytest.mark.parametrize(
    ("arguments", "status"),
    [
        (["train", "--help"], 0),
        (["train"], 2),
        (["train", *DEMO, "--trainer.max_epoch", "3"], 2),
        (["train", *DEMO, "--data.batch_size", "abc"], 2),
        (["train", "--config", "dmo.yaml"], 2),
        (["train", *DEMO, "--ckpt_path", "nowhere"], 2),
        (["train", "--config", "folder.yaml", "--data.root", "nowhere"], 2),
        (["train", "--config", "table.yaml", "--data.table", "nope.csv"], 2),
        (["train", *DEMO, "--data", "torchvision", "--data.name", "Foo"], 2),
        (["compare", "--help"], 0),
        (["compare", *DEMO, "--sweep", "model.frozen.cc=[1, 2]"], 2),
        (["compare", *DEMO, "--recipes", "none", "finetun.yaml"], 2),
        (["predict", "--help"], 0),
        (["predict", "nowhere", "a.jpg"], 2),
        (["predict", "last.ckpt", "c.jpg", "b*.jpg"], 2),
        (["explain", "--help"], 0),
        (["explain", "last.ckpt", "c.jpg"], 2),
        (["export", "nowhere", "--out", "x.onnx"], 2),
        (["export", "last.ckpt", "--out", "x.onnx", "--check", "c.jpg"], 2),
        (["check", "folder", "--root", "nowhere"], 2),
        (["check", "cub200", "--root", "nowhere"], 2),
        (["check", "cub20"], 2),
        (["download", "--help"], 0),
        (["test", "last.ckpt"], 2),
        (["test", "last.ckpt", *DEMO, "--data.rot", "x"], 2),
        (["test", "last.ckpt", *DEMO, "--run.name", "x"], 2),
        (["test", "last.ckpt", *DEMO, "--out", "/proc/x"], 2),
        (["embed", "cub200.yaml", "a.jpg", "--out", "x.npz", "--modle.x", "3"], 2),
        (["embed", "cub200.yaml", "a.jpg", "--out", "x.npz", "--data.root", "x"], 2),
    ],
)
def test_errors_need_no_torch(tmp_path: Path, arguments: list[str], status: int) -> None:
    for name in ("last.ckpt", "a.jpg"):
        (tmp_path / name).touch()
    code = (
        "import sys\nfrom cxlp.__main__ import main\ntry: status = main(sys.argv[1:])\n"
        "except SystemExit as end: status = end.code\n"
        "assert not {'torch', 'pytorch_lightning', 'sklearn'} & sys.modules.keys()\nsys.exit(status)"
    )
    environment = {"PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert done.returncode == status and "Traceback" not in done.stderr, done.stderr
    assert done.stderr.startswith("error: ") if status else done.stdout.startswith("usage: ")


@pytest.mark.parametrize("data", [["--config", "demo.yaml"], ["--data", "Demo"]])
@pytest.mark.parametrize("mode", [["--model", "FineTune"], ["--model=FineTune"]])
def test_the_name_of_the_mode_sets_epochs_and_validation(data: list[str], mode: list[str]) -> None:
    arguments = [*data, *mode]
    check_early(arguments)
    config, overlay = parse(arguments), parse(["--config", "demo.yaml", "--config", "finetune.yaml"])
    for key in ("trainer.max_epochs", "data.init_args.validation", "model.optimizer"):
        assert config[key] == overlay[key], key
    assert parse([*arguments, "--trainer.max_epochs", "3"])["trainer.max_epochs"] == 3
    assert parse([*data, "--model", "Frozen"])["trainer.max_epochs"] == 0
