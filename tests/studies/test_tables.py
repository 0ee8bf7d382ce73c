"""The table of a comparison, from the files of the runs."""

import csv
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cxlp.reports.formatting import as_csv, as_markdown, spread
from cxlp.reports.outputs import Outputs
from cxlp.runs.loggers import RunConfig
from cxlp.studies.rows import Row, read_row
from cxlp.studies.tables import table, write_reports
from cxlp.utils.errors import CxlpError
from cxlp.utils.spelling import as_text


def row(name: str, quality: float, deviation: float | None = None) -> Row:
    cost = {"passes": 1, "dimension": 8, "bytes": 32, "network": 0.01, "encoding": 0.002, "classification": 0.001}
    return Row(name, quality, deviation, {**cost, "bare pass": 0.009}, 32, 5_000_000, 1.5, {"a": quality, "b": quality})


def test_the_table_holds_numbers() -> None:
    heads, values = table([row("CL-45", 72.44), row("mine", 80.0)], "accuracy")
    assert values[0][:7] == ["CL-45", 72.44, 8, 1, 10.0, 2.0, 1.0]
    assert as_markdown(heads, values).splitlines()[1].count("---") == len(heads)
    assert next(csv.DictReader(as_csv(heads, values).splitlines()))["test accuracy %"] == "72.44"


def test_deviations_are_shown_beside_the_means_of_several_seeds() -> None:
    heads, values = table([row("CL", 72.44, 0.456), row("mine", 80.0)], "accuracy")
    assert heads[:4] == ["system", "test accuracy %", "±", "size"]
    assert [record[1:4] for record in values] == [[72.44, 0.46, 8], [80.0, "", 8]]
    assert "±" not in table([row("CL", 72.44)], "accuracy")[0]
    assert next(csv.DictReader(as_csv(heads, values).splitlines()))["±"] == "0.46"


def test_a_single_run_has_an_interval() -> None:
    heads, values = table([replace(row("CL", 72.44), interval=(68.123, 76.5)), row("mine", 80.0)], "accuracy")
    assert heads[:4] == ["system", "test accuracy %", "95% interval", "size"]
    assert [record[2] for record in values] == ["68.12 to 76.50", ""]


def test_error_bars_are_intervals_or_deviations_among_seeds() -> None:
    assert replace(row("CL", 72.5), interval=(68.0, 76.5)).ends == (68.0, 76.5)
    assert row("CL", 72.5, 0.5).ends == (72.0, 73.0)
    assert row("CL", 72.5).ends is None


def test_deviations_are_sample_deviations() -> None:
    assert spread([1.0, 2.0, 4.0]) == pytest.approx((((4 / 3) ** 2 + (1 / 3) ** 2 + (5 / 3) ** 2) / 2) ** 0.5)
    assert spread([1.0]) is None


def test_metrics_are_readable() -> None:
    assert as_text("test/accuracy", 0.8125) == "81.25%" and as_text("val/mAP", 0.5) == "50.00%"
    assert as_text("test/loss", 0.123456) == "0.1235"


def test_the_table_has_validation_and_the_first_epoch_to_reach_a_value() -> None:
    curves = ({0: 84.0, 1: 80.0, 2: 91.0}, {0: 86.0, 1: 88.0, 2: 95.0, 3: 99.0})
    fine = replace(row("CL", 72.44), validations=curves)
    assert fine.validation == 95.0  # the best epoch of each seed
    # means by epoch: 85, 84, 93; the fourth epoch of a single seed does not count
    assert [fine.epochs_to(percent) for percent in (80, 85.5, 93, 93.5)] == [0, 2, 2, None]
    heads, values = table([fine, row("mine", 80.0)], "accuracy", 85.5)
    assert heads[:5] == ["system", "test accuracy %", "val %", "epochs to 85.5 %", "size"]
    assert [record[2:5] for record in values] == [[95.0, 2, 8], ["", "", 8]]
    assert "val %" not in table([row("mine", 80.0)], "accuracy")[0]


