"""Tables and figures of a test by class, and of comparisons of systems."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import textalloc
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, PercentFormatter
from scipy.cluster.hierarchy import leaves_list, linkage
from scipy.spatial.distance import squareform
from torch import Tensor

from cxlp.reports.drawing import as_png, label
from cxlp.utils.spelling import number, percent, shown_names


def confusion_table(counts: Tensor, classes: Sequence[str]) -> tuple[list[str], list[list[Any]]]:
    """Return the table of a confusion matrix ``(true, predicted)``: worst class first, each with its main confusion."""
    (most, other), right = _wrong(counts).max(dim=1), counts.diagonal()
    columns = (column.tolist() for column in (counts.sum(dim=1), right, most, other))
    rows = [
        [name, total, hits, round(hits / total, 4) if total else None, classes[k] if times else "", times]
        for name, total, hits, times, k in zip(classes, *columns, strict=True)
    ]
    rows.sort(key=lambda row: (row[3] is None, row[3]))
    return ["class", "images", "right", "accuracy", "most often taken for", "times"], rows


def confusion_pairs(counts: Tensor, classes: Sequence[str], shown: int = 50) -> tuple[list[str], list[list[Any]]]:
    """Return a table of the ``shown`` most frequent confusions of a true class with a predicted one."""
    rates = _rates(counts)
    rows = [
        [classes[i], classes[j], int(counts[i, j]), round(float(rates[i, j]), 4)] for i, j in _confused(counts)[:shown]
    ]
    return ["true", "taken for", "times", "part of the true class"], rows


@as_png
def draw_confusion(counts: Tensor, classes: Sequence[str], shown: int = 40) -> Figure:
    """Draw a confusion matrix whose rows sum to 1. Classes that are often confused are next to each other.

    If there are more than ``shown`` classes, the figure shows those with the most frequent confusions.
    """
    chosen = _block(counts, shown)
    n = len(chosen)
    rates, block = _rates(counts)[chosen][:, chosen], counts[chosen][:, chosen]
    side = min(14.0, 4.0 + 0.3 * n)
    figure = Figure((side + 1.5, side))
    axes = figure.add_subplot()
    drawn = axes.imshow(rates.numpy(), cmap="Blues", vmin=0, vmax=1)
    bar = figure.colorbar(drawn, ax=axes, shrink=0.8, label="part of the true class")
    bar.ax.yaxis.set_major_formatter(PercentFormatter(1))
    accuracy = percent(float(torch.trace(counts) / counts.sum().clamp_min(1)))
    part = f"; the {n} of {len(classes)} classes confused most" if n < len(classes) else ""
    title = f"accuracy {accuracy} of {number(int(counts.sum()))} test images{part}"
    axes.set(xlabel="predicted", ylabel="true", title=title)
    spelled = shown_names(classes)
    names = [label(spelled[k]) for k in chosen]
    axes.set_xticks(range(n), names, rotation=90)
    axes.set_yticks(range(n), names)
    for i, j in (block > 0).nonzero().tolist():
        colour = "white" if rates[i, j] > 0.5 else "black"
        axes.text(j, i, str(int(block[i, j])), ha="center", va="center", color=colour, fontsize=8 if n <= 20 else 6)
    return figure


def _rates(counts: Tensor) -> Tensor:
    return counts.float() / counts.sum(dim=1, keepdim=True).clamp_min(1)


def _wrong(counts: Tensor) -> Tensor:
    return counts - torch.diag(counts.diagonal())


def _confused(counts: Tensor) -> list[tuple[int, int]]:
    """Return the confused pairs (true, predicted), most frequent first; ties keep the order of classes."""
    wrong = _wrong(counts)
    places = wrong.nonzero()
    order = wrong[tuple(places.T)].argsort(descending=True, stable=True)
    return [(i, j) for i, j in places[order].tolist()]


def _block(counts: Tensor, most: int) -> list[int]:
    """Choose at most ``most`` classes with the most frequent confusions; confused classes are adjacent."""
    among = dict.fromkeys(k for pair in _confused(counts) for k in pair)
    chosen = sorted([*among, *(k for k in range(len(counts)) if k not in among)][:most])
    if len(chosen) < 3:
        return chosen
    rates = _rates(counts)[chosen][:, chosen].double()
    distance = 1 - (rates + rates.T).numpy() / 2
    np.fill_diagonal(distance, 0)
    tree = linkage(squareform(distance, checks=False), "average", optimal_ordering=True)
    return [chosen[k] for k in leaves_list(tree)]


def precision_table(
    precisions: Mapping[str, Tensor], labels: Tensor, classes: Sequence[str]
) -> tuple[list[str], list[list[Any]]]:
    """Return a table of average precisions, worst class first, and classes without positives last.

    Args:
        precisions: Average precisions ``(K,)`` by the name of their definition.
        labels: ``(n, K)`` of 1, -1 or 0.
        classes: The K names of classes.
    """
    counts = ((labels == sign).sum(dim=0).tolist() for sign in (1, -1, 0))
    values = ([None if math.isnan(v) else round(v, 4) for v in column.tolist()] for column in precisions.values())
    rows = [list(row) for row in zip(classes, *counts, *values, strict=True)]
    rows.sort(key=lambda row: (row[-1] is None, row[-1]))
    return ["class", "present", "absent", "unspecified", *precisions], rows


@as_png
def draw_precisions(columns: Sequence[str], rows: Sequence[Sequence[Any]], shown: int = 60) -> Figure:
    """Draw the last column of :func:`precision_table` as bars, with marks at the fractions of positives.

    If there are more than ``shown`` classes, the figure shows those with the lowest average precision.
    """
    defined = [row[-1] for row in rows if row[-1] is not None]
    mean = percent(sum(defined) / len(defined) if defined else math.nan)
    part = f"; the {shown} lowest" if len(rows) > shown else ""
    names = shown_names([row[0] for row in rows])[:shown]
    rows = rows[:shown]
    figure = Figure((8.0, 1.7 + 0.3 * len(rows)))
    axes = figure.add_subplot()
    values = [row[-1] or 0.0 for row in rows]
    chance = [row[1] / max(1, row[1] + row[2]) for row in rows]
    axes.barh(range(len(rows)), values, color="tab:blue")
    axes.plot(chance, range(len(rows)), "|", color="black", markersize=12, label="fraction of positives (chance level)")
    for i, row in enumerate(rows):
        said = "no positive" if row[-1] is None else percent(row[-1])
        axes.text(values[i] + 0.01, i, said, va="center", fontsize=8)
    axes.set_yticks(range(len(rows)), map(label, names))
    axes.set(xlim=(0, 1.12), xlabel=f"average precision ({columns[-1]})")
    axes.set_xticks([i / 5 for i in range(6)])
    axes.xaxis.set_major_formatter(PercentFormatter(1))
    axes.invert_yaxis()  # in the order of the table
    axes.set_title(f"mean {mean} over {len(defined)} classes{part}")
    figure.legend(loc="outside lower right")
    return figure


#: Ends of the error bar of a quality, in percent; ``None`` without an error bar.
Ends = tuple[float, float] | None


@as_png
def draw_costs(
    names: Sequence[str],
    quality: Sequence[float],
    ends: Sequence[Ends],
    costs: Sequence[float],
    cost_label: str,
    quality_label: str,
) -> Figure:
    """Draw quality in percent over the cost per image, with a point and an error bar for each system."""
    figure = Figure((9.0, 6.0))
    axes = figure.add_subplot()
    costs = list(costs)
    axes.set_xscale("log")
    _draw_points(axes, costs, quality, ends)
    low, high = min(costs), max(costs)
    space = max(high / low, 10) ** 0.15  # for names
    axes.set_xlim(low / space, high * space)
    axes.margins(y=0.08)
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_locator(LogLocator(subs=(2, 5)))  # all costs may be within one power of ten
    axes.xaxis.set_minor_formatter("{x:g}")
    axes.set(xlabel=cost_label, ylabel=quality_label)
    axes.grid(alpha=0.3)
    figure.draw_without_rendering()  # fixes the axes' positions, because names are placed in pixels
    figure.set_layout_engine("none")
    bars = [list(end or (y, y)) for y, end in zip(quality, ends, strict=True)]
    textalloc.allocate(
        axes, costs, list(quality), [label(name, 60) for name in names], x_scatter=costs,
        y_scatter=list(quality), x_lines=[[x, x] for x in costs], y_lines=list(bars), textsize=8,
        linecolor="grey", linewidth=0.6, min_distance=0.015, max_distance=0.6, nbr_candidates=1000,
    )  # fmt: skip
    return figure


def _draw_points(axes: Axes, x: Sequence[float], quality: Sequence[float], ends: Sequence[Ends]) -> None:
    bars = [(0.0, 0.0) if end is None else (y - end[0], end[1] - y) for y, end in zip(quality, ends, strict=True)]
    axes.errorbar(x, quality, list(zip(*bars, strict=True)), fmt="o", capsize=3, elinewidth=0.8, color="tab:blue")


@as_png
def draw_differences(values: Mapping[str, Mapping[str, float]], baseline: str, shown: int = 60) -> Figure:
    """Draw the gain of each system over a baseline by class, as a coloured table.

    Args:
        values: Quality in percent by system and class.
        baseline: The name of the baseline, one of the systems.
        shown: Maximum number of classes; those with the largest mean differences are shown.
    """
    others = [name for name in values if name != baseline]
    base = values[baseline]
    gain = {c: [values[name][c] - base[c] for name in others] for c in base if all(c in values[n] for n in others)}
    chosen = sorted(gain, key=lambda c: -abs(sum(gain[c])))[:shown]
    chosen.sort(key=lambda c: -sum(gain[c]))
    figure = Figure((4.0 + 0.55 * len(others), 2.5 + 0.28 * len(chosen)))
    axes = figure.add_subplot()
    most = max(1.0, max((abs(g) for c in chosen for g in gain[c]), default=1.0))
    drawn = axes.imshow([gain[c] for c in chosen], cmap="RdBu", vmin=-most, vmax=most, aspect="auto")
    for row, c in enumerate(chosen):
        for column, g in enumerate(gain[c]):
            colour = "white" if abs(g) > 0.6 * most else "black"
            axes.text(column, row, f"{g:+.0f}", ha="center", va="center", fontsize=7, color=colour)
    axes.set_xticks(range(len(others)), [label(name, 60) for name in others], rotation=60, ha="right")
    spelled = dict(zip(base, shown_names(list(base)), strict=True))
    axes.set_yticks(range(len(chosen)), [label(spelled[c]) for c in chosen])
    part = f" ({shown} of {len(gain)} classes)" if len(gain) > shown else ""
    figure.colorbar(drawn, ax=axes, shrink=0.7, label=f"points above {label(baseline, 60)}{part}")
    return figure


@as_png
def draw_sweep(
    option: str, values: Sequence[str], quality: Sequence[float], ends: Sequence[Ends], quality_label: str
) -> Figure:
    """Draw quality in percent over the values of an option, in their order, each with an error bar."""
    figure = Figure((7.0, 4.5))
    axes = figure.add_subplot()
    axes.plot(range(len(values)), quality, color="tab:blue")
    _draw_points(axes, range(len(values)), quality, ends)
    for i, y in enumerate(quality):
        axes.annotate(percent(y / 100), (i, y), textcoords="offset points", xytext=(6, 4), fontsize=8)
    axes.set_xticks(range(len(values)), map(label, values), rotation=30 if max(map(len, values)) > 8 else 0)
    axes.set(xlabel=option, ylabel=quality_label)
    axes.margins(0.12, 0.1)
    axes.grid(alpha=0.3)
    return figure


@as_png
def draw_validations(
    curves: Mapping[str, Sequence[Mapping[int, float]]], metric: str, reach: float | None = None
) -> Figure:
    """Draw quality in percent over epochs: the mean of several seeds, and the range between them.

    Args:
        curves: The curves of each system by its name: for each seed, the quality by epoch.
        metric: Name of the metric.
        reach: A quality to mark by a horizontal line.
    """
    figure = Figure((8.0, 5.0))
    axes = figure.add_subplot()
    for name, seeds in curves.items():
        epochs = sorted(set.intersection(*(set(curve) for curve in seeds)))
        values = np.array([[curve[epoch] for epoch in epochs] for curve in seeds])
        (line,) = axes.plot(epochs, values.mean(axis=0), "o-", markersize=3, label=label(name, 60))
        if len(seeds) > 1:
            axes.fill_between(epochs, values.min(axis=0), values.max(axis=0), color=line.get_color(), alpha=0.12)
    if reach is not None:
        axes.axhline(reach, color="black", linewidth=0.8, linestyle="--")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set(xlabel="epoch", ylabel=f"{metric} of the held-out images, %")
    axes.legend()
    axes.grid(alpha=0.3)
    return figure
