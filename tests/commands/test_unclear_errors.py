"""Errors that the user can fix: exit status 2, one line, before any fit, and no files left behind."""

import io
import os
import resource
import shutil
import unicodedata
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from cxlp import __main__
from cxlp.commands.train import main
from cxlp.runs.callbacks import AtomicCheckpointIO
from cxlp.utils.errors import CxlpError
from tests.networks import CLASSES, SMALL, build, write_checkpoint
from tests.small_run import ARGUMENTS, FINETUNE, write_pictures

Capture = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pictures")
    write_pictures(folder)
    return folder / "pictures"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("run") / "last.ckpt", build(backbone=SMALL, classes=CLASSES))


@pytest.fixture
def work(pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with the pictures, and a file ``taken``."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pictures").symlink_to(pictures)
    (tmp_path / "taken").write_text("x")
    return tmp_path


def there(folder: Path) -> set[Path]:
    return set(folder.rglob("*"))


def assert_said(status: int, said: str, before: set[Path], work: Path, capsys: Capture) -> None:
    captured = capsys.readouterr()
    assert status == 2
    assert captured.err.startswith("error: ") and captured.err.count("\n") == 1 and captured.out == ""
    assert said in captured.err
    assert there(work) == before


@pytest.mark.parametrize(
    ("option", "value", "said"),
    [
        *((f"model.{key}", ".nan", "is nan: give a finite") for key in ("frozen.c", "ema", "mix_alpha")),
        ("model.optimizer.warmup_epochs", ".inf", "is inf: give a finite"),
        ("trainer.gradient_clip_val", "-.inf", "is -inf: give a finite"),
        ("model.backbone.std", "[.nan, 1, 1]", "model.backbone.std is"),
        ("model.label_smoothing", "1", "model.label_smoothing is 1.0: it must lie in [0, 1)"),
        ("model.mix_alpha", "-1", "model.mix_alpha is -1.0: it must be greater than 0"),
        ("seed_everything", "5000000000", "seed_everything is 5000000000: give"),
        ("seed_everything", "-1", "seed_everything is -1: give"),
        ("seeds", "5000000000", "at most 10,000 seeds are allowed, up to 2^32 - 1"),
        ("data.num_workers", "1000000", "data.num_workers is 1000000: it must lie between 0 and 1024"),
        ("data.batch_size", str(10**30), "it must be less than 2^31"),
        ("model.backbone.image_size", "1000000000", "the backbone's image_size is 1000000000"),
        ("trainer.devices", "-1", "devices -1"),
        ("trainer.devices", "[0, 1]", "devices [0, 1]"),
        ("trainer.num_nodes", "0", "`num_nodes` must be a positive integer"),
        ("trainer.accelerator", "quantum", "invalid accelerator name"),
        ("trainer.strategy", "bogus", "invalid strategy name"),
        ("trainer.limit_train_batches", "-1.5", "invalid value -1.5 for limit_train_batches"),
        ("trainer.max_steps", "-7", "`max_steps` must be a non-negative integer or -1"),
        ("trainer.max_time", "tomorrow", "is not a valid duration"),
        ("trainer.profiler", "bogus", "`profiler` parameter"),
        ("trainer.accumulate_grad_batches", "0", "trainer.accumulate_grad_batches is 0: it must be 1 or more"),
        ("trainer.check_val_every_n_epoch", "0", "trainer.check_val_every_n_epoch is 0: it must be 1 or more"),
        ("trainer.gradient_clip_val", "-1", "trainer.gradient_clip_val is -1: it must be 0 or more"),
        ("trainer.callbacks", "[{class_path: no.such.Callback}]", "no.such"),
        ("run.name", "..", "run.name is '..'"),
        ("run.name", "a\0b", "run.name is"),
        ("run.root", "a\0b", "embedded null byte. Give another --run.root"),
        ("run.root", "taken/x", "Not a directory. Give another --run.root"),
    ],
)
def test_wrong_values(work: Path, capsys: Capture, option: str, value: str, said: str) -> None:
    before = there(work)
    assert_said(main([*ARGUMENTS, *FINETUNE, f"--{option}={value}"]), said, before, work, capsys)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "contains no keys: it is empty"),
        (b"- a\n", "contains no keys: it is ['a']"),
        (bytes(range(256)), "is not YAML"),
        (b"data:\n\tclass_path: Folder\n", "is not YAML"),
        (b"data: &a\n  class_path: Folder\n  init_args: *a\n", "is not YAML: Circular reference"),
        (b"data: " + b"{a: " * 3000 + b"1" + b"}" * 3000, "maximum nesting depth"),
        (b"data: 2020-13-45\n", "2020-13-45"),
        (b"data: !!python/object/apply:os.system ['true']\n", "is not YAML"),
        (b"null: 1\n", "the key None is not"),
        (b"run: null\n", "run is null"),
        (b"trainer: null\n", "trainer is null"),
        (b"modle: {ema: 0.5}\n", "unknown key modle"),
    ],
)
def test_broken_configs(work: Path, capsys: Capture, content: bytes, said: str) -> None:
    Path("broken.yaml").write_bytes(content)
    before = there(work)
    assert_said(main([*ARGUMENTS, "--config", "broken.yaml"]), said, before, work, capsys)


@pytest.mark.parametrize("name", ["", ".", "..", "pictures", "x" * 5000, "a\0b"])
def test_configs_that_are_not_files(work: Path, capsys: Capture, name: str) -> None:
    before = there(work)
    assert_said(main(["--config", name]), "config file not found: ", before, work, capsys)


