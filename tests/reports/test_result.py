"""The files of a test: written for any names and numbers, and each may fail without the others."""

import csv
import errno
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import cxlp.reports.result
from cxlp.data.dataset import ImageDataset, Sample
from cxlp.data.transforms import AugmentConfig, Transform
from cxlp.metrics.classification import confusion_matrix, per_class_average_precision
from cxlp.reports.examples import Examples
from cxlp.reports.outputs import Outputs
from cxlp.reports.page import build_page
from cxlp.reports.predictions import Predictions
from cxlp.reports.result import TestResult
from tests.generate import write_image
from tests.tasks.small import network

NAMES = [
    "<script>alert(1)</script>",
    "🐦🦩 пти́ца",
    "طائر أزرق",
    "$\\frac{1$ & US$",
    "[/b] [red]{{ 7 * 7 }}",
    "a" * 300,
    "",
    "two\nlines\tand \x07",
    "not UTF-8: \udcff",
    "=1+1;,\"'",
]


def outcome(
    folder: Path, classes: Sequence[str], labels: Any, scores: torch.Tensor, multi_label: bool = False
) -> TestResult:
    """Build the result of a test with these scores."""
    picture = write_image(folder / "a.png", np.full((40, 40, 3), 100, dtype=np.uint8))
    samples = [Sample(picture, label) for label in labels]
    data = ImageDataset(samples, list(classes), Transform(32, "warp", AugmentConfig()))
    net = network(classes=classes, multi_label=multi_label).eval()
    metric = (per_class_average_precision if multi_label else confusion_matrix)(len(classes))
    examples, truth = Examples(), torch.tensor(labels)
    metric.update(scores, truth)
    examples.update(scores, truth, torch.arange(len(labels)))
    predictions = Predictions(data, folder, scores, torch.arange(len(labels)), "all")
    return TestResult(net, data, metric.compute(), *examples.gather(), predictions)


def write(result: TestResult, folder: Path) -> tuple[Outputs, str]:
    """Write its files, and the page of a run with them."""
    outputs = Outputs()
    result.write(folder, outputs)
    found = {"metrics": {}, "seconds": {}, "tested": "x", "images": {"train": 1}, "memory": {}}
    (folder / "metrics.json").write_text(json.dumps(found))
    return outputs, build_page(folder)


def records(folder: Path, name: str) -> list[dict[str, str]]:
    with (folder / f"{name}.csv").open(newline="", errors="surrogateescape") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("multi_label", [False, True])
def test_names_of_any_kind_can_be_written(tmp_path: Path, multi_label: bool, recwarn: pytest.WarningsRecorder) -> None:
    count = len(NAMES)
    labels: Any = [(k + 1) % count for k in range(count)]  # each is predicted as the class before it
    if multi_label:
        labels = (2 * torch.eye(count, dtype=torch.int64) - 1).roll(1, 0).tolist()
    outputs, page = write(outcome(tmp_path, NAMES, labels, 5 * torch.eye(count), multi_label), tmp_path)
    assert outputs.failed == []
    assert {row["class"] for row in records(tmp_path, "per_class")} == set(NAMES)
    assert {row["class_1"] for row in records(tmp_path, "predictions")} == set(NAMES)
    assert np.load(tmp_path / "scores.npz")["classes"].tolist() == NAMES
    assert "<script>alert" not in page and "&lt;script&gt;alert" in page and "{{ 7 * 7 }}" in page
    assert page.count("data:image/jpeg") == len(records(tmp_path, "examples")) > 0
    assert not [str(w.message) for w in recwarn if "reports" in w.filename or "matplotlib" in w.filename]


@pytest.mark.parametrize(
    ("classes", "label", "scores"),
    [
        (["gull", "tern"], 0, [5.0, 0.0]),
        (["gull", "tern"], 1, [5.0, 0.0]),
        (["gull", "tern"], 1, [float("nan"), float("nan")]),
        (["gull"], [1], [5.0]),
        (["gull"], [1], [-5.0]),
        (["gull"], [-1], [5.0]),
        (["gull"], [0], [5.0]),
    ],
    ids=str,
)
def test_a_single_image_is_enough(tmp_path: Path, classes: list[str], label: Any, scores: list[float]) -> None:
    result = outcome(tmp_path, classes, [label], torch.tensor([scores]), isinstance(label, list))
    outputs, page = write(result, tmp_path)
    assert outputs.failed == [] and page.count("data:image/png") == 1
    assert len(records(tmp_path, "examples")) == page.count("data:image/jpeg")
    assert len(records(tmp_path, "predictions")) == 1
    if not any(map(math.isnan, scores)):
        assert all(0 <= low <= high <= 1 for low, high, _ in result.intervals().values())


@pytest.mark.parametrize("multi_label", [False, True])
def test_thousands_of_classes_make_pictures_of_bounded_size(tmp_path: Path, multi_label: bool) -> None:
    names = [f"class {k}" for k in range(3000)]
    labels: Any = [7, 2999, 5]
    if multi_label:
        labels = (2 * torch.nn.functional.one_hot(torch.tensor(labels), 3000) - 1).tolist()
    scores = torch.randn(3, 3000, generator=torch.Generator().manual_seed(0))
    outputs, page = write(outcome(tmp_path, names, labels, scores, multi_label), tmp_path)
    assert outputs.failed == [] and len(page) < 3_000_000
    assert len(records(tmp_path, "per_class")) == 3000
    assert page.count("data:image/png") == 1


def full(*_: Any, **__: Any) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def no_font(*_: Any) -> None:
    raise RuntimeError("no font\nat all")


@pytest.mark.parametrize(
    ("broken", "lost", "said"),
    [
        ("draw_confusion", "confusion_matrix.png", "RuntimeError: no font at all (test_result.py, line "),
        ("confusion_table", "per_class.csv", "RuntimeError: no font at all"),
        ("example_table", "examples.csv", "RuntimeError: no font at all"),
        ("draw_evidence", "examples", "RuntimeError: no font at all"),
    ],
)
def test_a_failed_output_does_not_affect_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
    broken: str, lost: str, said: str,
) -> None:  # fmt: skip
    result = outcome(tmp_path, ["gull", "tern"], [0, 1, 1], torch.tensor([[2.0, 1.0], [0.0, 1.0], [3.0, 1.0]]))
    whole = {"per_class.csv", "confusions.csv", "confusion_matrix.png", "examples.csv", "examples"}
    write(result, tmp_path)
    assert whole <= {path.name for path in tmp_path.iterdir()}
    monkeypatch.setattr(cxlp.reports.result, broken, no_font)
    outputs, _ = write(result, tmp_path)
    assert outputs.failed == [lost]
    told = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(told) == 1 and told[0].startswith(f"error: {lost} could not be written: {said}")
    there = {path.name for path in tmp_path.iterdir() if path.is_file() or any(path.iterdir())}
    # The file of an earlier test is deleted, too. If the evidence cannot be drawn, thumbnails show pictures only.
    assert whole - there == ({lost} if broken != "draw_evidence" else set())


def test_a_full_disk_affects_pictures_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    result = outcome(tmp_path, ["gull", "tern"], [0, 1, 1], torch.tensor([[2.0, 1.0], [0.0, 1.0], [3.0, 1.0]]))
    monkeypatch.setattr("cxlp.reports.examples.write_whole", full)
    outputs, page = write(result, tmp_path)
    assert outputs.failed == ["examples"] and not list((tmp_path / "examples").iterdir())
    assert len(records(tmp_path, "examples")) == 3 and "data:image/jpeg" not in page
