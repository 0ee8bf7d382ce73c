"""The report page: its content for any run's folder, self-contained, escaped and bounded."""

import csv
import json
import re
import shutil
from functools import cache
from html.parser import HTMLParser
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image

from cxlp.reports.charts import line_chart
from cxlp.reports.history import curves, history
from cxlp.reports.page import CURVES, build_page, write_report

PLACE = TemporaryDirectory(prefix="runs-of-tests-")
VOID = {"meta", "img", "br"}


class Reader(HTMLParser):
    """Checks that elements are closed in order; collects texts, links and sources."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.texts: list[str] = []
        self.links: list[str] = []
        self.tags: list[str] = []
        self.feed(page)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.links += [value or "" for key, value in attrs if key in ("href", "src")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


def write_csv(path: Path, *rows: list[Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        csv.writer(file).writerows(rows)


def write_run(folder: Path, classes: int = 3, name: str = "gull {}") -> Path:
    """Write the output files of a fine-tuning run."""
    return shutil.copytree(template(classes, name), folder, dirs_exist_ok=True)


@cache
def template(classes: int, name: str) -> Path:
    folder = Path(PLACE.name, str(template.cache_info().misses))
    (folder / "examples").mkdir(parents=True)
    metrics = {"test/accuracy": 0.8125, "test/loss": 0.5, "val/accuracy": 0.75, "frozen/C": 10.0, "test/none": None}
    found = {
        "metrics": metrics, "seconds": {"extraction": 2.0, "test": 4.0}, "images_per_second": {"test": 2.25},
        "tested": "checkpoints/best.ckpt", "epoch": 1,
        "images": {"train": 10, "val": 2, "test": 9}, "memory": {"peak_bytes": 3e8},
    }  # fmt: skip
    (folder / "metrics.json").write_text(json.dumps(found))
    head = {"class_path": "cxlp.CrossLayerPooling", "init_args": {"pca_dim": 16, "size": 1}}
    model = {
        "backbone": {"name": "resnet50", "layers": ["layer4.1", "layer4.2"]},
        "head": head,
        "optimizer": {"backbone_lr": 0.031},
    }
    config = {"seed_everything": 3, "model": model, "trainer": {"max_epochs": 2}}
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    (folder / "provenance.json").write_text(json.dumps({"data": {"name": "birds <&>"}, "git": None}))
    names = [name.format(k) for k in range(classes)]
    write_csv(folder / "per_class.csv", ["class", "images", "accuracy"], *([n, 3, 0.5] for n in names))
    write_csv(folder / "confusions.csv", ["true", "taken for", "times"], [names[0], names[1], 4])
    noise = np.random.default_rng(0)
    Image.fromarray(noise.integers(0, 255, (300, 300, 3), np.uint8)).save(folder / "confusion_matrix.png")
    rows = []
    for kind, count in (("mistake", 16), ("right", 8)):
        for i in range(count):
            strip = noise.integers(0, 255, (160, 488, 3), np.uint8)
            Image.fromarray(strip).save(folder / "examples" / f"{kind}-{i}.jpg", quality=85)
            rows.append([f"{kind}-{i}.jpg", kind, names[0], 0.0125, names[1], 0.75, f"data/<{i}>.jpg"])
    write_csv(
        folder / "examples.csv",
        ["picture", "kind", "true", "true probability", "answered", "answered probability", "image"],
        *rows,
    )
    header = ["epoch", "images_seen", "train/loss_step", "val/loss", "val/accuracy", "lr-SGD/backbone", "step"]
    logs = folder / "csv"
    frozen = ["epoch", "images_seen", "val/accuracy", "val/loss", "step"]
    write_csv(logs / "frozen" / "version_0" / "metrics.csv", frozen, [0, 10, 0.5, 0.9, 0])
    write_csv(logs / "finetune" / "version_0" / "metrics.csv", header,
              [1, 15, 0.75, "", "", "", 4], ["", "", "", "", "", 0.01, 4], [1, 18, 7.75, "", "", "", 7])  # fmt: skip
    # A resumed session repeats steps; version_10 must be read after version_2.
    write_csv(logs / "finetune" / "version_2" / "metrics.csv", header, [1, 18, 7.5, "", "", "", 7])
    write_csv(logs / "finetune" / "version_10" / "metrics.csv", header,
              [1, 18, 0.625, "", "", "", 7], [1, 20, "", 0.7, 0.75, "", 9])  # fmt: skip
    return folder


def test_the_page_shows_numbers_curves_and_figures(tmp_path: Path) -> None:
    page = build_page(write_run(tmp_path / "run"))
    text = " ".join(Reader(page).texts)
    for shown in (
        "81.25%", "test/accuracy", "75.00%", "frozen/C", "2.2", "300 MB", "seed_everything", "birds <&>", "gull 2",
        "training, by step: 0.625", "validation: 0.7", "accuracy: 75.00%", "backbone: 0.01", "best.ckpt",
        "Learning rates", "tested",
    ):  # fmt: skip
        assert shown in text, shown
    assert "7.5" not in text  # a repeated step has its latest values
    assert "test/none" not in text
    assert page.count("data:image/jpeg") == 24 and page.count("data:image/png") == 1


def test_the_page_is_offline_and_links_to_files_in_the_folder(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run")
    page = build_page(folder)
    reader = Reader(page)
    for link in reader.links:
        assert (
            (link[0] == "#" and f'id="{link[1:]}"' in page)
            or link.startswith("data:image/")
            or (folder / link).exists()
        ), link[:60]
    assert not {"link", "iframe", "object", "embed"} & set(reader.tags)
    assert "http" not in page and "@import" not in page and "url(" not in page.replace("url(#", "")
    assert "prefers-color-scheme: dark" in page and 'name="viewport"' in page


def test_names_of_classes_and_files_are_escaped(tmp_path: Path) -> None:
    page = build_page(write_run(tmp_path / "a<b>&", name='<script>alert("{}")</script>'))
    reader = Reader(page)
    assert reader.tags.count("script") == 1  # generated by cxlp
    assert '<script>alert("2")</script>' in reader.texts
    assert "a<b>&" in reader.texts


def test_names_that_are_not_utf_8_are_supported(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run")
    table = (folder / "examples.csv").read_bytes()
    (folder / "examples.csv").write_bytes(table.replace(b"data/<0>.jpg", b"data/caf\xe9.jpg", 1))
    assert "caf\ufffd.jpg" in build_page(folder)


def test_the_page_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert CURVES <= 40
    monkeypatch.setattr("cxlp.reports.page.CURVES", 4)
    folder = write_run(tmp_path / "run", classes=3000, name="a rather long name of class {}")
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (800, 800, 3), np.uint8)).save(
        folder / "confusion_matrix.png"
    )
    write_csv(folder / "precision_recall.csv", ["class", *(i / 100 for i in range(101))],
              *([f"a rather long name of class {k}", *[0.5] * 101] for k in range(300)))  # fmt: skip
    page = build_page(folder)
    assert len(page) < 3_000_000
    assert "and 2000 more" in page
    assert page.count("precision at full recall") == 4
    assert "data:image/png" not in page and "confusion_matrix.png" in page  # too large to be embedded


def test_both_classes_have_their_probabilities(tmp_path: Path) -> None:
    page = build_page(write_run(tmp_path / "run", name="00{0}.Ivory_gull_{0}"))
    caption = re.findall("<figcaption>(predicted.*?)</figcaption>", page)[0]
    told = re.sub("<.*?>", " ", caption.replace("\n", " "))
    assert " ".join(told.split()) == "predicted: Ivory gull 1 75.00% true: Ivory gull 0 1.25%"
    assert "Ivory_gull" not in page


def test_columns_of_numbers_are_right_aligned_despite_empty_cells(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run")
    write_csv(folder / "per_class.csv", ["class", "accuracy", "most often taken for"], ["1", "", "0"], ["0", 0.5, ""])
    page = build_page(folder).partition("<h2>By class</h2>")[2]
    assert re.findall('<td class="(.*?)"', page)[:6] == ["number", "number", "number", "number", "number bar", "number"]
    assert 'style="--part: 50.00%">50.00%' in page


def test_a_run_without_loggers_and_provenance_has_a_page(tmp_path: Path) -> None:
    found = {
        "metrics": {"test/mAP": 0.5},
        "seconds": {},
        "tested": "final weights",
        "images": {"train": 1},
        "memory": {},
    }
    (tmp_path / "metrics.json").write_text(json.dumps(found))
    write_report(tmp_path)
    reader = Reader((tmp_path / "report.html").read_text())
    assert "50.00%" in reader.texts and "Fine-tuning" not in reader.texts and "Confusions" not in reader.texts
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith(".")] == []


def headings(page: str) -> list[str]:
    return re.findall("<h2>(.*?)</h2>", page)


def test_empty_sections_are_not_shown(tmp_path: Path) -> None:
    found = {"metrics": {"test/loss": None}, "seconds": {}, "tested": "final weights", "images": {"train": 1}}
    (tmp_path / "metrics.json").write_text(json.dumps(found | {"memory": {}, "cost": {}}))
    assert headings(build_page(tmp_path)) == ["Files"]
    assert 'class="tiles"' not in build_page(tmp_path)
    # Files without content.
    for name in ("per_class", "confusions", "precision_recall", "examples"):
        write_csv(tmp_path / f"{name}.csv", ["class", "kind", "true"])
    write_csv(
        tmp_path / "csv" / "finetune" / "version_0" / "metrics.csv", ["train/loss_step", "step"], ["nan", 0], ["nan", 1]
    )
    (tmp_path / "config.yaml").write_text("")
    assert headings(build_page(tmp_path)) == ["Files"]


def test_a_run_shows_the_sections_that_it_has_content_for(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run")
    there = headings(build_page(folder))
    assert "Fine-tuning" in there and "Confusions" in there
    assert "Refit" not in there and "Precision and recall" not in there
    (folder / "confusion_matrix.png").unlink()
    assert headings(build_page(folder)) == there  # the pairs are still there
    (folder / "confusions.csv").unlink()
    assert headings(build_page(folder)) == [heading for heading in there if heading != "Confusions"]


def test_the_same_files_give_the_same_page_whose_charts_share_no_id(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run")
    curves = ["class", *(i / 10 for i in range(11))]
    write_csv(folder / "precision_recall.csv", curves, *([f"gull {k}", *[0.5] * 11] for k in range(3)))
    page = build_page(folder)
    assert page == build_page(folder)
    ids = re.findall(r'\bid="([^"]*)"', page)
    assert page.count("<svg") > 3 and ids and len(ids) == len(set(ids))


def test_a_missing_figure_is_left_out(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run")
    (folder / "examples" / "mistake-0.jpg").unlink()
    assert build_page(folder).count("data:image/jpeg") == 23


@pytest.mark.parametrize("rest", [b"1,15,0.", b"1,15,0.5,,,,", b"1,15,0.5,,,1e-,4", b"\x00" * 50, b"1,15,\xff,,,,4"])
def test_a_truncated_row_is_skipped(tmp_path: Path, rest: bytes) -> None:
    log = tmp_path / "csv" / "finetune" / "version_0" / "metrics.csv"
    log.parent.mkdir(parents=True)
    header = b"epoch,images_seen,train/loss_step,val/loss,val/accuracy,lr-SGD/backbone,step\n"
    log.write_bytes(header + b"1,15,0.75,,,,4\n" + rest)
    assert history(tmp_path)["finetune"] == [{"epoch": 1.0, "images_seen": 15.0, "train/loss_step": 0.75}]
    log.write_bytes(b"")
    assert not any(history(tmp_path).values())


def test_curves_go_over_all_stages_in_their_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_run(tmp_path / "run")
    closing = folder / "csv" / "closing" / "version_0" / "metrics.csv"
    write_csv(closing, ["epoch", "images_seen", "val/accuracy", "val/loss", "step"], [2, 30, 0.875, 0.6, 0])
    write_csv(folder / "csv" / "test" / "version_0" / "metrics.csv", ["epoch", "test/accuracy", "step"], [0, 0.8, 0])
    drawn: dict[str, dict[str, list[tuple[float, float]]]] = {}

    def keep(title: str, series: dict[str, list[tuple[float, float]]], *more: Any, **options: Any) -> Any:
        drawn[title] = {name: list(points) for name, points in series.items()}
        return line_chart(title, series, *more, **options)

    monkeypatch.setattr("cxlp.reports.page.line_chart", keep)
    page = build_page(folder)
    # Epoch 0 is the frozen fit; steps are between epochs of ten training images.
    assert drawn["Validation"] == {"accuracy": [(0.0, 0.5), (1.0, 0.75), (2.0, 0.875)]}
    assert drawn["Loss"]["validation"] == [(0.0, 0.9), (1.0, 0.7), (2.0, 0.6)]
    assert drawn["Loss"]["training, by step"] == [(0.5, 0.75), (0.8, 0.625)]
    assert "accuracy: 87.50%" in page


def test_steps_lie_within_the_logged_epochs(tmp_path: Path) -> None:
    """From scratch, with images dropped at the end of an epoch, validation within epochs, and an incomplete epoch."""
    log = tmp_path / "csv" / "finetune" / "version_0" / "metrics.csv"
    header = ["epoch", "images_seen", "train/loss_step", "train/loss_epoch", "val/accuracy", "step"]
    write_csv(log, header,
              [1, 4, 0.9, "", "", 0], [1, 4, "", "", 0.25, 0], [1, 8, "", 0.8, 0.5, 1],
              [2, 12, 0.7, "", "", 2], [2, 16, "", 0.6, 0.75, 3], [3, 21, 0.5, "", "", 4])  # fmt: skip
    found = curves(tmp_path, 10)
    assert found["train/loss_step"] == [(0.5, 0.9), (1.5, 0.7), (2.5, 0.5)]
    assert found["val/accuracy"] == [(0.5, 0.25), (1.0, 0.5), (2.0, 0.75)]
    assert found["train/loss_epoch"] == [(1.0, 0.8), (2.0, 0.6)]


def setup_of(folder: Path) -> dict[str, str]:
    """Return the setup on the page, and the line below the title."""
    page = build_page(folder)
    section = page.partition("<h2>Setup</h2>")[2].partition("</dl>")[0]
    found = dict(re.findall("<dt>(.*?)</dt><dd>(.*?)</dd>", section))
    return found | {"below": page.partition('<p class="soft">')[2].partition("</p>")[0]}


def test_network_and_mode_are_shown(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run")
    found = setup_of(folder)
    assert found["model.backbone.name"] == "resnet50" and found["model.optimizer.backbone_lr"] == "0.031"
    assert (found["model.head"], found["model.head.pca_dim"]) == ("CrossLayerPooling", "16")
    assert found["model.backbone.layers"] == "layer4.1, layer4.2"
    assert {"resnet50", "CrossLayerPooling", "2 gradient epochs"} < set(found["below"].split(" · "))
    config = yaml.safe_load((folder / "config.yaml").read_text())
    config["trainer"]["max_epochs"] = 0
    config["model"]["head"] = [{"class_path": "mine.MaxPooling"}, config["model"]["head"]]
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    found = setup_of(folder)
    assert (found["model.head"], found["model.head.pca_dim"]) == ("MaxPooling + CrossLayerPooling", "16")
    assert "frozen network" in found["below"].split(" · ")
    assert "model.optimizer.backbone_lr" not in found  # there were no steps


def test_a_refit_shows_how_its_epoch_was_chosen(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run")
    found = json.loads((folder / "metrics.json").read_text())
    found["refit"] = {
        "chosen by": "runs/a/best.ckpt",
        "epoch": 7,
        "validated": {"val/accuracy": 0.4321, "val/mAP": None},
    }
    (folder / "metrics.json").write_text(json.dumps(found))
    text = " ".join(Reader(build_page(folder)).texts)
    assert "runs/a/best.ckpt" in text and "43.21%" in text
