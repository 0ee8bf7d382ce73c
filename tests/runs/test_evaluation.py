"""The outputs of a test, in files and in an offline wandb run, which wandb's own reader reads."""

import csv
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from cxlp.reports.formatting import readable
from cxlp.runs.dashboard import COLUMNS, sections
from cxlp.runs.evaluation import pad_to_common_size, read_predictions
from cxlp.utils.spelling import as_text
from tests.generate import write_cub200, write_voc2007
from tests.runs.birds import FINETUNE, run


def read_back(folder: Path, *options: str) -> str:
    """Return the output of ``wandb leet inspect`` for a run's only offline run."""
    (place,) = (folder / "wandb").glob("offline-run-*")
    done = subprocess.run(
        [sys.executable, "-m", "wandb", "leet", "inspect", "--json", *options, str(place)],
        check=True, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    return done.stdout


class Offline:
    """A finished run's folder and its offline run: ``summary``, ``config``, ``tags``, ``group`` and ``records``."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        found = json.loads(read_back(folder, "--summary"))
        self.summary, self.config, self.tags = found["summary"], found["config"], found["tags"]
        self.state = found["state"]
        self.records = [json.loads(line) for line in read_back(folder).splitlines()]
        (self.run,) = (record["run"] for record in self.records if record["type"] == "run")
        (place,) = (folder / "wandb").glob("offline-run-*")
        self.files = place / "files"
        self.metrics = json.loads((folder / "metrics.json").read_text())

    def rows(self, name: str) -> list[dict[str, str]]:
        """Return a table among the run's files."""
        with (self.folder / f"{name}.csv").open(newline="") as file:
            return list(csv.DictReader(file))

    def table(self, key: str) -> dict[str, Any]:
        """Return a table in wandb."""
        found: dict[str, Any] = json.loads((self.files / self.summary[key]["path"]).read_text())
        return found

    def pictures(self, key: str) -> list[Path]:
        """Return the existing pictures of a panel."""
        entry = self.summary[key]
        paths = [self.files / name for name in entry.get("filenames", [entry.get("path")])]
        assert all(path.stat().st_size > 500 for path in paths)
        return paths


def keys_of(panel: Any) -> list[str]:
    """Return the keys of a panel."""
    names = [getattr(panel, name, None) or [] for name in ("y", "metrics", "media_keys")]
    found = [getattr(key, "name", key) for part in names for key in part]
    table = getattr(panel, "table_name", None)
    return [*found, *([table] if table else []), *([panel.x] if hasattr(panel, "x") else [])]


def offline(folder: Path, config: str, *more: str) -> Iterator[Offline]:
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for name in ("WANDB_API_KEY", "WANDB_MODE"):
            patch.delenv(name, raising=False)
        patch.setenv("NETRC", str(folder / "none"))
        run("a", *more, "--run.wandb", "auto", "--run.tags", "[mine]", config=config)
        yield Offline(folder / "runs" / "a")


@pytest.fixture(scope="module")
def tuned(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Offline]:
    """A fine-tuning run on three classes of birds."""
    folder = tmp_path_factory.mktemp("tuned")
    write_cub200(folder / "data")
    yield from offline(
        folder,
        "cub200.yaml",
        *FINETUNE,
        "--trainer.log_every_n_steps",
        "1",
        "--data.bbox",
        "true",
        "--model.frozen.c",
        "auto",
    )


@pytest.fixture(scope="module")
def several(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Offline]:
    """A frozen run on several labels per image."""
    folder = tmp_path_factory.mktemp("several")
    write_voc2007(folder / "data", (2, 1, 1), size=48)
    yield from offline(folder, "voc2007.yaml", "--data.validation", "official")


def test_curves_have_axes_and_names(tuned: Offline) -> None:
    axes = {
        record["metric"]["glob_name"]: record["metric"]["step_metric"]
        for record in tuned.records
        if record["type"] == "metric" and "glob_name" in record["metric"]
    }
    assert axes == {
        "train/*": "images_seen", "lr-*": "images_seen", "grad_norm/*": "images_seen", "val/*": "epoch",
        "frozen/cv_*": "frozen/C",
    }  # fmt: skip
    history = json.dumps([record for record in tuned.records if record["type"] == "history"])
    for key in (
        "epoch", "images_seen", "train/loss_step", "train/loss_epoch", "train/images_per_second", "val/loss",
        "val/accuracy", "val/mean_class_accuracy", "lr-SGD/backbone", "lr-SGD/classifier", "grad_norm/backbone",
        "grad_norm/classifier", "grad_norm/projection", "test/accuracy",
    ):  # fmt: skip
        assert f'"{key}"' in history, key
    assert not re.search(r'"lr-[^"]*no_decay"', history) and "global_step" not in history
    curve = [record["history"]["item"] for record in tuned.records if record["type"] == "history"]
    costs = {row["frozen/C"]: row["frozen/cv_accuracy"] for row in curve if "frozen/C" in row}
    named = {k.rpartition("_C")[2]: v for k, v in tuned.metrics["metrics"].items() if "cv_accuracy_C" in k}
    assert costs == {float(c): pytest.approx(v) for c, v in named.items()} and len(costs) == 4


def test_the_summary_has_the_best_of_each_curve(tuned: Offline, several: Offline) -> None:
    rows = [record["history"]["item"] for record in tuned.records if record["type"] == "history"]
    for key in ("val/accuracy", "val/mean_class_accuracy"):
        assert tuned.summary[key] == {"max": max(row[key] for row in rows if key in row)}
    assert tuned.summary["val/loss"] == {"min": min(row["val/loss"] for row in rows if "val/loss" in row)}
    assert sum("val/loss" in row for row in rows) == 3
    assert list(several.summary["val/mAP"]) == ["max"]


def test_the_summary_is_of_the_tested_checkpoint(tuned: Offline) -> None:
    assert tuned.state == "finished"
    assert (tuned.folder / tuned.metrics["tested"]).samefile(tuned.folder / "checkpoints" / "best.ckpt")
    assert tuned.summary["tested/checkpoint"] == tuned.metrics["tested"]
    assert tuned.summary["tested/epoch"] == tuned.metrics["epoch"]
    for key, value in tuned.metrics["metrics"].items():
        if "_C" not in key:
            assert tuned.summary[f"tested/{key}" if key.startswith("val/") else key] == pytest.approx(value), key
    for key, value in tuned.metrics["seconds"].items():
        assert tuned.summary[f"seconds/{key}"] == pytest.approx(value), key
    assert {"extraction", "fine-tuning", "test"} == tuned.metrics["images_per_second"].keys()
    # Two epochs of gradient descent, each with two full batches of 8 for 11 images.
    spent = tuned.metrics["seconds"]["fine-tuning"]
    assert tuned.summary["images_per_second/fine-tuning"] == pytest.approx(2 * 16 / spent)
    assert tuned.summary["memory/peak_bytes"] > 50_000_000


def test_the_wandb_run_has_tags_notes_and_provenance(tuned: Offline, several: Offline) -> None:
    assert sorted(tuned.tags) == sorted(["mine", "CUB-200-2011", "squeezenet1_0", "FineTune", "CrossLayerPooling"])
    assert sorted(several.tags) == sorted(["mine", "Pascal VOC 2007", "squeezenet1_0", "Frozen", "CrossLayerPooling"])
    assert [tuned.run["run_group"], several.run["run_group"]] == ["CUB-200-2011", "Pascal VOC 2007"]
    assert [tuned.run["job_type"], several.run["job_type"]] == ["train", "train"]
    assert tuned.run["notes"] == "CUB-200-2011: 11 train, 7 val, 9 test images of 3 classes. Folder: runs/a"
    assert tuned.config["model"]["head"]["init_args"]["pca_dim"] == 8
    assert tuned.config["trainer"]["max_epochs"] == 2
    written = json.loads((tuned.folder / "provenance.json").read_text())
    assert tuned.config["provenance"] == written
    assert written["data"]["name"] == "CUB-200-2011" and written["data"]["train"] == 11
    assert written["versions"]["torch"] and written["machine"]["processes"] == 1


def test_confusions_are_tables_and_a_figure(tuned: Offline) -> None:
    per_class = tuned.table("test/per_class")
    assert [str(row[0]) for row in per_class["data"]] == [row["class"] for row in tuned.rows("per_class")]
    wrong = sum(int(row["images"]) - int(row["right"]) for row in tuned.rows("per_class"))
    pairs = tuned.table("test/confusions")
    assert pairs["columns"] == ["true", "taken for", "times", "part of the true class"]
    assert sum(row[2] for row in pairs["data"]) == wrong
    assert len(tuned.pictures("test/confusion_matrix")) == 1


def test_mistakes_and_right_predictions_have_captions(tuned: Offline) -> None:
    rows = tuned.rows("examples")
    right = round(9 * tuned.metrics["metrics"]["test/accuracy"])
    mistakes = [row for row in rows if row["kind"] == "mistake"]
    assert len(mistakes) == 9 - right
    assert all(row["true"] != row["answered"] and row["true"] in row["image"] for row in mistakes)
    shown = {"mistake": "test/mistakes", "right": "test/right_answers"}
    for kind in {row["kind"] for row in rows}:
        assert len(tuned.pictures(shown[kind])) == sum(row["kind"] == kind for row in rows)
        captions = [
            f"answer: {r['answered']} {r['answered probability']}, truth: {r['true']} {r['true probability']}"
            for r in readable(rows, [row["class"] for row in tuned.rows("per_class")])
            if r["kind"] == kind
        ]
        assert tuned.summary[shown[kind]]["captions"] == captions
    assert len(tuned.table("test/examples")["data"]) == len(rows) == len(list((tuned.folder / "examples").iterdir()))


def test_images_of_a_panel_have_one_size_and_are_not_stretched(tmp_path: Path) -> None:
    for name, size in (("wide.png", (6, 2)), ("high.png", (2, 4))):
        Image.new("RGB", size, "red").save(tmp_path / name)
    wide, high = pad_to_common_size([tmp_path / "wide.png", tmp_path / "high.png"])
    assert wide.size == high.size == (6, 4)
    red = [
        [(x, y) for x in range(6) for y in range(4) if picture.getpixel((x, y)) == (255, 0, 0)]
        for picture in (wide, high)
    ]
    assert red == [[(x, y) for x in range(6) for y in (1, 2)], [(x, y) for x in (2, 3) for y in range(4)]]
    assert wide.getpixel((0, 0)) == (255, 255, 255)


def test_several_labels_give_bars_and_curves(several: Offline) -> None:
    precisions = {row["class"]: float(row["AP"]) for row in several.rows("per_class") if row["AP"]}
    bars = several.table("test/average_precision_by_class_table")
    assert {row[0]: row[1] for row in bars["data"]} == precisions
    curves = several.rows("precision_recall")
    assert {row["class"] for row in curves} == precisions.keys()
    assert all(0 <= float(row["1.0"]) <= float(row["0.0"]) <= 1 for row in curves)  # decreasing
    points = several.table("test/precision_recall_table")["data"]
    assert len(points) == 101 * len(curves)
    assert len(several.pictures("test/average_precision")) == 1
    mistakes = [row for row in several.rows("examples") if row["kind"] == "mistake"]
    assert len(mistakes) == 16  # at most
    assert all({row["true"], row["answered"]} in [{c, f"no {c}"} for c in precisions] for row in mistakes)


@pytest.mark.parametrize("which", ["tuned", "several"])
def test_intervals_are_shown_beside_their_metrics(which: str, request: pytest.FixtureRequest) -> None:
    found: Offline = request.getfixturevalue(which)
    page, metrics = (found.folder / "report.html").read_text(), found.metrics["metrics"]
    kinds = {"test/accuracy": "Wilson"}
    if which == "tuned" and metrics["test/accuracy"] < 1:
        kinds["test/mean_class_accuracy"] = "bootstrap"
    if which == "several":
        kinds = dict.fromkeys(("test/mAP", "test/mAP_11point", "test/mAP_allpoint"), "bootstrap")
    assert {name: interval["by"] for name, interval in found.metrics["intervals"].items()} == kinds
    for name, interval in found.metrics["intervals"].items():
        assert interval["low"] < interval["high"]
        assert f"{interval['low']:.2%} to {interval['high']:.2%} ({interval['by']})" in page
        assert found.summary[f"{name}_low"] == interval["low"] and found.summary[f"{name}_high"] == interval["high"]


def test_some_predictions_become_a_table(tuned: Offline) -> None:
    table, rows = tuned.table("test/predictions"), tuned.rows("predictions")
    assert table["columns"] == list(rows[0])
    assert [row[:2] for row in table["data"]] == [[row["path"], row["true"]] for row in rows]
    heads, some = read_predictions(tuned.folder / "predictions.csv", 4)
    assert [row[0] for row in some] == [rows[i]["path"] for i in (0, 2, 4, 6)]  # of nine
    assert some[1][heads.index("probability_1")] == float(rows[2]["probability_1"])


def test_a_table_of_predictions_may_be_empty_or_have_unusual_names(tmp_path: Path) -> None:
    file = tmp_path / "predictions.csv"
    file.write_bytes(b"path,true,right\n")
    assert read_predictions(file, 5) == (["path", "true", "right"], [])
    file.write_bytes(b'path,true,right\n"a\n\xff.jpg",gull,1\n')
    assert read_predictions(file, 5)[1] == [["a\n?.jpg", "gull", 1.0]]


def test_dashboard_panels_show_logged_keys(tuned: Offline, several: Offline) -> None:
    logged: set[str] = set()
    for found in (tuned, several):
        rows = [record["history"]["item"] for record in found.records if record["type"] == "history"]
        logged |= {key for row in rows for key in row} | found.summary.keys()
        logged |= {f"{k}.{part}" for k, value in found.summary.items() if isinstance(value, dict) for part in value}
    logged |= {key.removesuffix("._type") for key in logged}  # pictures and tables
    for section in sections():
        for panel in section.panels:
            for key in keys_of(panel):
                assert key in logged, (section.name, key)
            if pattern := getattr(panel, "metric_regex", None):
                drawn = {key for key in logged if re.search(pattern, key)}
                parts = {key.partition("/")[2] for key in drawn}
                assert parts == {"backbone", "projection", "classifier"}, (pattern, drawn)
    assert set(COLUMNS) <= logged


def test_each_test_image_has_a_prediction(tuned: Offline) -> None:
    rows = tuned.rows("predictions")
    assert len(rows) == tuned.metrics["images"]["test"]
    right = [row["true"] == row["class_1"] for row in rows]
    assert right == [row["right"] == "1" for row in rows]
    assert sum(right) / len(rows) == pytest.approx(tuned.metrics["metrics"]["test/accuracy"])
    assert all((tuned.folder.parents[1] / "data" / "CUB_200_2011" / row["path"]).is_file() for row in rows)


@pytest.mark.parametrize("which", ["tuned", "several"])
def test_the_report_shows_the_contents_of_the_files(which: str, request: pytest.FixtureRequest) -> None:
    found: Offline = request.getfixturevalue(which)
    page = (found.folder / "report.html").read_text()
    assert len(page) < 3_000_000
    for key, value in found.metrics["metrics"].items():
        if value is not None:
            assert key in page and as_text(key, value) in page, key
    assert page.count("data:image/jpeg") == len(found.rows("examples"))
    assert page.count("data:image/png") == 1
    assert ("Learning rates" in page) == (which == "tuned")
    assert ("Precision and recall" in page) == (which == "several")
