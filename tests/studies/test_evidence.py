"""``compare --reference`` and ``--combine`` from end to end, on a tiny CUB-200-2011."""

import csv
import json
import shutil
from pathlib import Path

import pytest

from cxlp.__main__ import main
from cxlp.studies.choice import cross_validated
from tests.generate import write_cub200
from tests.studies.test_comparison import BASE

SYSTEMS = ["--systems", "CNN-Global", "CL", "CL + CNN-Global", "--out", "out"]


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))
    write_cub200(tmp_path / "data")
    return tmp_path


def table() -> dict[str, dict[str, str]]:
    return {row["system"]: row for row in csv.DictReader(Path("out/results.csv").read_text().splitlines())}


def results(system: str) -> Path:
    (folder,) = Path("out").glob(f"{system}-????????/metrics.json")
    return folder


@pytest.mark.slow
def test_systems_are_combined_and_compared(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["compare", *BASE, "--model.frozen.c", "auto", *SYSTEMS]
    assert main([*command, "--combine", "3", "--reference", "CNN-Global"]) == 0
    said, rows = capsys.readouterr().out, table()
    combined = [name for name in rows if name.startswith("combination: ")]
    assert len(combined) == 4 and "4 combinations of 3 systems" in said  # three pairs and a triple
    assert [float(rows[name]["cv %"]) for name in combined] == sorted(
        (float(rows[name]["cv %"]) for name in combined), reverse=True
    )
    # The sum of two kernels equals the network with both heads: same folds, same C.
    own = json.loads(results("CL-CNN-Global").read_text())["metrics"]["frozen/cv_accuracy"]
    assert float(rows["combination: CNN-Global & CL"]["cv %"]) == float(rows["CL + CNN-Global"]["cv %"])
    assert float(rows["CL + CNN-Global"]["cv %"]) == round(100 * own, 2)
    assert rows["combination: CNN-Global & CL"]["size"] == rows["CL + CNN-Global"]["size"]
    # Only the chosen one was tested, and it has predictions.
    assert [bool(rows[name]["test accuracy %"]) for name in combined] == [True, False, False, False]
    (place,) = Path("out").glob("combination-????????")
    answers = list(csv.DictReader((place / "predictions.csv").read_text().splitlines()))
    hits = sum(int(row["right"]) for row in answers)
    assert float(rows[combined[0]]["test accuracy %"]) == round(100 * hits / len(answers), 2) and len(answers) == 9
    everything = list(csv.DictReader(Path("out/combinations.csv").read_text().splitlines()))
    assert len(everything) == 4 and all(float(row["seconds"]) >= 0 for row in everything)
    # All tested systems except the reference have a difference.
    with_p = {name for name, row in rows.items() if row["p (Holm)"]}
    assert with_p == {"CL", "CL + CNN-Global", combined[0]}
    assert all(row["difference"] for name, row in rows.items() if name in with_p)
    reported = [float(rows[name]["test accuracy %"]) for name in ("CL", "CNN-Global")]
    assert float(rows["CL"]["difference"]) == pytest.approx(reported[0] - reported[1], abs=0.11)
    notes = Path("out/results.md").read_text()
    assert "cv %" in notes and "3 Gram matrices" in notes and "of CNN-Global on the same test images" in notes
    # Heads that were fitted to the labels cannot be chosen by cross-validation.
    found = json.loads(results("CL-CNN-Global").read_text())
    results("CL-CNN-Global").write_text(json.dumps({**found, "heads learnt from labels": True}))
    assert main([*command, "--combine", "2"]) == 0
    assert "CL + CNN-Global is left out: its heads were fitted to the labels" in capsys.readouterr().out
    assert table()["CL + CNN-Global"]["cv %"] == "" and [*table()][3:] == ["combination: CNN-Global & CL"]
    # Missing features are reported, and the table is written nevertheless.
    shutil.rmtree("runs/features")
    Path("out/results.csv").unlink()
    assert main([*command, "--combine", "2"]) == 3
    assert (
        "error: no combinations: the train features of CNN-Global are no longer in runs/features"
        in capsys.readouterr().err
    )
    assert "CL" in table() and "difference" not in table()["CL"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--systems", "CL", "--combine", "2"], "--combine is 2, but CL is the only system"),
        (["--combine", "1"], "--combine is 1: it must be 2 or more"),
        (["--combine", "2", "--no-store"], "--combine and --no-store exclude each other"),
        (["--combine", "2", "--seeds", "2"], "--combine and --seeds exclude each other"),
        (["--reference", "CL-99"], "unknown system 'CL-99'. Valid: CNN-Global"),
        (
            ["--systems", "CL", "average", "--reference", "bilinear"],
            "unknown system 'bilinear'. Valid: CL, average",
        ),
    ],
)
def test_wrong_arguments_are_explained(
    work: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], said: str
) -> None:
    assert main(["compare", *BASE, *arguments]) == 2
    assert said in capsys.readouterr().err
    assert not Path("runs").exists()


def test_cv_needs_a_tested_frozen_fit_with_heads_fitted_without_labels() -> None:
    metrics = {"frozen/cv_accuracy": 0.75, "test/accuracy": 0.5}
    frozen = {"tested": "checkpoints/frozen.ckpt", "epoch": 0, "metrics": metrics}
    assert cross_validated(frozen, "accuracy") == 0.75 and cross_validated(frozen, "mAP") is None
    assert cross_validated({**frozen, "tested": "final weights"}, "accuracy") == 0.75
    assert cross_validated({**frozen, "heads learnt from labels": True}, "accuracy") is None
    for tested, epoch in (("checkpoints/finetuned.ckpt", 4), ("checkpoints/closing.ckpt", 9), ("final weights", 2)):
        assert cross_validated({**frozen, "tested": tested, "epoch": epoch}, "accuracy") is None
    assert cross_validated({}, "accuracy") is None