def left(folder: Path, accuracy: float | None, seconds: float, classes: dict[str, str]) -> Path:
    """Write the output files of a run."""
    folder.mkdir()
    found = {
        "metrics": {"test/accuracy": accuracy},
        "seconds": {"SVM": seconds, "test": 100.0, "total": 200.0},
        "cost": {"bytes": 32},
        "memory": {"peak_bytes": 7},
    }
    (folder / "metrics.json").write_text(json.dumps(found))
    lines = ["class,accuracy", *(f"{name},{value}" for name, value in classes.items())]
    (folder / "per_class.csv").write_text("\n".join(lines))
    return folder


def test_several_seeds_give_one_row_with_the_costs_of_the_first(tmp_path: Path) -> None:
    one = left(tmp_path / "one", 0.5, 1.0, {"a": "0.5", "b": ""})
    two = left(tmp_path / "two", 0.7, 9.0, {"a": "1.0", "b": "0.25"})
    found = read_row("CL", [one, two], "accuracy")
    assert found.quality == pytest.approx(60) and found.deviation == pytest.approx(200**0.5)
    assert found.fit_seconds == 1.0 and found.peak_bytes == 7
    assert found.per_class == {"a": 75.0, "b": 25.0}
    assert read_row("CL", [two], "accuracy").deviation is None
    metrics = json.loads((two / "metrics.json").read_text())
    metrics["intervals"] = {"test/accuracy": {"low": 0.6, "high": 0.75, "by": "Wilson"}}
    (two / "metrics.json").write_text(json.dumps(metrics))
    assert read_row("CL", [two], "accuracy").interval == (60, 75)
    assert (
        found.interval is None and read_row("CL", [two, one], "accuracy").interval is None
    )  # the deviation over the seeds
    assert not found.incomplete
    (two / "metrics.json").write_text(json.dumps({**metrics, "outputs": {"failed": ["report.html"]}}))
    assert read_row("CL", [one, two], "accuracy").incomplete


def test_validation_curves_come_from_each_seed_or_the_choosing_run(tmp_path: Path) -> None:
    places = []
    for name, values in (("one", [0.5, 0.75]), ("two", [0.25, 1.0])):
        run = left(tmp_path / name, 0.5, 1.0, {})
        for epoch, (stage, value) in enumerate(zip(("frozen", "finetune"), values, strict=True)):
            (run / "csv" / stage / "version_0").mkdir(parents=True)
            lines = ["epoch,step,val/accuracy,train/loss_epoch", f"{epoch},4,{value},", f"{epoch},9,,0.125"]
            (run / "csv" / stage / "version_0" / "metrics.csv").write_text("\n".join(lines))
        places.append(run)
    places[1] = left(places[1] / "refit", 0.7, 1.0, {})
    assert read_row("CL", places, "accuracy").validations == ({0: 50.0, 1: 75.0}, {0: 25.0, 1: 100.0})
    places.append(left(tmp_path / "three", 0.7, 1.0, {}))  # no image was held out
    assert read_row("CL", places, "accuracy").validations == ()


@pytest.mark.parametrize("accuracy", [0.5, None])
def test_a_run_without_the_metric_is_named(tmp_path: Path, accuracy: float | None) -> None:
    one = left(tmp_path / "one", accuracy, 1.0, {})
    metric = "mAP" if accuracy else "accuracy"  # null: undefined
    with pytest.raises(CxlpError, match=rf"one/metrics.json has no test/{metric}"):
        read_row("CL", [one], metric)


def test_failed_figures_do_not_affect_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(*_: Any) -> bytes:
        raise MemoryError

    curves = ({0: 84.0, 1: 80.0},)
    rows = [replace(row(name, quality), validations=curves) for name, quality in (("CL", 70.0), ("<$_$> \udcff", 80.0))]
    for failing in ([], ["draw_costs", "start_wandb"]):
        for name in failing:
            monkeypatch.setattr(f"cxlp.studies.tables.{name}", broken)
        outputs = Outputs()
        files = write_reports(tmp_path, "accuracy", rows, None, RunConfig(wandb="off"), outputs)
        assert sorted(files) == sorted(tmp_path.iterdir())
        pictures = [f"accuracy_against_{what}.png" for what in ("time", "size")]
        assert outputs.failed == ([*pictures, "the wandb run"] if failing else [])
    assert {file.name for file in files} == {
        "results.md", "results.csv", "validation.csv", "per_class.png", "validation.png",
    }  # fmt: skip
    assert capsys.readouterr().err.count("MemoryError") == 3
