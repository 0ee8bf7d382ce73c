"""``python -m cxlp compare`` from end to end on a tiny CUB-200-2011: rows, files, taking up, failing."""

import csv
import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from cxlp.__main__ import main
from cxlp.models.network import NetworkConfig
from cxlp.runs.cli import parse
from cxlp.studies.comparison import Comparison, System, without
from cxlp.studies.systems import systems
from tests.generate import write_cub200
from tests.runs.test_cli import NETWORK, QUIET

BASE = ["--config", "cub200.yaml", *NETWORK, *QUIET]


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A fresh working directory with ``data/CUB_200_2011`` in it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))
    write_cub200(tmp_path / "data")
    return tmp_path


def test_runs_are_told_apart_by_their_whole_config_and_by_nothing_else(work: Path) -> None:
    config = work / "mine.yaml"
    config.write_text("model: {init_args: {frozen: {c: 10.0}}}")

    def name(*arguments: str) -> str:
        comparison = Comparison(arguments, work / "out", "accuracy", None)
        return comparison._run_name(System("CL, 3x3"), arguments)

    base = [*BASE, "--config", str(config)]
    first = name(*base)
    assert first.startswith("CL-3x3-")
    assert name(*base, "--run.wandb", "offline", "--model.frozen.store", "x") == first
    assert name(*base, "--model.frozen.c", "10") == first
    assert name(*base, "--trainer.enable_progress_bar", "true") == first
    assert name(*base, "--model.frozen.c", "1") != first
    config.write_text("model: {init_args: {frozen: {c: 1.0}}}")
    assert name(*base) == name(*base, "--model.frozen.c", "1") != first


def test_a_system_is_what_it_is_whatever_the_command_line_says_of_the_network(work: Path) -> None:
    given = [*BASE, "--model.network.pooling.size", "5", "--model.network.pooling.layers=[features.10, features.11]"]
    comparison = Comparison(given, work / "out", "accuracy", None)
    base = NetworkConfig.from_values(parse(given)["model"]["init_args"]["network"].as_dict())
    for wanted, size, layers in (("CL, 1x1", 1, ["features.10", "features.11"]), ("CNN-Global", 1, ["penultimate"])):
        config = parse(comparison._arguments(System(wanted, systems(base)[wanted])))
        pooling = config["model"]["init_args"]["network"]["pooling"]
        assert pooling["size"] == size and list(pooling["layers"]) == layers
        assert config["model"]["init_args"]["network"]["backbone"]["image_size"] == 64


def test_the_network_as_a_whole_on_the_command_line_is_refused(work: Path) -> None:
    base = NetworkConfig.from_values(parse(BASE)["model"]["init_args"]["network"].as_dict())
    given = [*BASE, "--model.network", '{"pooling": {"size": 5}}']
    comparison = Comparison(given, work / "out", "accuracy", None)
    rows, failed = comparison.run([System("CL, 1x1", replace(base, pooling=replace(base.pooling, size=1)))])
    assert rows == [] and failed == ["CL, 1x1"]


