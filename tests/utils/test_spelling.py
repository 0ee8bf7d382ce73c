"""The readable form of names and numbers."""

import pytest

from cxlp.utils.spelling import as_text, interval_as_text, number, points, shown_names, span_as_text


def test_proportions_are_in_percent_and_other_numbers_have_four_digits() -> None:
    for name in ("test/accuracy", "frozen/cv_accuracy", "val/mAP_11point", "AP", "true probability"):
        assert as_text(name, 0.855) == "85.50%"
    assert as_text("test/loss", 0.37254) == "0.3725" and as_text("frozen/C", 10.0) == "10"
    assert [number(v) for v in (1e-5, 999.94, 1117.3, -12345.6)] == ["1e-05", "999.9", "1,117", "-12,346"]
    assert [number(v) for v in (999.96, 1000.4, -999.96)] == ["1,000", "1,000", "-1,000"]
    assert [points(v) for v in (0.0123, -0.00001, -0.0123)] == ["+1.23", "+0.00", "-1.23"]
    interval = {"low": 0.7995, "high": 0.8971, "by": "Wilson"}
    assert span_as_text("test/accuracy", interval) == "79.95% to 89.71%"
    assert interval_as_text("test/accuracy", interval) == "79.95% to 89.71% (Wilson)"


@pytest.mark.parametrize(
    ("classes", "shown"),
    [
        (
            ["001.Black_footed_Albatross", "010.Red_winged_Blackbird"],
            ["Black footed Albatross", "Red winged Blackbird"],
        ),
        (["airport_inside", "bar"], ["airport inside", "bar"]),
        (["707-320", "A300B4"], ["707-320", "A300B4"]),  # the number is the name
        (["12 inch", "rack"], ["12 inch", "rack"]),  # not all have one
        (["0_tench", "1-goldfish", "2 shark"], ["tench", "goldfish", "shark"]),
        (["02_robin", "01_wren"], ["robin", "wren"]),
        (["10_euro", "20_dollars"], ["10 euro", "20 dollars"]),  # these numbers do not enumerate the classes
        (["2012 coupe", "2013 van"], ["2012 coupe", "2013 van"]),
        (["1.gull", "2.gull"], ["1.gull", "2.gull"]),  # the names would be equal
        (["a_b", "a b"], ["a_b", "a b"]),
        (["_", "gull"], ["_", "gull"]),  # the names would be empty
        ([], []),
    ],
)
def test_class_names_are_formatted_for_readers(classes: list[str], shown: list[str]) -> None:
    assert shown_names(classes) == shown
