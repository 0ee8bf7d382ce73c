"""The benchmark scripts run at tiny sizes, and their contestants agree."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


def run(script: str, *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, str(BENCHMARKS / script), *arguments], check=True, capture_output=True, text=True, timeout=200
    )
    return done.stdout


@pytest.mark.slow
def test_pooling_benchmark_prints_ratios() -> None:
    shown = run("pooling.py", "--batch", "2", "--channels", "8", "--pca", "6", "--guides", "4", "--map", "7")
    assert "forward" in shown and "memory" in shown


@pytest.mark.slow
def test_svm_benchmark_finds_equal_predictions(tmp_path: Path) -> None:
    out = tmp_path / "out.json"
    run("svm.py", "--n", "200", "--dim", "500", "--classes", "5", "--out", str(out))
    found = json.loads(out.read_text())
    assert found["cxlp"]["total_s"] > 0 and found["LinearSVC"]["total_s"] > 0
    assert found["compare"]["equal predictions"] > 0.98


@pytest.mark.slow
def test_loading_benchmark_measures_both_and_their_difference(tmp_path: Path) -> None:
    out = tmp_path / "out.json"
    run(
        "loading.py",
        "--width",
        "160",
        "--height",
        "120",
        "--size",
        "40",
        "--images",
        "4",
        "--rounds",
        "3",
        "--out",
        str(out),
    )
    found = json.loads(out.read_text())
    assert all(len(found["images_per_second"][name]) == 3 for name in ("cxlp", "plain"))
    mean, most, largest = found["apart"]["cxlp, full decoding - areas"]
    assert 0 < mean < 2
    assert mean < most <= largest
    assert 0 < found["apart"]["cxlp - plain"][0] < 10
