"""``cxlp runs cells``: the ranked systems, output, picture and errors."""

import json
import re
from pathlib import Path

import pytest

from cxlp.__main__ import main
from tests.commands.test_runs import Capture


def write_comparison(folder: Path, **values: float | str) -> None:
    folder.mkdir(parents=True)
    rows = [f"{name},{value},{k}" for k, (name, value) in enumerate(values.items())]
    (folder / "results.csv").write_text("\n".join(["system,test accuracy %,size", *rows]) + "\n")


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for k in range(7):
        write_comparison(tmp_path / "runs" / f"cell{k}", average=70 + k, CL=80.5 + k / 7, bilinear=80 + k / 5, own=50)
    (tmp_path / "runs" / "cell6" / "results.csv").write_text(
        "system,test accuracy %\nbilinear,81.5\nCL,81.0\naverage,75\n"
    )
    return tmp_path / "runs"


CELLS = [f"cell{k}" for k in range(7)]


def test_shared_systems_are_ranked_and_drawn(root: Path, capsys: Capture) -> None:
    assert main(["runs", "cells", *CELLS, "--picture", "ranks.png"]) == 0
    said = capsys.readouterr().out
    assert "own" not in said and "in 7 cells" in said and "Friedman" in said
    assert "CL, so" not in said and "no single pair" not in said  # seven cells are enough for three pairs
    assert said.index("│ CL ") < said.index("│ bilinear") < said.index("│ average")
    assert Path("ranks.png").read_bytes().startswith(b"\x89PNG")


def test_the_figures_as_json(root: Path, capsys: Capture) -> None:
    assert main(["runs", "cells", "runs/cell0", *CELLS[1:], "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["systems"] == ["average", "CL", "bilinear"] and found["cells"] == CELLS
    assert found["values"][0] == [70, 80.5, 80]
    ranks = dict(zip(found["systems"], found["ranks"], strict=True))
    assert ranks == pytest.approx({"average": 3, "CL": 8 / 7, "bilinear": 13 / 7})
    # All seven differences from the average have one sign: 2 / 2^7, by Holm times three for the first.
    assert found["pairs"][0][1] == pytest.approx(3 * 2 / 2**7)


def test_too_few_cells_are_reported(root: Path, capsys: Capture) -> None:
    assert main(["runs", "cells", *CELLS[:4]]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert re.search(r"With 4 cells, .* 0\.12[ ,].* no single pair can be significant", said)


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (["cell0"], "at least two comparisons"),
        (["cell0", "runs/cell0"], "at least two comparisons"),
        (["cell0", "absent"], "absent/results.csv is missing"),
        (["cell0", "other"], "share one system"),
        (["cell0", "broken"], "broken/results.csv is not the table of a comparison"),
        (["cell0", "cell1", "--picture", "no/such/ranks.png"], "--picture no/such/ranks.png: there is no folder"),
        (["cell0", "undefined"], "undefined/results.csv is not the table of a comparison"),
        (["cell0", "cell1", "--picture", "ranks.pdf"], "--picture ranks.pdf: the diagram is a PNG"),
        (["cell0", "cell1", "--sort", "name"], "runs cells accepts no options except"),
        (["cell0", "cell1", "--reverse"], "runs cells accepts no options except"),
        (["cell0", "cell1", "--html", "page.html"], "runs cells accepts no options except"),
    ],
)
def test_wrong_arguments(root: Path, capsys: Capture, arguments: list[str], error: str) -> None:
    write_comparison(root / "other", CL=80, theirs=70)
    write_comparison(root / "broken", CL="high")
    write_comparison(root / "undefined", CL="nan", average=70)
    assert main(["runs", "cells", *arguments]) == 2
    assert error in capsys.readouterr().err


def test_the_picture_option_needs_cells(root: Path, capsys: Capture) -> None:
    assert main(["runs", "--picture", "ranks.png"]) == 2
    assert "--picture has no effect without cells" in capsys.readouterr().err
