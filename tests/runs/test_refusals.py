"""Arguments that ``train.py`` refuses, and its error messages."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cxlp.commands.train import main
from cxlp.utils.locking import hold, let_go_all
from tests.generate import write_cub200
from tests.runs.birds import FINETUNE, NETWORK, QUIET, made, run
from tests.small_run import BACKBONE, POOLING


@pytest.mark.parametrize(
    ("mode", "change", "said"),
    [
        ([], [f"--{POOLING}.pca_dim", "9"], f"{POOLING}.pca_dim is 9, but the checkpoint's run had 8"),
        ([], ["--data.root", "other/CUB_200_2011"], "the classes of the data differ"),
        ([], ["--trainer.max_epochs", "1", "--model.closing_fit", "true"], "model.closing_fit is True"),
        ([], ["--data.validation", "0.34"], "the training images differ"),
        ([], ["--data.aspect", "crop"], "data.aspect is 'crop', but the checkpoint's run had 'warp'"),
        ([], ["--data.bbox", "true"], "data.bbox is True, but the checkpoint's run had False"),
        (FINETUNE, ["--data.split_seed", "5"], "held-out images may have been trained on"),
        (FINETUNE, ["--data.validation", "0.5"], "held-out images may have been trained on"),
        (
            FINETUNE,
            ["--model.optimizer.backbone_lr", "0.5"],
            "model.optimizer.backbone_lr is 0.5, but the checkpoint's run had 0.0005",
        ),
    ],
)
def test_a_resumption_must_be_of_the_same_run(
    birds: Path, capsys: pytest.CaptureFixture[str], mode: list[str], change: list[str], said: str
) -> None:
    write_cub200(birds / "other", classes=2)
    made("a", *mode)
    before = Path("runs/a/config.yaml").read_text()
    again = [*mode, "--run.name", "a", "--ckpt_path", "runs/a"]
    assert main(["--config", "cub200.yaml", *NETWORK, *QUIET, *again, *change]) == 2
    assert said in capsys.readouterr().err
    assert Path("runs/a/config.yaml").read_text() == before
    assert not Path("runs/a/config-resumed.yaml").exists()


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ([], "trainer.sync_batchnorm is given, but trainer.max_epochs is 0"),
        (FINETUNE, "set model.freeze_batch_norm: false"),
        ([*FINETUNE, "--model.freeze_batch_norm", "false"], "trainer.sync_batchnorm needs GPUs"),
    ],
)
def test_batch_norm_is_synchronised_where_it_has_an_effect(
    birds: Path, capsys: pytest.CaptureFixture[str], more: list[str], said: str
) -> None:
    assert main(["--config", "cub200.yaml", *NETWORK, *QUIET, *more, "--trainer.sync_batchnorm", "true"]) == 2
    assert said in capsys.readouterr().err


@pytest.mark.parametrize("callback", ["EarlyStopping", "ModelCheckpoint"])
def test_a_metric_that_is_not_logged_is_named(birds: Path, capsys: pytest.CaptureFixture[str], callback: str) -> None:
    path = f"pytorch_lightning.callbacks.{callback}"
    watch = f"[{{class_path: {path}, init_args: {{monitor: val/acuracy}}}}]"
    command = ["--config", "cub200.yaml", *NETWORK, *QUIET, *FINETUNE, "--trainer.callbacks", watch]
    assert main(command) == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert said.startswith("error: ") and "val/acuracy" in said and "val/accuracy" in said


def test_a_run_that_is_alive_is_not_resumed(birds: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made("a")
    hold(Path("runs/a"))
    try:
        again = ["--run.name", "a", "--ckpt_path", "runs/a"]
        assert main(["--config", "cub200.yaml", *NETWORK, *QUIET, *again]) == 2
    finally:
        let_go_all()
    assert "another process is working in" in capsys.readouterr().err


BAD = {
    "run root is a file": (["--run.root", "data/CUB_200_2011/images.txt"], ["images.txt", "--run.root"]),
    "run name is a path": (["--run.name", "../x"], ["run.name is '../x'"]),
    "unknown config file": (["--config", "cub20.yaml"], ["cub20.yaml", "'cub200.yaml'"]),
    "unknown key": (["--data.bboxes", "1"], ["unknown key data.bboxes", "'data.bbox'"]),
    "unknown nested key": ([f"--{POOLING}.pca", "3"], [f"{POOLING}.pca", "pca_dim"]),
    "unknown trainer key": (["--trainer.max_epoch", "3"], ["unknown key trainer.max_epoch", "max_epochs"]),
    "wrong value": ([f"--{POOLING}.align", "x"], [f"{POOLING}.align is 'x'", "strict, to_local or"]),
    "wrong type": (["--trainer.max_epochs", "x"], ["trainer.max_epochs is 'x': expected int (or null)"]),
    "no number of epochs": (["--trainer.max_epochs", "null"], ["trainer.max_epochs is None", "frozen mode"]),
    "negative epochs": (["--trainer.max_epochs", "-1"], ["trainer.max_epochs is -1"]),
    "unknown class": (["--data.class_path", "Nope"], ["'Nope'", "CUB200"]),
    "unknown backbone": ([f"--{BACKBONE}.name", "resnet5"], ["'resnet5'", "resnet50"]),
    "unknown layer": ([f"--{BACKBONE}.layers", "[a, features.12]"], ["no layer 'a'", "squeezenet1_0"]),
    "unknown weights": ([f"--{BACKBONE}.weights", "w.pth"], ["weights file not found: w.pth"]),
    "pca_dim too large": ([f"--{POOLING}.pca_dim", "513"], ["pca_dim is 513", "512"]),
    "even sub-array": ([f"--{POOLING}.size", "2"], ["size is 2", "odd"]),
    "image size too small": ([f"--{BACKBONE}.image_size", "8"], ["8 x 8 pixels", "image_size"]),
    "no data": (
        ["--data.root", "elsewhere", "--data.download", "false"],
        ["elsewhere", "download is off. By hand: put the following files into", "CUB_200_2011.tgz", "--data.root"],
    ),
    "checkpoint not found": (["--ckpt_path", "x.ckpt"], ["checkpoint not found: x.ckpt"]),
    "nothing to hold out": (["--data.validation", "0.01"], ["hold out"]),
    "batch size": (["--data.batch_size", "0"], ["data.batch_size is 0"]),
    "augmentation": (["--data.augment.flip", "2"], ["data.augment.flip is 2", "between 0 and 1"]),
    "no cost": (["--model.frozen.c", "0"], ["model.frozen.c is 0", "greater than 0"]),
    "one fold": (["--model.frozen.folds", "1"], ["model.frozen.folds is 1"]),
    "two image sizes": (["--data.image_size", "96"], ["data.image_size is 96", "backbone.image_size"]),
    "sub-array too large": ([f"--{POOLING}.size", "5"], ["local map is 3x3", "5x5 sub-array"]),
    "official validation": (["--data.validation", "official"], ["CUB-200-2011 has no official validation images"]),
    "nothing to fit": (["--model.start", "scratch"], ["model.start is scratch", "finetune.yaml"]),
    "another folder": (["--trainer.default_root_dir", "x"], ["--run.root"]),
    **{
        f"a part of the images: {key} {value}": (
            [*FINETUNE, f"--trainer.{key}", value],
            [f"trainer.{key} is", "test images"],
        )
        for key, value in (
            ("limit_test_batches", "1"),
            ("limit_test_batches", "0.5"),
            ("limit_val_batches", "1"),
            ("limit_val_batches", "0.9"),
            ("limit_val_batches", "0"),
            ("fast_dev_run", "true"),
            ("fast_dev_run", "3"),
            ("overfit_batches", "1"),
            ("overfit_batches", "0.5"),
            ("barebones", "true"),
        )
    },
    "negative rate": ([*FINETUNE, "--model.optimizer.backbone_lr", "-1"], ["model.optimizer.backbone_lr is -1.0"]),
    "start": ([*FINETUNE, "--model.start", "forzen"], ["model.start is 'forzen'", "frozen, projection, scratch"]),
    "no value": (["--data.bbox", "--data.seed", "3"], ["--data.bbox has no value"]),
    "label smoothing": ([*FINETUNE, "--model.label_smoothing", "3"], ["model.label_smoothing is 3.0", "[0, 1)"]),
}


@pytest.mark.parametrize(("args", "said"), BAD.values(), ids=BAD.keys())
def test_bad_input_is_explained(
    birds: Path, capsys: pytest.CaptureFixture[str], args: list[str], said: list[str]
) -> None:
    assert main(["--config", "cub200.yaml", *NETWORK, *QUIET, *args]) == 2
    message = capsys.readouterr().err
    assert message.startswith("error: ")
    for part in said:
        assert part in message


@pytest.mark.parametrize("content", [b"", b"no picture at all", None], ids=["empty", "text", "truncated"])
def test_broken_images_are_named_before_the_first_pass(
    birds: Path, capsys: pytest.CaptureFixture[str], content: bytes | None
) -> None:
    broken = min(Path("data/CUB_200_2011/images").rglob("*.jpg"))
    broken.write_bytes(broken.read_bytes()[:-400] if content is None else content)
    assert main(["--config", "cub200.yaml", *NETWORK, *QUIET]) == 2
    message = capsys.readouterr().err
    assert message.startswith("error: CUB-200-2011: 1 of 27 files cannot be used (data.on_broken: skip")
    assert f"\n  cannot decode image {broken} (" in message
    assert "Traceback" not in message and not Path("runs").exists()


@pytest.mark.parametrize("workers", ["0", "2"])
def test_an_image_that_only_its_decoder_finds_broken_is_named(
    birds: Path, capsys: pytest.CaptureFixture[str], workers: str
) -> None:
    broken = min(Path("data/CUB_200_2011/images").rglob("*.jpg"))
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 40, 3), np.uint8)).save(broken, "PNG")
    data = bytearray(broken.read_bytes())
    data[100:140] = bytes(40)  # header and end are valid
    broken.write_bytes(data)
    assert main(["--config", "cub200.yaml", *NETWORK, *QUIET, "--data.num_workers", workers]) == 2
    message = capsys.readouterr().err
    assert message.startswith("error: ") and f"cannot decode image {broken}" in message
    assert "Traceback" not in message
    assert not list(Path("runs").rglob("*.bin"))  # no incomplete features are left


def test_broken_images_can_be_left_out(birds: Path, capsys: pytest.CaptureFixture[str]) -> None:
    broken = min(Path("data/CUB_200_2011/images").rglob("*.jpg"))
    broken.write_bytes(b"")
    found = run("a", "--data.on_broken", "skip")
    assert sum(found["images"].values()) == 26 and found["left_out"] == {"broken": 1}
    said = f"cannot decode image {broken} (0 bytes): "
    assert Path("runs/a/broken.txt").read_text().startswith(said)
    assert f"warning: 1 files are left out:\n  {said}" in capsys.readouterr().err


def test_no_network_for_weights_says_what_to_do(
    birds: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*args: object, **kwargs: object) -> None:
        raise OSError("network is unreachable")

    monkeypatch.setattr("urllib.request.urlopen", refuse)
    monkeypatch.setenv("TORCH_HOME", str(birds / "hub"))
    assert main(["--config", "cub200.yaml", *QUIET]) == 2
    message = capsys.readouterr().err
    assert "caffenet-12.onnx" in message and "FILE.onnx" in message and "demo.yaml" in message
    assert main(["--config", "cub200.yaml", "--config", "resnet50.yaml", *QUIET]) == 2
    message = capsys.readouterr().err
    assert "resnet50" in message and "local FILE" in message


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("", "a.yaml contains no keys: it is empty"),
        ("hello", "contains no keys: it is 'hello'"),
        ("{a: [", "a.yaml is not YAML"),
    ],
)
def test_a_config_without_keys_is_named(
    birds: Path, capsys: pytest.CaptureFixture[str], content: str, said: str
) -> None:
    (birds / "a.yaml").write_text(content)
    assert main(["--config", "a.yaml"]) == 2
    assert said in capsys.readouterr().err


@pytest.mark.parametrize("order", [["finetune.yaml"], ["finetune.yaml", "demo.yaml"]])
def test_an_overlay_comes_after_what_it_changes(capsys: pytest.CaptureFixture[str], order: list[str]) -> None:
    # it does not describe its data
    assert main([part for name in order for part in ("--config", name)]) == 2
    assert "finetune.yaml is an overlay" in capsys.readouterr().err


@pytest.mark.parametrize(("args", "said"), [([], "there is nothing to run"), (["demo.yaml"], "--config demo.yaml")])
def test_no_config_is_asked_for(capsys: pytest.CaptureFixture[str], args: list[str], said: str) -> None:
    assert main(args) == 2
    assert said in capsys.readouterr().err
