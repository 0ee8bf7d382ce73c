"""The bound on the gain of fine-tuning that a run prints before its gradient epochs."""

from pathlib import Path

import pytest

from cxlp.metrics.intervals import wilson
from cxlp.runs.summary import possible_gain
from tests.small_run import FINETUNE, metrics, run


def report(cross_validated: float, metric: str = "accuracy") -> dict[str, float]:
    return {"C": 10.0, "logit_scale": 2.0, f"cv_{metric}": cross_validated, f"train_{metric}": 1.0}


def test_it_prints_both_accuracies_and_the_possible_gain() -> None:
    (line,) = possible_gain(report(0.92), 300)
    low, high, _ = wilson(276, 300)
    assert "training accuracy 100.0 %" in line and "cross-validated 92.0 %" in line and "at most 8.0 points" in line
    assert f"{100 * low:.1f} to {100 * high:.1f}" in line


@pytest.mark.parametrize(
    ("cross_validated", "images", "least"),
    [
        (0.99, 10_000, "2 points"),
        (0.985, 40_000, "2 points"),
        (0.97, 100, "half the width of this interval, 3.7 points"),  # 91.5 to 99.0
    ],
)
def test_it_warns_of_a_small_possible_gain(cross_validated: float, images: int, least: str) -> None:
    _, warning = possible_gain(report(cross_validated), images)
    assert warning.startswith("warning: ") and "frozen fit" in warning
    assert f"less than {least}" in warning


@pytest.mark.parametrize(("cross_validated", "images"), [(0.975, 10_000), (0.9, 100), (0.0, 20)])
def test_it_does_not_warn_of_a_large_possible_gain(cross_validated: float, images: int) -> None:
    assert len(possible_gain(report(cross_validated), images)) == 1


def test_a_mean_average_precision_has_no_interval() -> None:
    (line,) = possible_gain(report(0.7, "mAP"), 50)
    assert "cross-validated 70.0 %:" in line and "mAP" in line
    assert len(possible_gain(report(0.99, "mAP"), 50)) == 2


def test_without_cross_validation_nothing_is_printed() -> None:
    assert possible_gain({"C": 10.0, "logit_scale": 1.0}, 50) == []


def test_a_run_prints_it_once_before_the_gradient_epochs(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = run("tuned", *FINETUNE)
    said = capsys.readouterr().out.splitlines()
    (place,) = [i for i, line in enumerate(said) if "can gain at most" in line]
    found = metrics(folder)["metrics"]
    assert f"cross-validated {100 * found['frozen/cv_accuracy']:.1f} %" in said[place]
    assert f"training accuracy {100 * found['frozen/train_accuracy']:.1f} %" in said[place]
    epochs = [i for i, line in enumerate(said) if line.startswith(("frozen fit  ", "epoch 1"))]
    assert epochs[0] < place < epochs[1]
    run("frozen")
    assert "can gain at most" not in capsys.readouterr().out


def test_nothing_is_said_of_an_earlier_runs_frozen_fit(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = run("tuned", *FINETUNE)
    capsys.readouterr()
    run("next", *FINETUNE, "--model.start", str(folder / "checkpoints" / "last.ckpt"))  # it is already fine-tuned
    assert "can gain at most" not in capsys.readouterr().out
