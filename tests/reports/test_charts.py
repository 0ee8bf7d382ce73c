"""Line charts: points where their values put them, in any range, bounded in number, and well-formed."""

import math
import re
from xml.etree import ElementTree

import pytest

from cxlp.reports.charts import line_chart


def drawn(chart: str) -> list[list[tuple[float, float]]]:
    """The points of each line."""
    figure = ElementTree.fromstring(chart)  # well-formed, or it raises
    lines = [element.attrib["points"] for element in figure.iter("polyline")]
    return [[(float(x), float(y)) for x, y in (place.split(",") for place in line.split())] for line in lines]


def test_places_follow_values() -> None:
    ((a, b, c),) = drawn(line_chart("loss", {"training": [(0, 0.0), (1, 5.0), (2, 10.0)]}, "epoch"))
    assert b[0] - a[0] == pytest.approx(c[0] - b[0]) and a[0] < b[0]  # to the right
    assert a[1] - b[1] == pytest.approx(b[1] - c[1]) and a[1] > b[1]  # and up


def test_a_logarithmic_scale_leaves_out_what_has_no_place_on_it() -> None:
    points = [(0, 1e-4), (1, 1e-2), (2, 1.0), (3, 0.0), (4, math.nan), (5, -1.0)]
    chart = line_chart("rates", {"lr": points}, "epoch", log=True)
    ((a, b, c),) = drawn(chart)
    assert a[1] - b[1] == pytest.approx(b[1] - c[1], abs=0.2)
    assert re.findall(r'class="y"[^>]*>([^<]+)<', chart) == ["0.0001", "0.001", "0.01", "0.1", "1"]


@pytest.mark.parametrize("points", [[(3.0, 7.0)], [(0.0, 0.0), (1.0, 0.0)], [(0.0, -1e9), (1.0, 1e9)]])
def test_a_single_value_and_a_wide_range_have_places(points: list[tuple[float, float]]) -> None:
    ((*places,),) = drawn(line_chart("x", {"x": points}, "epoch"))
    assert all(0 <= x <= 460 and 0 <= y <= 240 for x, y in places)


def test_known_limits_hold_whatever_the_values() -> None:
    ((a, b),) = drawn(line_chart("precision", {"p": [(0, 1.0), (1, 1.0)]}, "recall", limits=(0, 1)))
    assert a[1] == b[1] == 10  # at the top


def test_without_points_there_is_no_chart() -> None:
    assert line_chart("loss", {}, "epoch") == line_chart("loss", {"a": [], "b": [(0, math.inf)]}, "epoch") == ""


def test_long_curves_are_thinned_and_end_where_they_end() -> None:
    chart = line_chart("loss", {"a": [(i, i % 7) for i in range(10_001)] + [(10_001, 3.25)]}, "step")
    (places,) = drawn(chart)
    assert 200 <= len(places) <= 400
    assert "a: 3.25" in chart
    assert places[-1][0] == max(x for x, _ in places)


def test_names_are_escaped() -> None:
    chart = line_chart("<b>&", {'"<script>': [(0, 1), (1, 2)]}, "<i>")
    assert "<script" not in chart and "<b>" not in chart and "<i>" not in chart
    drawn(chart)
