"""Line charts: positions of points in any range, a bounded number of points, and several charts in one page."""

import math
import re
from xml.etree import ElementTree

import pytest

from cxlp.reports.charts import COLOURS, MARKED, POINTS, Chart, line_chart


def paths(chart: Chart | None, colour: str) -> list[list[tuple[float, float]]]:
    """Return the points of each line whose colour matches a pattern."""
    assert chart is not None
    image = ElementTree.fromstring(chart.svg)  # raises an error unless it is well-formed
    lines = [path for path in image.iter("path") if re.search(f"fill: none; stroke: {colour};", path.get("style", ""))]
    return [[(float(x), float(y)) for x, y in re.findall(r"([\d.]+) ([\d.]+)", path.attrib["d"])] for path in lines]


def drawn(chart: Chart | None) -> list[list[tuple[float, float]]]:
    """Return the points of each line."""
    return paths(chart, rf"var\(--c[1-{COLOURS}]\)")


def grid(chart: Chart | None) -> list[float]:
    """Return the heights of the grid's lines, from below."""
    return [y for ((_, y), _) in paths(chart, r"var\(--c9\)")]


def texts(chart: Chart | None, element: str = "text") -> list[str]:
    assert chart is not None
    return [str(found.text) for found in ElementTree.fromstring(chart.svg).iter(element)]


def ids(chart: Chart | None) -> set[str]:
    assert chart is not None
    found = re.findall(r'\bid="([^"]*)"', chart.svg)
    assert len(found) == len(set(found))
    return set(found)


def test_places_follow_values() -> None:
    ((a, b, c),) = drawn(line_chart("loss", {"training": [(0, 0.0), (1, 5.0), (2, 10.0)]}, "epoch"))
    assert b[0] - a[0] == pytest.approx(c[0] - b[0], abs=0.01) and a[0] < b[0]  # to the right
    assert a[1] - b[1] == pytest.approx(b[1] - c[1], abs=0.01) and a[1] > b[1]  # and up


def test_a_logarithmic_scale_leaves_out_non_positive_values() -> None:
    points = [(20, 1e-4), (21, 1e-2), (22, 1.0), (23, 0.0), (24, math.nan), (25, -1.0)]
    chart = line_chart("rates", {"lr": points}, "epoch", log=True)
    ((a, b, c),) = drawn(chart)
    assert a[1] - b[1] == pytest.approx(b[1] - c[1], abs=0.01)
    decades = ["0.0001", "0.001", "0.01", "0.1", "1"]
    assert [text for text in texts(chart) if text in decades] == decades
    assert a[1] == pytest.approx(grid(chart)[0]) and c[1] == pytest.approx(grid(chart)[-1])


@pytest.mark.parametrize("log", [False, True])
@pytest.mark.parametrize("points", [[(3.0, 7.0)], [(0.0, 2.0), (1.0, 2.0)], [(0.0, 1e-9), (1.0, 1e9)]])
def test_a_single_value_and_a_wide_range_have_places(points: list[tuple[float, float]], log: bool) -> None:
    chart = line_chart("x", {"x": points}, "epoch", log=log)
    ((*places,),) = drawn(chart)
    assert len(places) == len(points) and all(0 <= x <= 460 and 0 <= y <= 240 for x, y in places)
    assert len(grid(chart)) >= 2


def test_the_tested_epoch_is_marked_and_epochs_are_integers() -> None:
    points = [(k, 0.9 + k / 100) for k in range(4)]
    chart = line_chart("accuracy", {"val": points}, "epoch", parts=True, tested=3)
    ((*_, (right, _)),) = drawn(chart)
    assert chart is not None
    (mark,) = (p.attrib["d"] for p in ElementTree.fromstring(chart.svg).iter("path") if "--c8" in p.get("style", ""))
    assert [float(x) for x in re.findall(r"([\d.]+) [\d.]+", mark)] == pytest.approx([right] * 2)
    shown = texts(chart)
    assert shown.count("tested") == 1 and [text for text in shown if text in "0123"] == ["0", "1", "2", "3"]
    assert sum(text.endswith("%") for text in shown) >= 3
    assert chart.legend == [(1, "val: 93.00%")]
    assert "tested" not in texts(line_chart("accuracy", {"val": points}, "epoch"))


def test_given_limits_do_not_depend_on_the_values() -> None:
    chart = line_chart("precision", {"p": [(0, 1.0), (1, 1.0)]}, "recall", limits=(0, 1))
    ((a, b),) = drawn(chart)
    assert a[1] == b[1] == pytest.approx(min(grid(chart)))  # at the top


def test_without_points_there_is_no_chart() -> None:
    assert line_chart("loss", {}, "epoch") is None
    assert line_chart("loss", {"a": [], "b": [(0, math.inf), (math.nan, 1)]}, "epoch") is None


def test_long_curves_are_thinned_but_keep_their_last_point() -> None:
    chart = line_chart("loss", {"a": [(i, i % 7) for i in range(10_001)] + [(10_001, 3.25)]}, "step")
    (places,) = drawn(chart)
    assert POINTS / 2 <= len(places) <= POINTS
    assert chart is not None and chart.legend == [(1, "a: 3.25")]
    assert places[-1][0] == max(x for x, _ in places)


def test_few_points_have_tooltips() -> None:
    few = line_chart("loss", {"a": [(0, 0.5), (1, 0.25)], "b": [(1, 3.0)]}, "epoch")
    assert texts(few, "title") == ["a: 0.5 (epoch 0)", "a: 0.25 (epoch 1)", "b: 3 (epoch 1)"]
    assert texts(line_chart("loss", {"a": [(i, 1.0) for i in range(MARKED + 1)]}, "epoch"), "title") == []


def test_colours_come_from_the_page_and_repeat() -> None:
    chart = line_chart("x", {str(k): [(0, k), (1, k)] for k in range(COLOURS + 1)}, "epoch")
    assert chart is not None
    assert [colour for colour, _ in chart.legend] == [*range(1, COLOURS + 1), 1]
    assert [len(paths(chart, rf"var\(--c{k}\)")) for k in range(1, COLOURS + 1)] == [2, 1, 1, 1, 1, 1]
    assert not re.search(r"stroke: #|fill: #", chart.svg)


def test_charts_on_a_page_are_reproducible_with_unique_ids() -> None:
    series = {"p": [(0.0, 1.0), (1.0, 0.5)]}
    first, second = (line_chart(name, series, "recall", limits=(0, 1)) for name in ("a", "b"))
    assert first == line_chart("a", series, "recall", limits=(0, 1))
    assert ids(first) and not ids(first) & ids(second)
    for chart in (first, second):
        assert chart is not None
        assert set(re.findall(r'(?:url\(|href=")#([^)"]*)', chart.svg)) == ids(chart)  # the referenced ids exist
        assert "<style" not in chart.svg and "http" not in chart.svg


def test_names_are_escaped() -> None:
    chart = line_chart("<b>&\"'", {'"<script>$x$': [(0, 1), (1, 2)]}, "epoch")
    assert chart is not None and "<script" not in chart.svg and "<b>" not in chart.svg
    assert texts(chart, "title")[0].startswith('"<script>$x$: 1')
    assert ElementTree.fromstring(chart.svg).get("aria-label") == "<b>&\"'"
