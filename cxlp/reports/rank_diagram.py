"""The critical-difference diagram: mean ranks of systems over cells (Demsar, JMLR 2006)."""

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure

from cxlp.metrics.ranks import cliques
from cxlp.reports.drawing import as_png, label


@as_png
def draw_ranks(names: Sequence[str], ranks: Sequence[float], critical_difference: float, cells: int) -> Figure:
    """Draw mean ranks on a line, the best system on the left.

    Bars join systems without a significant difference.

    Args:
        names: Names of the systems.
        ranks: Mean ranks of the systems.
        critical_difference: Nemenyi's critical difference, see :class:`cxlp.metrics.ranks.Ranking`.
        cells: Number of cells.
    """
    systems = len(names)
    order = np.argsort(ranks, kind="stable").tolist()
    joined = cliques(np.asarray(ranks), critical_difference)
    left = (systems + 1) // 2  # number of names on the left side; the others are on the right
    step, bars = 0.55, 0.3
    top = bars * len(joined) + 0.35
    height = top + step * left
    figure = Figure((8.0, 1.6 + 0.55 * height))
    axes = figure.add_subplot()
    axes.set_axis_off()
    axes.plot([1, systems], [0, 0], color="black", linewidth=1)
    for rank in range(1, systems + 1):
        axes.plot([rank, rank], [0, 0.12], color="black", linewidth=1)
        axes.text(rank, 0.2, str(rank), ha="center", va="bottom", fontsize=9)
    margin = 0.08 * (systems - 1)
    for place, k in enumerate(order):
        is_left = place < left
        depth = -top - step * (place if is_left else systems - 1 - place)
        end = 1 - margin if is_left else systems + margin
        axes.plot([ranks[k], ranks[k], end], [0, depth, depth], color="grey", linewidth=0.9)
        text = f"{label(names[k], 40)}  {ranks[k]:.2f}" if is_left else f"{ranks[k]:.2f}  {label(names[k], 40)}"
        axes.text(end, depth, f" {text} ", ha="right" if is_left else "left", va="center", fontsize=9)
    for line, group in enumerate(joined):
        ends = [ranks[group[0]], ranks[group[-1]]]
        axes.plot(ends, [-bars * (line + 1)] * 2, color="tab:blue", linewidth=4, solid_capstyle="butt")
    axes.errorbar(
        1 + critical_difference / 2, 0.95, xerr=critical_difference / 2, color="black", capsize=4, elinewidth=1
    )
    axes.text(1, 1.15, f"critical difference {critical_difference:.2f} (Nemenyi, 5 %)", fontsize=8, va="bottom")
    axes.set_xlim(1 - margin, max(systems, 1 + critical_difference) + margin)
    axes.set_ylim(-height - 0.1, 1.7)
    axes.set_title(f"mean rank over {cells} cells, 1 is the best", fontsize=10)
    return figure
