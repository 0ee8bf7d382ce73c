"""The README and the pages of the site: commands can be parsed, and blocks of Python run on a tiny network."""

import importlib
import re
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import pytorch_lightning as pl
import torch
from PIL import Image
from torch.utils.data import DataLoader, TensorDataset

import cxlp
from cxlp.__main__ import COMMANDS
from cxlp.commands.parser import CommandParser
from cxlp.runs.cli import parse
from tests.small_run import run, write_pictures

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
#: Replaces ResNet-50, whose weights would be downloaded.
SMALL = '"timm/test_resnet", layers=("layer3.0.conv2", "layer3"), weights=None, image_size=32'
#: Keys on the pages, whose values must be parsed as written.
PLAIN_KEYS = ("--run.", "--model.start", "--trainer.")


def lines(program: str, first: str) -> list[str]:
    """Return the arguments of a program on each line of code that calls it, from all pages.

    Args:
        program: A program such as ``train.py``.
        first: Pattern of the beginning of the first argument.
    """
    found = set()
    for page in PAGES:
        whole = page.read_text(encoding="utf-8").replace("\\\n", " ")
        code = [
            *re.findall(r"^```(?:bash|text)\n(.*?)^```", whole, re.S | re.M),
            *re.findall(r"^    \S.*", whole, re.M),
        ]
        for line in "\n".join(code).splitlines():
            if called := re.search(rf"{re.escape(program)} ({first}.*)", line.partition(" > ")[0]):
                found.add(shlex.join(shlex.split(called[1], comments=True)))
    return sorted(found)


def blocks(page: str) -> list[str]:
    """Return the Python code of a page, with a small network instead of a large one."""
    text = (ROOT / page).read_text(encoding="utf-8")
    found = re.findall(r"```python\n(.*?)```", text, re.S)
    small = [re.sub(r'"resnet50", layers=\([^)]*\)', SMALL, block) for block in found]
    return [new if new == old else new.replace("256", "16") for old, new in zip(found, small, strict=True)]


@pytest.fixture
def own_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The user's package that the pages mention, with the heads of its page."""
    heads = blocks("docs/own_parts.md")[1:]
    (tmp_path / "my_package").mkdir()
    (tmp_path / "my_package" / "heads.py").write_text("\n".join(heads))
    monkeypatch.syspath_prepend(tmp_path)
    yield
    for name in [name for name in sys.modules if name.partition(".")[0] == "my_package"]:
        del sys.modules[name]


@pytest.mark.parametrize("arguments", [text for text in lines("train.py", "--") if "runs/NAME/" not in text])
def test_each_training_parses(arguments: str, own_package: None) -> None:
    given = ["0" if word == "S" else word for word in shlex.split(arguments)]  # S stands for a seed
    config = parse(given)
    for key, value in zip(given[::2], given[1::2], strict=True):
        if key.startswith(PLAIN_KEYS):
            assert str(config[key.removeprefix("--")]).lower() == value.lower()


@pytest.fixture(scope="module")
def parser() -> CommandParser:
    parser = CommandParser(allow_abbrev=False)
    commands = parser.add_subparsers(required=True)
    for command in COMMANDS:
        command.add(commands.add_parser)
    return parser


@pytest.mark.parametrize("arguments", lines("python -m cxlp", "[a-z]"))
def test_each_command_parses(parser: CommandParser, arguments: str) -> None:
    _, rest = parser.parse_known_args(shlex.split(arguments))
    keys = [key for key in rest if key.startswith("--")]
    assert all(key.startswith(("--config", "--data", "--model.", "--trainer.", "--run.")) for key in keys)


def loader(images: torch.Tensor) -> Any:
    return DataLoader(TensorDataset(images, torch.arange(len(images)) % 10), batch_size=8)


