"""The benchmark scripts run at tiny sizes, and their variants agree."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.generate import write_folder
from tests.small_run import ARGUMENTS, write_pictures

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


def run(script: str, *arguments: str, place: Path | None = None) -> str:
    command = [sys.executable, str(BENCHMARKS / script), *arguments]
    environment = {**os.environ, "PYTHONPATH": str(BENCHMARKS.parent)}
    done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=300, cwd=place, env=environment)
    return done.stdout


@pytest.mark.slow
def test_frozen_benchmark_compares_a_run_with_bare_passes(tmp_path: Path) -> None:
    write_pictures(tmp_path)
    shown = run("frozen.py", *ARGUMENTS, place=tmp_path)
    seconds = {name.strip(): float(value) for name, value in re.findall(r"│ (.+?) +│ +([0-9.]+) │", shown)}
    phases = [value for name, value in seconds.items() if name.startswith("run: ")]
    assert seconds["run: extraction"] > 0 and seconds["run: test"] > 0
    assert seconds["run, fit and test"] == pytest.approx(sum(phases), abs=0.04)
    floor = [value for name, value in seconds.items() if name.startswith("floor: ")]
    assert len(floor) == 2
    assert seconds["run / floor"] == pytest.approx(sum(phases) / sum(floor), rel=0.5)
    assert [path.name for path in tmp_path.iterdir()] == ["pictures"]  # the run is deleted


@pytest.mark.slow
def test_pooling_benchmark_prints_ratios() -> None:
    shown = run("pooling.py", "--batch", "2", "--channels", "8", "--pca", "6", "--guides", "4", "--map", "7")
    assert "forward" in shown and "memory" in shown


@pytest.mark.slow
def test_svm_benchmark_finds_equal_predictions(tmp_path: Path) -> None:
    out = tmp_path / "out.json"
    sizes = ("--dim", "500", "--classes", "5", "--threads", "1", "--out", str(out))
    run("svm.py", "--n", "200", "--linearsvc", *sizes)
    found = json.loads(out.read_text())
    for name in ("kernel", "primal", "LinearSVC"):
        assert found[name]["total_s"] > 0
        assert found["compare"][f"as the kernel {name}"] > 0.98
    shown = run("svm_growth.py", "100", "200", "--folds", "3", *sizes)
    assert "100" in shown and "200" in shown
    assert 0.2 < json.loads(out.read_text())["200"]["cv_accuracy"] <= 1


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


@pytest.mark.slow
def test_step_benchmark_measures_each_head(tmp_path: Path) -> None:
    out = tmp_path / "out.json"
    network = ["--name", "squeezenet1_0", "--layers", "features.11", "features.12", "--image", "224", "--pca", "6"]
    heads = ["--heads", "cross-layer", "cross-layer, recomputed"]
    sizes = ["--batch", "2", "--classes", "3", "--rounds", "2", "--threads", "1", "--precision", "32"]
    shown = run("step.py", *network, *heads, *sizes, "--out", str(out))
    assert "average pooling" in shown and "peak MB" in shown
    found = json.loads(out.read_text())
    cross = found["cross-layer"]
    assert len(cross["seconds"]) == 2 and min(cross["seconds"]) > 0
    # projection and classifier, with their biases
    assert cross["head"] == 512 * 6 + 6 + 512 * 6 * 3 + 3 > found["average pooling"]["head"] == 512 * 3 + 3
    assert found["cross-layer, recomputed"]["peak"] < cross["peak"]


@pytest.mark.slow
def test_plain_benchmark_compares_two_processes(tmp_path: Path) -> None:
    write_folder(tmp_path / "pictures", size=48)
    out = tmp_path / "out.json"
    options = ["--root", "pictures", "--network", "efficientnet_lite0", "--pca", "8", "--rounds", "1", "--busy", "1"]
    shown = run("plain.py", *options, "--out", str(out), "--", "--run.wandb", "off", place=tmp_path)
    assert "beside 1 busy process" in shown and "test accuracy" in shown
    found = json.loads(out.read_text())["1"]
    for name in ("plain script", "cxlp"):
        (process,) = found[name]
        assert all(process["phases"][phase] > 0 for phase in ("extraction", "PCA", "pooling", "SVM", "test"))
        assert process["phases"]["test"] < process["seconds"]
        assert process["accuracy"] == 1.0  # any network distinguishes these kinds of pictures
    seconds = [found[name][0]["seconds"] for name in ("plain script", "cxlp")]
    assert found["x"]["whole process"] == pytest.approx(seconds[0] / seconds[1])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.json", "pictures"]


@pytest.mark.slow
def test_plain_script_with_the_gram_matrix(tmp_path: Path) -> None:
    write_folder(tmp_path / "pictures", size=48)
    shown = run("plain_script.py", "--root", "pictures", "--network", "efficientnet_lite0", "--kernel", place=tmp_path)
    assert "accuracy 100.00 %" in shown


@pytest.mark.slow
def test_activations_benchmark_counts_saved_tensors() -> None:
    shown = run("activations.py", "squeezenet.yaml", "--classes", "10")
    parameters, _, single, half = map(float, re.findall(r"[\d.]+", shown.partition("227")[2])[:4])
    assert parameters == pytest.approx(2.2, abs=0.3)
    assert 0.5 * single < half < single
