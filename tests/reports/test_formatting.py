"""Tables as people read them."""

from cxlp.reports.formatting import readable


def test_rows_are_spelled_for_people() -> None:
    rows = [{"true": "no white_belly", "true probability": 0.0125, "image": "white_belly.jpg", "accuracy": ""}]
    assert readable(rows, ["white_belly", "crest"]) == [
        {"true": "no white belly", "true probability": "1.25%", "image": "white_belly.jpg", "accuracy": ""}
    ]