@pytest.fixture
def given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The loaders, run and picture that the pages assume in the working directory."""
    monkeypatch.chdir(tmp_path)
    images = torch.randint(0, 256, (40, 3, 32, 32), dtype=torch.uint8)
    write_pictures(tmp_path)
    run("NAME")
    Image.fromarray(np.zeros((40, 50, 3), np.uint8)).save("a.jpg")
    Path("photos").symlink_to("pictures")
    monkeypatch.setattr("cxlp.data.demo.datamodule.COUNTS", {"train": 2, "test": 1})
    return {"images": images, "loader": loader(images), "val_loader": loader(images[:20] / 255)}


@pytest.mark.slow
def test_the_readme_s_scripts_run(given: dict[str, Any]) -> None:
    for block in blocks("README.md"):
        exec(block, given)
    assert given["vector"].shape == (2, 256 * 256)
    assert "test/accuracy" in given["result"].metrics
    assert sum(given["result"].model.predict("a.jpg", top=10).probabilities) == pytest.approx(1, abs=1e-5)


@pytest.mark.slow
def test_the_scripts_on_python_run(given: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    shown = []
    for block in blocks("docs/python.md"):
        exec(block, given)
        shown += re.findall(r"print\(.*\)  # (torch\.Size\([^)]*\))", block)
    printed = capsys.readouterr().out
    assert len(shown) == 2
    assert all(size in printed for size in shown)
    assert given["again"].network.out_features == 16 * 192
    assert given["pooled"].shape == (2, 32, 24)
    assert len(given["result"].model.classes) == 10  # a species of the demo
    assert given["features"].shape == (27, 4 * 192)
    assert Path("why.png").stat().st_size > 10_000
    assert given["why"].target in given["model"].classes


@pytest.mark.slow
def test_custom_parts_fit(given: dict[str, Any], own_package: None, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    exec(blocks("docs/own_parts.md")[0], given)
    assert capsys.readouterr().out == "torch.Size([2, 3])\n"
    own = importlib.import_module("my_package.heads")
    networks = [
        cxlp.Network(cxlp.Backbone("timm/test_resnet", ["layer3"], weights=None, image_size=32), head, classes=10)
        for head in (own.MaxPooling(2.0), own.ScaledMean())
    ]
    for network in networks:
        options: Any = {"enable_progress_bar": False, "logger": False, "enable_checkpointing": False}
        pl.Trainer(max_epochs=1, accelerator="cpu", **options).fit(cxlp.Frozen(network), given["loader"])
    fitted = networks[1]
    with torch.no_grad():
        means = fitted.backbone(given["images"])[0].mean(dim=(2, 3))
    expected = (means.var(dim=0, correction=0) + 1e-6).rsqrt()
    torch.testing.assert_close(fitted.heads[0].scale, expected, rtol=1e-3, atol=1e-3)


def test_a_data_frame_becomes_a_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("photos").mkdir()
    for name in "abcdefgh":
        Image.fromarray(np.full((8, 8, 3), ord(name), np.uint8)).save(f"photos/{name}.png")
    frame = pd.DataFrame({"path": [f"{name}.png" for name in "abcdefgh"], "species": ["gull", "tern"] * 4})
    given: dict[str, Any] = {"frame": frame}
    (block,) = blocks("docs/own_data.md")
    exec(block, given)
    given["data"].setup()
    assert given["data"].classes == ("gull", "tern")


def test_the_messages_in_the_faq_exist_in_the_code() -> None:
    table = (ROOT / "docs" / "faq.md").read_text(encoding="utf-8").partition("\n## Messages\n")[2]
    messages = re.findall(r"^\| `(.*?)` \|", table, re.M)
    code = "\n".join(file.read_text(encoding="utf-8") for file in (ROOT / "cxlp").rglob("*.py"))
    parts = [part.strip() for message in messages for part in message.split("...") if part.strip()]
    assert len(messages) > 5
    assert not [part for part in parts if part not in code]


def test_the_script_on_comparing_prints_the_documented_values(capsys: pytest.CaptureFixture[str]) -> None:
    (block,) = blocks("docs/comparing.md")
    exec(block, {})
    assert capsys.readouterr().out.splitlines() == re.findall(r"print\(.*\)  # (.*)", block)


@pytest.mark.slow
def test_values_on_the_pages_are_parsed(given: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    from cxlp.__main__ import main

    nearest, exported = blocks("docs/trained.md")
    assert main(["embed", "runs/NAME", "pictures", "--out", "features.npz", "--dim", "4", "--workers", "0"]) == 0
    exec(nearest, given)
    assert len(given["nearest"]) == 5 and 0 not in given["nearest"]
    assert "is like" in capsys.readouterr().out
    assert main(["export", "runs/NAME", "--out", "model.onnx"]) == 0
    given["pictures"] = given["images"].numpy()
    exec(exported, given)
    assert given["logits"].shape == (40, 3) and len(given["about"]["classes"]) == 3
