"""The table of ``cxlp compare`` in terminals of different widths."""

import pytest

from cxlp.commands.compare_table import show

HEADS = ["system", "test accuracy %", "cv %", "difference", "p (Holm)", "size", "network ms", "fit s"]
VALUES = [
    ["CL", 85.5, 88.8, "+1.0", "0.84", 327680, 37.8, 35.7],
    ["combination: CL & [b]bilinear", "", 86.0, *[""] * 5],
    ["average", 84.25, 79.5, *[""] * 5],
]


@pytest.mark.parametrize(
    ("columns", "left_out"), [("200", []), ("100", ["network ms"]), ("60", ["size", "network ms", "fit s"])]
)
def test_columns_are_dropped_until_the_table_fits(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], columns: str, left_out: list[str]
) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    show(HEADS, VALUES, "birds")
    said = capsys.readouterr().out
    assert "[b]bilinear" in said and "88.8" in said and "85.50" in said
    if columns != "60":  # too narrow even for the other columns: they are wrapped, not truncated
        assert [head for head in HEADS if head not in said] == left_out
        assert max(map(len, said.splitlines())) <= int(columns)
    assert ("results.md has the whole table" in said) == bool(left_out)
    assert "not by the test column" in said
