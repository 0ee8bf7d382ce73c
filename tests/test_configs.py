"""Each benchmark's shipped config, as a complete run on a small data set in the benchmark's layout."""

import importlib
import inspect
from pathlib import Path

import pytest
import yaml

from cxlp.data import DATA_MODULES
from cxlp.data.benchmark import Benchmark
from cxlp.data.datamodule import ImageDataModule
from cxlp.runs.arguments import CONFIGS
from tests.generate import write_cub200, write_h3d, write_mit67, write_voc2007
from tests.runs.birds import run

ACCURACIES = {"accuracy", "mean_class_accuracy"}
PRECISIONS = {"mAP", "mAP_11point", "mAP_allpoint"}
#: By config: the metrics, and the lower bound of each on these pictures. Chance is 1/3 for 3 classes, and for
#: average precision the fraction of positives: 0.08 (1.5 of 20 classes per image) and 0.22 (about 2 of 9).
BENCHMARKS = {
    "cub200": (ACCURACIES, 0.5),
    "mit67": (ACCURACIES, 0.5),
    "voc2007": (PRECISIONS, 0.4),
    "h3d": (PRECISIONS, 0.5),
}


@pytest.fixture(scope="module")
def benchmarks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with ``data``, where each benchmark is in the default folder of its config."""
    folder = tmp_path_factory.mktemp("benchmarks")
    for write in (write_cub200, write_mit67, write_voc2007, write_h3d):
        write(folder / "data")
    return folder


@pytest.fixture
def work(benchmarks: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A new working directory with all data sets."""
    (tmp_path / "data").symlink_to(benchmarks / "data")
    monkeypatch.chdir(tmp_path)


@pytest.mark.usefixtures("work")
@pytest.mark.parametrize("name", BENCHMARKS)
def test_frozen(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    names, least = BENCHMARKS[name]
    found = run("a", config=f"{name}.yaml")
    results = {key: value for key, value in found["metrics"].items() if key.startswith(("test/", "val/"))}
    assert results.keys() == {f"test/{metric}" for metric in names | {"loss"}}
    assert all(results[f"test/{metric}"] > least for metric in names)
    # The official protocols train on all training images, including those of an official validation list.
    images = {"cub200": (18, 9), "mit67": (18, 9), "voc2007": (100, 40), "h3d": (54, 36)}[name]
    assert found["images"] == {"train": images[0], "val": 0, "test": images[1]}
    seconds = dict(found["seconds"])
    assert {"extraction", "PCA", "pooling", "Gram matrix", "SVM", "test", "total"} < seconds.keys()
    assert {"start-up", "tables and pictures", "report", "other"} < seconds.keys()
    assert seconds.pop("total") == pytest.approx(sum(seconds.values()))
    assert found["tested"] == "checkpoints/frozen.ckpt"
    # Unlisted files are counted, in one line at the start and in the results.
    unlisted = {"mit67": {"images in no list": 3}}.get(name)
    assert found.get("left_out") == unlisted
    assert ("left out of data/mit67: 3 images in no list\n" in capsys.readouterr().err) == (unlisted is not None)


@pytest.mark.usefixtures("work")
@pytest.mark.parametrize("name", BENCHMARKS)
def test_fine_tuning(name: str) -> None:
    names, least = BENCHMARKS[name]
    validation, images = {
        "cub200": ("0.34", (11, 7, 9)),
        "mit67": ("0.34", (11, 7, 9)),
        "voc2007": ("official", (60, 40, 40)),
        "h3d": ("0.34", (35, 19, 36)),
    }[name]
    overlay = ["--config", "finetune.yaml", "--data.validation", validation, "--trainer.max_epochs", "1"]
    found = run("a", *overlay, config=f"{name}.yaml")
    results = {key: value for key, value in found["metrics"].items() if key.startswith(("test/", "val/"))}
    assert results.keys() == {f"{split}/{metric}" for split in ("val", "test") for metric in names | {"loss"}}
    assert all(results[f"test/{metric}"] > least for metric in names)
    assert found["images"] == dict(zip(("train", "val", "test"), images, strict=True))
    assert found["seconds"]["fine-tuning"] > 0
    assert Path("runs/a", found["tested"]).samefile("runs/a/checkpoints/best.ckpt")


@pytest.mark.parametrize("name", BENCHMARKS)
def test_config_shows_options_of_the_data_at_their_defaults(name: str) -> None:
    """A script with only the data module follows the benchmark's own protocol, too."""
    path, _, class_name = DATA_MODULES[name].rpartition(".")
    module = getattr(importlib.import_module(path), class_name)
    signatures = [inspect.signature(cls).parameters for cls in (ImageDataModule, Benchmark, module)]
    defaults = {key: parameter.default for own in signatures for key, parameter in own.items()}
    shown = yaml.safe_load((CONFIGS / f"{name}.yaml").read_text())["data"]
    assert shown.keys() == {"class_path", "init_args"} and shown["class_path"] == class_name
    given = shown["init_args"]
    assert {"root", "download"} <= given.keys()
    assert given == {key: defaults[key] for key in given}
