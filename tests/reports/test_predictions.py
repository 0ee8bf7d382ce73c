"""The predictions of a test: content of the files, choice of images, and collection over ranks."""

import csv
import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cxlp.data.dataset import ImageDataset, Sample
from cxlp.data.transforms import AugmentConfig, Transform
from cxlp.reports.formatting import as_csv, csv_writer
from cxlp.reports.outputs import Outputs
from cxlp.reports.predictions import Kept, Predictions, Scores, spread

CLASSES = ["gull", "tern", "wren"]


def predictions(root: Path, labels: list[Any], scores: torch.Tensor, kept: Kept = "all") -> Predictions:
    samples = [Sample(root / f"deep/{i}.png", label) for i, label in enumerate(labels)]
    data = ImageDataset(samples, CLASSES, Transform(32, "warp", AugmentConfig()))
    return Predictions(data, root, scores, torch.arange(len(labels)), kept)


def read(folder: Path) -> list[dict[str, str]]:
    with (folder / "predictions.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_one_label_per_image(tmp_path: Path) -> None:
    scores = torch.tensor([[3.0, 1.0, 0.0], [0.0, 2.0, 2.0]])
    outputs = Outputs()
    found = predictions(tmp_path / "data", [0, 2], scores)
    found.data.samples[1] = Sample(tmp_path / "elsewhere.png", 2)
    found.write(tmp_path, outputs)
    assert outputs.failed == []
    first, second = read(tmp_path)
    answers = [f"{what}_{k}" for k in (1, 2, 3) for what in ("class", "probability")]
    assert list(first) == ["path", "true", "right", *answers]
    assert first["path"] == "deep/0.png" and second["path"] == str(tmp_path / "elsewhere.png")
    assert [(row["true"], row["right"], row["class_1"]) for row in (first, second)] == [
        ("gull", "1", "gull"), ("wren", "0", "tern"),
    ]  # fmt: skip
    named = [float(first[f"probability_{k}"]) for k in (1, 2, 3)]
    assert named == pytest.approx(scores[0].softmax(0).tolist(), abs=1e-5)
    arrays = np.load(tmp_path / "scores.npz")
    assert arrays["scores"].dtype == np.float32 and np.array_equal(arrays["scores"], scores)
    assert arrays["labels"].tolist() == [0, 2] and arrays["index"].tolist() == [0, 1]
    assert arrays["paths"].tolist() == [first["path"], second["path"]] and arrays["classes"].tolist() == CLASSES


def test_several_labels_per_image(tmp_path: Path) -> None:
    scores = torch.tensor([[3.0, -1.0, 0.0]])
    predictions(tmp_path, [(1, 0, 1)], scores).write(tmp_path, Outputs())
    (row,) = read(tmp_path)
    assert (row["true"], row["unspecified"], row["class_1"], row["class_2"]) == (
        '["gull", "wren"]', '["tern"]', "gull", "wren",
    )  # fmt: skip
    assert float(row["probability_2"]) == 0.5 and "right" not in row
    assert np.load(tmp_path / "scores.npz")["labels"].tolist() == [[1, 0, 1]]


def test_kept_images_are_evenly_spaced_over_the_split(tmp_path: Path) -> None:
    assert spread(10, 4).tolist() == [0, 2, 5, 7]
    assert spread(3, 9).tolist() == spread(3, "all").tolist() == [0, 1, 2]
    assert spread(3, "none").tolist() == spread(0, "all").tolist() == []
    labels = [0] * 4 + [1] * 4
    found = predictions(tmp_path, labels, torch.arange(24.0).view(8, 3), kept=2)
    found.write(tmp_path, Outputs())
    assert [row["path"] for row in read(tmp_path)] == ["deep/0.png", "deep/4.png"]
    assert np.load(tmp_path / "scores.npz")["scores"].tolist() == [[0, 1, 2], [12, 13, 14]]
    predictions(tmp_path, labels, torch.zeros(8, 3), kept="none").write(tmp_path, Outputs())
    assert not list(tmp_path.iterdir())  # files of an earlier test must not remain


def test_scores_are_stored_by_position_in_any_order() -> None:
    scores = torch.arange(15.0).view(5, 3)
    collected = Scores(5, 3, torch.tensor([1, 2, 4]))
    for positions in ([4, 0], [3, 1], [2]):
        collected.update(scores[positions], torch.tensor(positions))
    assert torch.equal(collected.gather(), scores[[1, 2, 4]])


def test_a_failed_file_does_not_affect_others(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    outputs = Outputs()
    broken = predictions(tmp_path, [0], torch.zeros(1, 3))
    object.__setattr__(broken, "_write_table", lambda path: path.write_text("half") / 0)
    broken.write(tmp_path, outputs)
    assert outputs.failed == ["predictions.csv"] and [path.name for path in tmp_path.iterdir()] == ["scores.npz"]
    assert "predictions.csv could not be written" in capsys.readouterr().err


def test_carriage_returns_do_not_end_lines(tmp_path: Path) -> None:
    odd = ["a\rb", 'c"d', "e,f\n", "plain", "g\r\nh"]
    with (tmp_path / "x.csv").open("w", newline="") as file:
        csv_writer(file).writerows([odd, odd])
    text = (tmp_path / "x.csv").read_bytes().decode()
    assert text.endswith('"g\r\nh"\n') and '"a\rb",' in text and ",plain," in text
    for found in (csv.reader(io.StringIO(text, newline="")), csv.reader(io.StringIO(as_csv(odd, [odd]), newline=""))):
        assert list(found) == [odd, odd]
