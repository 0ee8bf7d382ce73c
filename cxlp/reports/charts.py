"""Line charts, drawn by matplotlib as inline SVG in the colours of the HTML page."""

import io
import math
import re
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any, NamedTuple

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from cxlp.utils.spelling import number, percent

#: Number of colours for lines that the page defines.
COLOURS = 6
#: Maximum number of points of a line, which exceeds a chart's pixels.
POINTS = 400
#: Maximum number of points of a line with markers.
MARKED = 60

#: Size of a chart in CSS pixels. A telephone shows it without shrinking, so the text stays legible.
_WIDTH, _HEIGHT = 350, 210
_SETTINGS: dict[Any, Any] = {
    "axes.autolimit_mode": "round_numbers", "axes.formatter.useoffset": False, "axes.grid": True, "axes.grid.axis": "y",
    "axes.spines.bottom": False, "axes.spines.left": False, "axes.spines.right": False, "axes.spines.top": False,
    "axes.xmargin": 0, "axes.ymargin": 0, "figure.dpi": 72, "font.sans-serif": "DejaVu Sans", "font.size": 12,
    "grid.color": "#000009", "grid.linewidth": 1, "lines.linewidth": 1.8, "lines.markersize": 6, "svg.fonttype": "none",
    "xtick.major.pad": 7, "xtick.major.size": 0, "ytick.major.pad": 6, "ytick.major.size": 0, "ytick.minor.size": 0,
}  # fmt: skip


class Chart(NamedTuple):
    """An SVG chart with its title and its legend, which has a colour number and a text for each line."""

    title: str
    svg: str
    legend: list[tuple[int, str]]


def line_chart(
    title: str,
    series: Mapping[str, Sequence[tuple[float, float]]],
    x_label: str,
    log: bool = False,
    limits: tuple[float, float] | None = None,
    parts: bool = False,
    tested: float | None = None,
) -> Chart | None:
    """Draw lines, with a legend that shows their last values.

    Args:
        title: Title of the chart.
        series: Points ``(x, y)`` by name, in the order of x. Points that are not finite, and on a logarithmic axis
            points that are not positive, are left out.
        x_label: Label of the x axis.
        log: Whether the y axis is logarithmic.
        limits: Limits of the y axis; ``None`` derives them from the points.
        parts: Whether y is a fraction, to be shown in percent.
        tested: Position on the x axis of the tested weights, which is marked.

    Returns:
        The chart; ``None`` if there are no points.
    """
    shown = {k: [(x, y) for x, y in v if math.isfinite(x + y) and (y > 0 or not log)] for k, v in series.items()}
    lines = {name: points[:: -math.ceil(len(points) / POINTS)][::-1] for name, points in shown.items() if points}
    if not lines:
        return None
    written = percent if parts else number
    legend: list[tuple[int, str]] = []
    marks: list[str] = []  # tooltips
    # The ids in an SVG are hashes with this salt: reproducible, and different for any two charts of a page.
    with rc_context({**_SETTINGS, "svg.hashsalt": repr((title, lines))}):
        figure = Figure(figsize=(_WIDTH / 72, _HEIGHT / 72), layout="constrained")
        axes = figure.add_subplot()
        for line, (name, points) in enumerate(lines.items()):
            colour = line % COLOURS + 1
            legend.append((colour, f"{name}: {written(points[-1][1])}"))
            axes.plot(*zip(*points, strict=True), color=f"#00000{colour}", clip_on=False)
            for x, y in points if len(points) <= MARKED else ():
                axes.plot(x, y, "o", color=f"#00000{colour}", clip_on=False, gid=f"mark {len(marks)}")
                marks.append(f"{name}: {written(y)} ({x_label} {number(x)})")
        axes.locator_params(nbins=5)
        if x_label == "epoch":
            axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        if parts:
            axes.yaxis.set_major_formatter(PercentFormatter(1))
        if log:
            axes.set_yscale("log")
            axes.yaxis.set_major_formatter("{x:.3g}")
        if limits:
            axes.set_ylim(limits)
        if tested is not None:
            _mark(axes, tested)
        axes.set_xlabel(x_label, loc="right")
        file = io.StringIO()
        figure.savefig(file, format="svg", transparent=True)
    # The beginning of the file is left out: an inline SVG needs no prolog, and the first <defs> would style the page.
    drawing = file.getvalue().partition("</defs>")[2].replace("xlink:href", "href")
    svg = f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{escape(title)}">{drawing}'
    svg = re.sub('<g id="mark (.+)">', lambda mark: f"<g><title>{escape(marks[int(mark[1])])}</title>", svg)
    svg = re.sub('<g id="[^"]*"', "<g", svg)
    # The page defines colour n for a light and for a dark background.
    return Chart(title, re.sub("#00000([1-9])", r"var(--c\1)", svg), legend)


def _mark(axes: Axes, x: float) -> None:
    """Draw a vertical line, with the word "tested" on the side that has space for it."""
    axes.axvline(x, color="#000008", linewidth=1, linestyle=(0, (4, 3)), clip_on=False)
    left, right = axes.get_xlim()
    is_right = x - left > 0.6 * (right - left)
    axes.annotate(
        "tested", (x, 1), (-4 if is_right else 4, 2), xycoords=("data", "axes fraction"), textcoords="offset points",
        ha="right" if is_right else "left", va="bottom", annotation_clip=False,
    )  # fmt: skip
