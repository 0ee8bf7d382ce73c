"""``cxlp runs compare``: the pairing of runs, the output and the page."""

import json
import re
from pathlib import Path

import pytest

from cxlp.__main__ import main
from tests.commands.test_runs import Capture, write_run
from tests.reports.test_page import Reader


def write_tested(folder: Path, right: list[int]) -> Path:
    write_run(folder, sum(right) / len(right))
    rows = [f"wren/{i}.jpg,wren,{hit},wren" for i, hit in enumerate(right)]
    (folder / "predictions.csv").write_text("\n".join(["path,true,right,class_1", *rows]) + "\n")
    found = json.loads((folder / "metrics.json").read_text())
    found |= {"tested": "checkpoints/frozen.ckpt", "epoch": 0}
    found["metrics"]["frozen/cv_accuracy"] = 0.625
    (folder / "metrics.json").write_text(json.dumps(found))
    return folder


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    root = tmp_path / "runs"
    write_tested(root / "plain", [1, 0] * 10)
    write_tested(root / "better", [1] * 19 + [0])
    for k in (0, 2, 10):
        write_tested(root / "series" / f"series-seed{k}", [1, 1, 0, 1] * 5 if k else [1] * 20)
        write_tested(root / f"split{k}", [0, 0, 0, 1] * 5)
    (root / "series" / "logs").mkdir()
    write_run(root / "begun")
    return root


def said(*arguments: str, capsys: Capture, status: int = 0) -> str:
    capsys.readouterr()
    assert main(["runs", "compare", *arguments]) == status
    found = capsys.readouterr()
    return found.err if status else found.out


def test_finished_runs_are_compared_on_the_terminal_and_in_a_page(root: Path, capsys: Capture) -> None:
    text = said("plain", "better", "runs/split0", "--html", "page.html", capsys=capsys)
    assert "compared with plain" in text and "McNemar, exact" in text and "62.5" in text and "+45.00" in text
    assert "cv %" in text and "p (Holm)" in text
    page = Reader(Path("page.html").read_text())
    texts = {text.strip() for text in page.texts}
    assert {"Differences on the same test images", "+45.00", "0.004", "reference"} <= texts
    plain = json.loads(said("plain", "better", "split0", "--reference", "better", "--json", capsys=capsys))
    assert plain["reference"] == "better" and plain["metric"] == "accuracy"
    one = plain["differences"]["plain"]
    assert one["difference"] == pytest.approx(-0.45) and one["images"] == 20
    assert one["p"] == pytest.approx(2 / 2**9)  # of nine images
    assert one["p_holm"] == pytest.approx(
        one["p"]
    )  # split0 has a larger difference, so this p-value is the second of two


def test_the_page_takes_intervals_and_small_p_values_for_numbers(root: Path, capsys: Capture) -> None:
    write_tested(root / "worst", [0] * 20)
    said("better", "plain", "worst", "--html", "page.html", capsys=capsys)
    page = Path("page.html").read_text()
    assert '<td class="number">&lt;0.001</td>' in page and '<td class="number">0.004</td>' in page
    assert len(re.findall(r'<td class="number">-[\d.]+ to -[\d.]+</td>', page)) == 2


def test_a_series_and_a_pattern_are_several_runs_of_one_system(root: Path, capsys: Capture) -> None:
    text = said("series", "split*", capsys=capsys)
    assert "3 runs x images, t" in text and "±" in text and "83.3" in text and "25.0" in text
    assert "series has 3 runs and plain has 1" in said("plain", "series", capsys=capsys, status=2)


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (["plain"], "runs compare: name at least two runs"),
        (["plain", "plain"], "runs compare: name at least two runs"),
        (
            ["plain", "better", "--reference", "series"],
            "--reference series is not among the compared runs: plain, better",
        ),
        (["plain", "bettr"], "there is no run 'bettr' in runs. Did you mean 'better'?"),
        (["plain", "spilt*"], "'spilt*' matches no run in runs"),
        (["plain", "begun"], "begun has no test results (stopped)"),
        (["plain", "be*"], "begun has no test results (stopped)"),
        (["plain", "better", "--delete"], "runs compare does not accept --delete"),
    ],
)
def test_wrong_arguments(root: Path, capsys: Capture, arguments: list[str], error: str) -> None:
    assert error in said(*arguments, capsys=capsys, status=2)


def test_runs_without_predictions_cannot_be_compared(root: Path, capsys: Capture) -> None:
    (root / "better" / "predictions.csv").unlink()
    error = said("plain", "better", capsys=capsys, status=2)
    assert "better/predictions.csv" in error and "run.predictions" in error
    found = json.loads((root / "better" / "metrics.json").read_text())
    found["metrics"] = {"test/mAP": 0.5}
    (root / "better" / "metrics.json").write_text(json.dumps(found))
    assert "report accuracy and some mAP" in said("plain", "better", capsys=capsys, status=2)


def test_the_reference_option_needs_compare(root: Path, capsys: Capture) -> None:
    assert main(["runs", "plain", "--reference", "plain"]) == 2
    assert "--reference has no effect without compare" in capsys.readouterr().err
