"""Line charts as inline SVG, whose colours follow the page's style."""

import math
from collections.abc import Iterable, Mapping, Sequence
from html import escape

from matplotlib.ticker import MaxNLocator

Points = Sequence[tuple[float, float]]

#: How many colours the style has.
COLOURS = 6
#: Most points of a line: more than the page has pixels.
POINTS = 400

_WIDTH, _HEIGHT = 460, 240
_LEFT, _RIGHT, _TOP, _BOTTOM = 52, 10, 10, 34


def line_chart(
    title: str,
    series: Mapping[str, Points],
    x_label: str,
    log: bool = False,
    limits: tuple[float, float] | None = None,
) -> str:
    """Draw lines, with a legend.

    Args:
        title: What it shows.
        series: Points ``(x, y)`` by name, in the order of x. Those that are not finite, and on a logarithmic scale
            those that are not positive, are left out.
        x_label: What x is.
        log: Logarithmic y.
        limits: Of y, where they are known beforehand.

    Returns:
        A ``<figure>``; empty where there is no point.
    """
    lines = {name: _thinned([p for p in points if _is_shown(p[1], log)]) for name, points in series.items()}
    lines = {name: points for name, points in lines.items() if points}
    if not lines:
        return ""
    xs = [x for points in lines.values() for x, _ in points]
    ys = limits or [math.log10(y) if log else y for points in lines.values() for _, y in points]
    x_axis, y_axis = _Axis(xs, _LEFT, _WIDTH - _RIGHT), _Axis(ys, _HEIGHT - _BOTTOM, _TOP, whole=log)
    drawn = [
        *_grid(x_axis, y_axis, log),
        f'<text class="label" x="{_WIDTH}" y="{_HEIGHT - 4}">{escape(x_label)}</text>',
    ]
    legend = []
    for number, (name, points) in enumerate(lines.items()):
        colour = f"c{number % COLOURS}"
        places = [(x_axis.place(x), y_axis.place(math.log10(y) if log else y)) for x, y in points]
        drawn.append(f'<polyline class="{colour}" points="{" ".join(f"{x:.1f},{y:.1f}" for x, y in places)}"/>')
        if len(points) <= 60:  # to point at
            drawn += [
                f'<circle class="{colour}" cx="{x:.1f}" cy="{y:.1f}" r="3"><title>{escape(name)}: {value:.4g} '
                f"({escape(x_label)} {at:.4g})</title></circle>"
                for (x, y), (at, value) in zip(places, points, strict=True)
            ]
        legend.append(f'<span class="{colour}">{escape(name)}: {points[-1][1]:.4g}</span>')
    return (
        f'<figure class="chart"><figcaption>{escape(title)}</figcaption>'
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{escape(title)}">{"".join(drawn)}</svg>'
        f'<p class="legend">{"".join(legend)}</p></figure>'
    )


class _Axis:
    """From values to places, with round ticks."""

    def __init__(self, values: Sequence[float], start: float, end: float, whole: bool = False) -> None:
        low, high = min(values), max(values)
        if low == high:
            low, high = low - (abs(low) or 1) / 2, high + (abs(high) or 1) / 2
        ticks = [float(t) for t in MaxNLocator(5, steps=[1, 2, 2.5, 5, 10], integer=whole).tick_values(low, high)]
        self.low, self.high = min(low, ticks[0]), max(high, ticks[-1])
        self.start, self.end, self.ticks = start, end, ticks

    def place(self, value: float) -> float:
        return self.start + (self.end - self.start) * (value - self.low) / (self.high - self.low)


def _grid(x_axis: _Axis, y_axis: _Axis, log: bool) -> Iterable[str]:
    for tick in y_axis.ticks:
        y = y_axis.place(tick)
        yield f'<line x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>'
        yield f'<text class="y" x="{_LEFT - 6}" y="{y + 4:.1f}">{10**tick if log else tick:.3g}</text>'
    for tick in x_axis.ticks:
        yield f'<text class="x" x="{x_axis.place(tick):.1f}" y="{_HEIGHT - _BOTTOM + 16}">{tick:.3g}</text>'


def _is_shown(y: float, log: bool) -> bool:
    return math.isfinite(y) and (y > 0 or not log)


def _thinned(points: Points) -> Points:
    """At most 400 points, the last one among them."""
    every = -(-len(points) // POINTS)
    return points if every <= 1 else points[(len(points) - 1) % every :: every]
