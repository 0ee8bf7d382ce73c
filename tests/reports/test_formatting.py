"""Formatting of tables."""

from cxlp.reports.formatting import as_cells, readable


def test_rows_are_formatted_for_readers() -> None:
    rows = [{"true": "no white_belly", "true probability": 0.0125, "image": "white_belly.jpg", "accuracy": ""}]
    assert readable(rows, ["white_belly", "crest"]) == [
        {"true": "no white belly", "true probability": "1.25%", "image": "white_belly.jpg", "accuracy": ""}
    ]


def test_the_rounded_numbers_of_a_column_have_as_many_decimals() -> None:
    assert as_cells([["a", 85.5, 8, ""], ["b", 86.25, 10, 0.5]]) == [
        ["a", "85.50", "8", ""],
        ["b", "86.25", "10", "0.5"],
    ]
    assert as_cells([]) == []
