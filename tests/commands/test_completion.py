"""Shell completion: the suggestions that argcomplete requests, and that torch is not imported for them."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from cxlp.data import DATA_MODULES

pytest.importorskip("argcomplete")
ROOT = Path(__file__).parents[2]
TRAIN = (str(ROOT / "train.py"),)
CXLP = ("-X", "importtime", "-m", "cxlp")


def offered(place: Path, line: str, *program: str) -> set[str]:
    """Return the suggestions at the end of a line."""
    out = place / "offered"
    asked = {"_ARGCOMPLETE": "1", "COMP_LINE": line, "COMP_POINT": str(len(line)), "_ARGCOMPLETE_IFS": "\n"}
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]), **asked}
    environment["_ARGCOMPLETE_STDOUT_FILENAME"] = str(out)
    done = subprocess.run(
        [sys.executable, *program], cwd=place, env=environment, capture_output=True, text=True, timeout=120
    )
    assert out.is_file(), done.stderr
    assert " torch\n" not in done.stderr
    return {word.strip() for word in out.read_text().split("\n")}


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("cxlp exp", {"explain", "export"}),
        ("cxlp check ", set(DATA_MODULES)),
        ("cxlp train --config cub", {"cub200.yaml"}),
        ("cxlp train --config cub200.yaml --data.bb", {"--data.bbox", "--data.bbox_margin"}),
        ("cxlp train --ckpt_path r", {"runs/NAME", "runs/series/0"}),
        ("cxlp predict r", {"runs/NAME", "runs/series/0"}),
        ("cxlp runs s", {"series/0"}),
        ("cxlp compare --recipes cr", {"cross_fit.yaml"}),
        ("cxlp compare --see", {"--seeds", "--seed_everything"}),
        ("cxlp predict runs/NAME a.jpg --format ", {"csv", "jsonl"}),
        ("cxlp predict runs/NAME bi", {"birds/"}),
    ],
)
def test_the_command_completes(tmp_path: Path, line: str, words: set[str]) -> None:
    for folder in ("runs/NAME/checkpoints", "runs/series/0/checkpoints", "birds"):
        (tmp_path / folder).mkdir(parents=True)
    assert offered(tmp_path, line, *CXLP) == words


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("train.py --model.mix ", {"none", "mixup", "cutmix"}),
        ("train.py --model.closing_fit ", {"true", "false"}),
        ("train.py --model.head Bi", {"BilinearPooling"}),
        ("train.py --model.head AveragePooling --model.head.", None),
        ("train.py --data torchvision --data.name Flow", {"Flowers102"}),
        (
            "train.py --config nowhere.yaml --trainer.acc",
            {"--trainer.accelerator", "--trainer.accumulate_grad_batches"},
        ),
    ],
)
def test_train_py_completes(tmp_path: Path, line: str, words: set[str] | None) -> None:
    found = offered(tmp_path, line, *TRAIN)
    if words is None:  # some options of this head, and none of another one
        assert "--model.head.sqrt" in found and "--model.head.pca_dim" not in found
    else:
        assert found == words