def test_a_byte_order_mark_is_ignored(work: Path, capsys: Capture) -> None:
    Path("mine.yaml").write_bytes(b"\xef\xbb\xbfmodel: {ema: -1}\n")
    assert main([*ARGUMENTS, "--config", "mine.yaml"]) == 2
    assert "model.ema is -1.0" in capsys.readouterr().err


def test_an_unknown_mode_of_wandb(work: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "bogus")
    before = there(work)
    status = main([*ARGUMENTS, "--run.wandb", "auto"])
    assert_said(status, "WANDB_MODE is 'bogus'. Valid: online", before, work, capsys)


@pytest.mark.parametrize(
    ("command", "said"),
    [
        (["predict", "CKPT", "pictures", "--out", "pictures"], "--out pictures is a folder: name a file"),
        (["predict", "CKPT", "pictures", "--out", "no/such.csv"], "there is no folder no"),
        (["predict", "CKPT", "pictures", "--out", "/proc/x.csv"], "--out /proc/x.csv cannot be written"),
        (["predict", "CKPT", "pictures", "--out", "a\0b"], "cannot be written: embedded null byte"),
        (["predict", "CKPT", "pictures", "--out", "x" * 300], "cannot be written: File name too long"),
        (["predict", "CKPT", "pictures", "--workers", "100000"], "--workers is 100000: it must be 1,024 or less"),
        (["predict", "CKPT", "pictures", "--batch-size", str(10**25)], "it must be 2,147,483,647 or less"),
        (["predict", "taken", "pictures"], "taken is not a checkpoint of cxlp"),
        (["explain", "CKPT", "pictures", "--out", "taken"], "--out taken is a file: name a folder"),
        (["explain", "CKPT", "pictures", "--out", "taken/x"], "--out taken/x is not writable: Not a directory"),
        (["explain", "CKPT", "pictures", "--out", "/proc/x"], "--out /proc/x is not writable"),
        (["explain", "CKPT", "pictures", "--indices", "-1"], "--indices -1: the network has pooling channels 0 to"),
        (["export", "CKPT", "--format", "torch", "--out", "/proc/x.pt2"], "--out /proc/x.pt2 cannot be written"),
        (["check", "folder", "--root", "taken"], "taken is a file"),
        (["download", "demo", "--root", "/proc/demo"], "/proc"),
        (["compare", *ARGUMENTS, "--sweep", ""], "give a key and a list of values"),
        (
            ["compare", *ARGUMENTS, "--sweep", "model.frozen.c=[1]", "--out", "/proc/x"],
            "cannot create the folder /proc/x",
        ),
        (
            ["compare", *ARGUMENTS, "--sweep", "model.frozen.c=[1]", "--seeds", str(2**32)],
            "at most 10,000 seeds are allowed, up to 2^32 - 1",
        ),
    ],
)
def test_commands(work: Path, checkpoint: Path, capsys: Capture, command: list[str], said: str) -> None:
    before = there(work)
    status = __main__.main([str(checkpoint) if word == "CKPT" else word for word in command])
    assert_said(status, said, before, work, capsys)
    assert not (checkpoint.parent / "explained").exists()


class Broken:
    """A standard input that cannot be read."""

    def __iter__(self) -> Iterator[str]:
        raise OSError(9, "Bad file descriptor")


@pytest.mark.parametrize("stdin", [None, Broken()], ids=["closed before", "closed"])
@pytest.mark.parametrize("command", ["predict", "explain"])
def test_no_standard_input(
    work: Path, checkpoint: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch, command: str, stdin: Any
) -> None:
    monkeypatch.setattr("sys.stdin", stdin)
    assert __main__.main([command, str(checkpoint), "-"]) == 2
    assert capsys.readouterr().err.startswith("error: -: ")


def test_a_list_of_windows_on_the_standard_input(
    work: Path, checkpoint: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = sorted(Path("pictures").rglob("*.png"))[0]
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(f"\ufeff{image}\r\n".encode())))
    assert __main__.main(["predict", str(checkpoint), "-", "--top", "1"]) == 0
    assert capsys.readouterr().out.splitlines()[1].startswith(f"{image},")


def test_characters_that_a_terminal_cannot_print(work: Path, checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    printed = io.BytesIO()
    monkeypatch.setattr("sys.stdout", io.TextIOWrapper(printed, encoding="ascii", write_through=True))
    monkeypatch.setattr("cxlp.reports.overlays.draw_explanation", lambda *_: b"")
    image = os.fspath(sorted(Path("pictures").rglob("*.png"))[0])
    assert __main__.main(["explain", str(checkpoint), image, "--out", "ex-été"]) == 0
    assert b"ex-\\xe9t\\xe9" in printed.getvalue()


def test_a_full_disk_is_reported_when_a_checkpoint_is_written(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (work / "last.ckpt").write_bytes(b"earlier")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        with pytest.raises(CxlpError, match=r"cannot write .*last\.ckpt: .*--run\.root"):
            AtomicCheckpointIO().save_checkpoint({"x": torch.zeros(100_000)}, work / "last.ckpt")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert (work / "last.ckpt").read_bytes() == b"earlier" and not list(work.glob(".*"))


def test_class_names_in_two_unicode_forms(work: Path, capsys: Capture) -> None:
    composed = unicodedata.normalize("NFC", "café")
    for split, cafe in (("train", composed), ("test", unicodedata.normalize("NFD", composed))):
        for name in (cafe, "kind1"):
            shutil.copytree(f"pictures/{split}/kind0", work / "cafes" / split / name)
    assert main([*ARGUMENTS, "--data.root", "cafes"]) == 2
    assert "in Unicode normalisation: rename the folders" in capsys.readouterr().err
