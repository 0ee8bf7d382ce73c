"""``python -m cxlp embed``: vectors by a checkpoint and by a config, with and without PCA, and unreadable files."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

import cxlp.commands.embed
import cxlp.runs.embedding
from cxlp.__main__ import main
from cxlp.deploy.loading import load
from tests.generate import write_folder
from tests.networks import SMALL, build, write_checkpoint
from tests.small_run import BACKBONE

Capture = pytest.CaptureFixture[str]

#: Keys of train.py for a small network.
NETWORK = [
    *(f"--{BACKBONE}.name", "timm/test_resnet", f"--{BACKBONE}.layers", "[layer3.0.conv2, layer3]"),
    *(f"--{BACKBONE}.weights", "null", f"--{BACKBONE}.image_size", "32"),
]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    network = build(backbone=SMALL, classes=["gull", "tern", "wren"])
    return write_checkpoint(tmp_path_factory.mktemp("run") / "best.ckpt", network)


@pytest.fixture
def photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Eighteen pictures, and two unreadable files: one between them, one after them."""
    monkeypatch.chdir(tmp_path)
    folder = write_folder(tmp_path / "photos", train=6, test=0, size=40)
    for name in ("train/kind1/02a.png", "train/zz.png"):
        (folder / name).write_text("no picture")
    return folder


def embed(*args: object, status: int = 1) -> Any:
    assert main(["embed", *map(str, args), "--workers", "0", "--device", "cpu"]) == status
    return np.load(str(args[args.index("--out") + 1])) if status < 2 else None


def test_features_equal_the_python_api_in_the_order_of_paths(checkpoint: Path, photos: Path, capsys: Capture) -> None:
    found = embed(checkpoint, photos, "--out", "x.npz", "--batch-size", "5")
    good = sorted(str(path) for path in photos.rglob("*.png") if path.stat().st_size > 20)
    assert found["paths"].tolist() == good and len(good) == 18
    model = load(checkpoint)
    expected = model.embed(good)
    assert found["features"] == pytest.approx(expected, abs=1e-5)
    assert expected.shape == (18, 6 * 192) and model.embed(good[3]) == pytest.approx(expected[3], abs=1e-5)
    assert model.embed([]).shape == (0, 6 * 192)
    said = capsys.readouterr()
    assert said.out == "x.npz: 18 x 1,152\n" and said.err.count("cannot decode image") == 2
    assert said.err.splitlines()[-1].startswith("2 of 20 files ")
    assert [path.name for path in Path().iterdir() if "x.npz" in path.name] == ["x.npz"]


def test_reduced_features_keep_their_distances(
    checkpoint: Path, photos: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = embed(checkpoint, photos, "--out", "x.npz")["features"]
    few = embed(checkpoint, photos, "--out", "few.npz", "--dim", 17)["features"]
    assert (
        few.shape == (18, 17)
        and "PCA to 17 of 1,152 dimensions keeps 100.00% of the variance" in capsys.readouterr().out
    )
    distances = [np.linalg.norm(x[:, None] - x, axis=2) for x in (whole, few)]
    assert distances[1] == pytest.approx(distances[0], abs=1e-4)
    # the components are fitted to some of the images; the others are projected
    monkeypatch.setattr(cxlp.runs.embedding, "REDUCE", 10)
    some = embed(checkpoint, photos, "--out", "some.npz", "--dim", 4)["features"]
    assert some.shape == (18, 4) and len(np.unique(some.round(6), axis=0)) == 18


def test_a_config_needs_no_labels(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Path("net.yaml").write_text("model: {head: {class_path: CrossLayerPooling, init_args: {pca_dim: 4}}}\n")
    found = embed("net.yaml", photos, *NETWORK, "--out", "x.npz")["features"]
    assert found.shape == (18, 4 * 192)
    assert np.linalg.norm(found, axis=1) == pytest.approx(np.ones(18), abs=1e-4)
    # PCA is fitted to the images and centred, so the features differ from those of a random projection
    monkeypatch.setattr(cxlp.runs.embedding.Embedding, "fit", lambda self: None)
    assert embed("net.yaml", photos, *NETWORK, "--out", "y.npz")["features"] != pytest.approx(found, abs=0.01)
    # a shipped config of a whole run, whose data set is not read
    embed("demo.yaml", photos, *NETWORK, "--model.head.pca_dim", "4", "--out", "z.npz")


def test_parquet(checkpoint: Path, photos: Path) -> None:
    import pyarrow.parquet as pq

    expected = embed(checkpoint, photos, "--out", "x.npz")
    assert main(["embed", str(checkpoint), str(photos), "--out", "x.parquet", "--workers", "0"]) == 1
    table = pq.read_table("x.parquet").to_pydict()
    assert table["path"] == expected["paths"].tolist()
    assert np.array(table["features"]) == pytest.approx(expected["features"])
    frame = pd.read_parquet("x.parquet")  # as users read it
    assert np.stack(frame["features"].tolist()).dtype == np.float32 and len(frame) == len(expected["paths"])


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["{}", "photos", "--out", "x.csv"], "--out x.csv: "),
        (["{}", "photos", "--out", "none/x.npz"], "there is no folder none"),
        (
            ["{}", "photos", "--out", "x.npz", "--dim", "18"],
            "--dim 18 needs more than 18 images, but only 18 can be read",
        ),
        (
            ["{}", "photos", "--out", "x.npz", "--dim", "20"],
            "--dim 20 needs more than 20 images, but there are 20",
        ),
        (["{}", "photos", "--out", "x.npz", "--dim", "9999"], "the network's features have 1,152 dimensions"),
        (
            ["{}", "photos", "--out", "x.npz", "--model.frozen.c", "1"],
            "--model.frozen.c has no effect with a checkpoint",
        ),
        (["{}", "nothing.png", "--out", "x.npz"], "image not found: nothing.png"),
        (
            ["{}", "photos/train/zz.png", "--out", "x.npz"],
            "none of 1 files can be read; the first error: cannot decode image",
        ),
        (
            ["net.yaml", "photos/train/zz.png", *NETWORK, "--out", "x.npz"],
            "none of 1 files can be read; the first error: cannot",
        ),
        (
            ["net.yaml", "photos/train/zz.png", "photos/train/kind1/02.png", *NETWORK, "--out", "x.npz"],
            "; 1 of 2 files cannot be read; the first error: cannot decode image",
        ),
        (
            ["net.yaml", "photos", "--out", "x.npz", "--data.bbox", "true"],
            "--data.bbox has no effect on the images of PATH",
        ),
        (["net.yaml", "photos", "--out", "x.npz", "--data=CUB200"], "--data has no effect"),
        (["none.ckpt", "photos", "--out", "x.npz"], "checkpoint not found: none.ckpt"),
        (["none.yaml", "photos", "--out", "x.npz"], "config file not found: none.yaml"),
    ],
)
def test_wrong_arguments(checkpoint: Path, photos: Path, capsys: Capture, arguments: list[str], said: str) -> None:
    Path("net.yaml").write_text("model: {head: {class_path: CrossLayerPooling, init_args: {pca_dim: 40}}}\n")
    assert embed(*(arg.format(checkpoint) for arg in arguments), status=2) is None
    assert said in capsys.readouterr().err
    assert not list(Path().glob("*x.npz*"))


def test_parquet_names_the_missing_package(
    checkpoint: Path, photos: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cxlp.commands.embed, "find_spec", lambda name: None)
    assert embed(checkpoint, photos, "--out", "x.parquet", status=2) is None
    assert "pip install pyarrow" in capsys.readouterr().err