def test_a_config_of_several_parts_can_be_swept(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    overlay = work / "parts.yaml"
    overlay.write_text("model: {init_args: {network: {also: [{method: average_guide, layers: [penultimate]}]}}}")
    sweep = ["--sweep", "model.frozen.c=[1, 10]", "--list"]
    assert main(["compare", *BASE, "--config", str(overlay), *sweep]) == 0
    assert capsys.readouterr().out.splitlines() == ["1", "10"]


def test_options_are_left_out_with_their_values() -> None:
    given = ["--config", "a", "--model.network.x", "1", "--model.network.y=2", "--model.c", "--b", "3"]
    assert without(given, "--model.network.") == ["--config", "a", "--model.c", "--b", "3"]


@pytest.mark.slow
def test_systems_run_once_and_are_put_into_one_table(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["compare", *BASE, "--systems", "average", "CL", "CL, signs", "CL + CNN-Global", "--out", "out"]
    assert main(command) == 0
    first = Path("out/results.csv").read_text()
    rows = list(csv.DictReader(first.splitlines()))
    # in the order of the list of systems
    assert [r["system"] for r in rows] == ["CL", "CL, signs", "CL + CNN-Global", "average"]
    assert [int(r["size"]) for r in rows] == [512 * 8, 512 * 8, 512 * 8 + 512, 512]
    assert [float(r["kB"]) for r in rows] == [16.4, 1.0, 18.4, 2.0]  # two bits a sign
    for r in rows:
        (folder,) = Path("out").glob(f"{'-'.join(r['system'].replace('+', ' ').replace(',', '').split())}-????????")
        found = json.loads((folder / "metrics.json").read_text())
        assert float(r["accuracy %"]) == round(100 * found["metrics"]["test/accuracy"], 1)
        assert float(r["network ms"]) > 0 and float(r["peak MB"]) > 100
    for file in ("results.md", "accuracy_against_time.png", "per_class.png"):
        assert Path("out", file).stat().st_size > 300
    assert list(Path("runs/features").glob("*/entry.json"))
    capsys.readouterr()
    # again: nothing is run; what was stopped is
    fit_seconds = {r["system"]: float(r["fit s"]) for r in rows}
    (killed,) = Path("out").glob("average-????????")
    shutil.rmtree(killed / "checkpoints")  # before its fit was over
    (killed / "metrics.json").unlink()
    (tested,) = Path("out").glob("CL-CNN-Global-????????")
    (tested / "metrics.json").unlink()  # within its test
    times = {p: p.stat().st_mtime_ns for p in Path("out").glob("CL-????????/metrics.json")}
    assert main(command) == 0
    said = capsys.readouterr().out
    assert said.count("done already") == 2 and (killed / "metrics.json").is_file()
    assert {p: p.stat().st_mtime_ns for p in Path("out").glob("CL-????????/metrics.json")} == times
    assert "since resumed" in json.loads((tested / "metrics.json").read_text())["seconds"]
    again = list(csv.DictReader(Path("out/results.csv").read_text().splitlines()))
    assert [r["accuracy %"] for r in again] == [r["accuracy %"] for r in rows]
    # on features that are kept: what they took counts all the same
    found = json.loads((killed / "metrics.json").read_text())
    assert "features made by an earlier run" not in json.loads((tested / "metrics.json").read_text())
    assert float(again[3]["fit s"]) > found["features made by an earlier run"]["seconds"]["extraction"] - 0.1
    assert fit_seconds["average"] > 0
    assert main(["compare", "--clean"]) == 0
    assert not Path("runs/features").exists()


@pytest.mark.slow
def test_a_sweep_runs_the_values_of_an_option(work: Path) -> None:
    key = "model.network.pooling.pca_dim"
    assert main(["compare", *BASE, "--sweep", f"{key}=[2, 4]", "--out", "out"]) == 0
    rows = list(csv.DictReader(Path("out/results.csv").read_text().splitlines()))
    assert [(r["system"], int(r["size"])) for r in rows] == [("2", 2 * 512), ("4", 4 * 512)]
    assert Path("out/sweep.png").stat().st_size > 1000


@pytest.mark.slow
def test_recipes_are_compared_by_their_curves_of_the_images_held_out(work: Path) -> None:
    held = ["--data.validation", "0.34", "--trainer.max_epochs", "3"]  # of which the frozen row takes one
    command = ["compare", *BASE, *held, "--recipes", "none", "mine.yaml", "--reach", "2", "--out", "out"]
    tuned = {"class_path": "cxlp.tasks.FineTune", "init_args": {"network": {"pooling": {"pca_dim": 4}}}}
    overlay = {"model": tuned, "data": {"init_args": {"validation": 0.2}}, "trainer": {"max_epochs": 7}}
    Path("mine.yaml").write_text(yaml.safe_dump(overlay))
    assert main(command) == 0
    rows = list(csv.DictReader(Path("out/results.csv").read_text().splitlines()))
    assert [r["system"] for r in rows] == ["none", "mine"]
    # the command line has the last word over a recipe, too
    assert [int(r["size"]) for r in rows] == [8 * 512] * 2
    (folder,) = Path("out").glob("mine-????????")
    config = yaml.safe_load((folder / "config.yaml").read_text())
    assert config["data"]["init_args"]["validation"] == 0.34 and config["trainer"]["max_epochs"] == 3
    points = list(csv.DictReader(Path("out/validation.csv").read_text().splitlines()))
    assert [(p["system"], p["epoch"]) for p in points] == [("mine", str(epoch)) for epoch in range(3)]
    values = [float(p["val/accuracy %"]) for p in points]
    assert float(rows[1]["val %"]) == round(max(values), 1)
    assert rows[1]["epochs to 2 %"] == str(next(epoch for epoch, value in enumerate(values) if value >= 2))
    assert float(rows[0]["val %"]) == round(values[0], 1)  # epoch 0 is the frozen fit
    assert Path("out/validation.png").stat().st_size > 5000


@pytest.mark.slow
def test_each_row_is_the_mean_over_seeds(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    # random weights, which hang on the seed
    command = ["compare", *BASE, "--sweep", "model.network.pooling.pca_dim=[4]", "--out", "out", "--seeds"]
    assert main([*command, "1"]) == 0
    assert "±" not in Path("out/results.csv").read_text()
    (first,) = Path("out").glob("4-????????/metrics.json")
    capsys.readouterr()
    assert main([*command, "2"]) == 0
    said = capsys.readouterr().out
    assert f"4, seed 0: done already, in {first.parent}" in said  # a single seed is the first of several
    (second,) = set(Path("out").glob("4-????????/metrics.json")) - {first}
    found = [json.loads(file.read_text()) for file in (first, second)]
    values = [100 * f["metrics"]["test/accuracy"] for f in found]
    (row,) = csv.DictReader(Path("out/results.csv").read_text().splitlines())
    assert float(row["accuracy %"]) == round(sum(values) / 2, 1)
    assert float(row["±"]) == round(abs(values[0] - values[1]) / 2**0.5, 2)
    assert float(row["network ms"]) == round(1000 * found[0]["cost"]["network"], 2)
    assert yaml.safe_load((second.parent / "config.yaml").read_text())["seed_everything"] == 1
    assert "| ± |" in Path("out/results.md").read_text()


@pytest.mark.slow
def test_a_system_that_fails_does_not_stop_the_others(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", *BASE, "--sweep", "model.network.pooling.pca_dim=[2, 4000]", "--out", "out"]) == 1
    assert "no result: 4000" in capsys.readouterr().out
    assert [r["system"] for r in csv.DictReader(Path("out/results.csv").read_text().splitlines())] == ["2"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--systems", "CL-99"], "unknown system 'CL-99'. Valid: 'CNN-Global'"),
        (["--sweep", "model.frozen.c=3"], "give a list of values"),
        (["--sweep", "model.frozen.c=[3"], "--sweep model.frozen.c=[3"),
        (["--sweep", "model.frozen.c=[3]", "--systems", "CL"], "--systems and --sweep: give one of them"),
        (["--recipes", "squeezenet.yaml", "--sweep", "a=[3]"], "--sweep and --recipes: give one of them"),
        (["--recipes", "none", "--reach", "88"], "--reach looks at the images held out, and there are none"),
        (["--data.validation", "0.34", "--reach", "0.88"], "--reach is 0.88: give a percentage"),
        (["--recipes", "a/x.yaml", "b/x.yaml"], "two of them have one name"),
        (["--recipes", "squeezenet.yaml", "finetun.yaml"], "config file not found: finetun.yaml"),
        (["--seeds", "0"], "seeds is 0: it must be 1 or more"),
        (["--seeds", "2", "--sweep", "seed_everything=[0, 1]"], "--seeds and a --sweep of seed_everything"),
        (["--run.root", "x"], "--run.root: compare makes a run for each system in its own folder; set --out"),
        (["--data.bach_size", "3"], "unknown key data.bach_size"),
    ],
)
def test_wrong_arguments_are_explained(
    work: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], said: str
) -> None:
    assert main(["compare", *BASE, *arguments]) == 2
    assert said in capsys.readouterr().err
    assert not Path("runs").exists()


def test_the_systems_are_listed(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", *BASE, "--list"]) == 0
    assert {"CL", "CL-lower", "CNN-Global", "R-CNN SCFV"} <= set(capsys.readouterr().out.splitlines())


def test_the_command_line_program_passes_train_arguments_on(work: Path) -> None:
    command = [sys.executable, "-m", "cxlp", "compare", "--config=demo.yaml", "--list"]
    assert "CL + CNN-Jitter" in subprocess.run(command, check=True, capture_output=True, text=True).stdout
