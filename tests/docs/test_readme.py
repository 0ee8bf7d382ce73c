"""What the README and the guide show works: each ``train.py`` line parses, and the scripts run on a tiny network."""

import re
import shlex
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader, TensorDataset

from cxlp.runs.cli import parse
from tests.small_run import run, write_pictures

ROOT = Path(__file__).parents[2]
PAGES = ("README.md", "docs/guide.md")
#: What stands for the network of the README, whose weights would be downloaded.
SMALL = '"timm/test_resnet", layers=("layer3.0.conv2", "layer3"), weights=None, image_size=32'


def commands() -> list[str]:
    """The arguments of each ``train.py`` line, but for those of resumption, whose config is a run's."""
    lines = "".join((ROOT / page).read_text().replace("\\\n", " ") + "\n" for page in PAGES).splitlines()
    found = [line.partition("train.py ")[2] for line in lines if line.startswith("    ") and "train.py --" in line]
    return sorted({text for text in found if "runs/NAME/config.yaml" not in text})


@pytest.mark.parametrize("arguments", commands())
def test_each_command_parses(arguments: str) -> None:
    given = shlex.split(arguments, comments=True)
    config = parse(given)
    for key, value in zip(given[::2], given[1::2], strict=True):
        if key.startswith(("--run.", "--model.start", "--trainer.")):
            assert str(config[key.removeprefix("--")]).lower() == value.lower()


def scripts() -> list[str]:
    """The README's Python."""
    return re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.S)


def loader(images: torch.Tensor) -> Any:
    return DataLoader(TensorDataset(images, torch.arange(len(images)) % 10), batch_size=8)


@pytest.mark.slow
def test_the_scripts_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    library, alone, own = scripts()
    images = torch.randint(0, 256, (40, 3, 32, 32), dtype=torch.uint8)
    given: dict[str, Any] = {"loader": loader(images), "val_loader": loader(images[:20] / 255)}
    small, count = re.subn(r'"resnet50", layers=\([^)]*\)', SMALL, library)
    assert count == 1
    exec(small.replace("pca_dim=256", "pca_dim=16"), given)
    assert given["trainer"].current_epoch == 5
    # The best epoch's network, of 16 x 192 features, which takes bytes and numbers of 0..1 alike.
    again = given["again"].network.eval()
    assert again.out_features == 16 * 192
    torch.testing.assert_close(again(images[:4]), again(images[:4] / 255), rtol=1e-4, atol=1e-4)

    write_pictures(tmp_path)
    run("NAME")
    Image.fromarray(np.zeros((40, 50, 3), np.uint8)).save("a.jpg")
    given |= {"lower_map": torch.rand(2, 384, 13, 13), "upper_map": torch.rand(2, 256, 13, 13)}
    exec(alone, given)
    assert given["vector"].shape == (2, 256 * 256)
    assert sum(given["found"].probabilities) == pytest.approx(1, abs=1e-5)  # of three classes

    exec(own, given)
    head = given["MyHead"](2.0).connect((5, 7, 7))
    maps = torch.rand(3, 5, 7, 7)
    expected = torch.nn.functional.normalize(maps.flatten(2).max(dim=2).values)
    torch.testing.assert_close(head(maps), expected)
    assert head.options()["scale"] == 2.0
