"""A test's result class by class: tables and pictures, for files and for wandb alike."""

import io
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

# The object interface: pyplot would look for a screen and keep state between runs.
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator
from scipy.cluster.hierarchy import leaves_list, linkage
from scipy.spatial.distance import squareform
from torch import Tensor


def confusion_table(counts: Tensor, classes: Sequence[str]) -> tuple[list[str], list[list[Any]]]:
    """Tabulate a confusion matrix ``(true, predicted)``: worst class first, with what it is taken for."""
    rows: list[list[Any]] = []
    for k, name in enumerate(classes):
        total, right = int(counts[k].sum()), int(counts[k, k])
        wrong = counts[k].clone()
        wrong[k] = 0
        taken_for = classes[int(wrong.argmax())] if int(wrong.sum()) else ""
        rows.append([name, total, right, round(right / total, 4) if total else None, taken_for, int(wrong.max())])
    rows.sort(key=lambda row: (row[3] is None, row[3]))
    return ["class", "images", "right", "accuracy", "most often taken for", "times"], rows


def confusion_pairs(counts: Tensor, classes: Sequence[str], shown: int = 50) -> tuple[list[str], list[list[Any]]]:
    """Tabulate what is taken for what, most often first, at most ``shown`` pairs."""
    rates = _rates(counts)
    rows = [
        [classes[i], classes[j], int(counts[i, j]), round(float(rates[i, j]), 4)] for i, j in _confused(counts)[:shown]
    ]
    return ["true", "taken for", "times", "part of the true class"], rows


def draw_confusion(counts: Tensor, classes: Sequence[str], shown: int = 40) -> bytes:
    """Draw a confusion matrix, rows summing to 1, classes that are taken for each other side by side. Returns a PNG.

    With more than ``shown`` classes it is the block of those in the most frequent confusions.
    """
    chosen = _block(counts, shown)
    n = len(chosen)
    rates, block = _rates(counts)[chosen][:, chosen], counts[chosen][:, chosen]
    side = min(14.0, 4.0 + 0.3 * n)
    figure = Figure(figsize=(side + 1.5, side), layout="constrained")
    axes = figure.add_subplot()
    drawn = axes.imshow(rates.numpy(), cmap="Blues", vmin=0, vmax=1)
    figure.colorbar(drawn, ax=axes, shrink=0.8, label="part of the true class")
    accuracy = float(torch.trace(counts) / counts.sum().clamp_min(1))
    part = f"; the {n} of {len(classes)} classes confused most" if n < len(classes) else ""
    axes.set(xlabel="predicted", ylabel="true", title=f"{accuracy:.1%} of {int(counts.sum())} test images{part}")
    short = [name if len(name) <= 28 else name[:27] + "…" for name in (classes[k] for k in chosen)]
    axes.set_xticks(range(n), short, rotation=90, fontsize=8, parse_math=False)
    axes.set_yticks(range(n), short, fontsize=8, parse_math=False)
    for i, j in (block > 0).nonzero().tolist():
        colour = "white" if rates[i, j] > 0.5 else "black"
        axes.text(j, i, str(int(block[i, j])), ha="center", va="center", color=colour, fontsize=8 if n <= 20 else 6)
    return png(figure)


def _rates(counts: Tensor) -> Tensor:
    return counts.float() / counts.sum(dim=1, keepdim=True).clamp_min(1)


def _confused(counts: Tensor) -> list[tuple[int, int]]:
    """Pairs (true, predicted) of different classes, the most frequent first; of equals, in the order of classes."""
    wrong = (counts - torch.diag(counts.diagonal())).numpy()
    order = np.argsort(-wrong, axis=None, kind="stable")[: np.count_nonzero(wrong)]
    return [(int(i), int(j)) for i, j in zip(*np.unravel_index(order, wrong.shape), strict=True)]


def _block(counts: Tensor, most: int) -> list[int]:
    """The classes of the most frequent confusions, at most ``most`` of them, so ordered that confused ones are near."""
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
    """Tabulate average precisions: worst class first, those without any positive last.

    Args:
        precisions: ``(K,)`` for each definition, by its name.
        labels: ``(n, K)`` of {1, -1, 0}.
        classes: K names.
    """
    rows: list[list[Any]] = []
    for k, name in enumerate(classes):
        counts = [int((labels[:, k] == sign).sum()) for sign in (1, -1, 0)]
        values = [float(v[k]) for v in precisions.values()]
        rows.append([name, *counts, *(None if math.isnan(v) else round(v, 4) for v in values)])
    rows.sort(key=lambda row: (row[-1] is None, row[-1]))
    return ["class", "present", "absent", "unspecified", *precisions], rows


def draw_precisions(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> bytes:
    """Draw :func:`precision_table`'s last column as bars, best class on top, the share of positives beside. A PNG."""
    figure = Figure(figsize=(8.0, 1.5 + 0.3 * len(rows)), layout="constrained")
    axes = figure.add_subplot()
    values = [row[-1] or 0.0 for row in rows]
    chance = [row[1] / max(1, row[1] + row[2]) for row in rows]
    axes.barh(range(len(rows)), values, color="tab:blue")
    axes.plot(chance, range(len(rows)), "|", color="black", markersize=12, label="share of positives: random order")
    for i, row in enumerate(rows):
        said = "no positive" if row[-1] is None else f"{row[-1]:.3f}"
        axes.text(values[i] + 0.01, i, said, va="center", fontsize=8)
    defined = [row[-1] for row in rows if row[-1] is not None]
    mean = sum(defined) / len(defined) if defined else math.nan
    axes.set_yticks(range(len(rows)), [str(row[0]) for row in rows], fontsize=8, parse_math=False)
    axes.set(xlim=(0, 1.1), xlabel=f"average precision ({columns[-1]})")
    axes.set_title(f"mean {mean:.3f} over {len(defined)} classes")
    axes.legend(loc="lower right", fontsize=8)
    return png(figure)


def draw_costs(names: Sequence[str], quality: Sequence[float], seconds: Sequence[float], metric: str) -> bytes:
    """Draw quality in percent against seconds per image, one point for each system. Returns a PNG."""
    figure = Figure(figsize=(9.0, 6.0), layout="constrained")
    axes = figure.add_subplot()
    milliseconds = [1000 * value for value in seconds]
    axes.scatter(milliseconds, quality, color="tab:blue", zorder=2)
    axes.set_xscale("log")
    axes.set_xlim(min(milliseconds) / 1.5, max(milliseconds) * 6)  # names stand to the right
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_locator(LogLocator(subs=(2, 5)))  # a few milliseconds may lie within one power of ten
    axes.xaxis.set_minor_formatter("{x:g}")
    low, high = min(quality), max(quality)
    room = max(high - low, 1.0)
    axes.set_ylim(low - 0.15 * room, high + 0.1 * room)
    taken: list[tuple[float, float]] = []
    for name, x, y in sorted(zip(names, milliseconds, quality, strict=True), key=lambda point: -point[2]):
        height = y
        # Below the names that stand nearby already.
        while any(abs(math.log(x / other)) < 1.2 and abs(height - beside) < 0.035 * room for other, beside in taken):
            height -= 0.012 * room
        taken.append((x, height))
        axes.text(x * 1.08, height, name, fontsize=8, va="center", parse_math=False)
    axes.set(xlabel="ms per image (views, network, encoding, classification)", ylabel=f"{metric}, %")
    axes.grid(alpha=0.3)
    return png(figure)


def draw_differences(values: Mapping[str, Mapping[str, float]], baseline: str, shown: int = 60) -> bytes:
    """Draw what each system gains over a baseline, class by class, as a coloured table. Returns a PNG.

    Args:
        values: By system and class, in percent.
        baseline: One of the systems.
        shown: With more classes, those with the largest mean differences.
    """
    others = [name for name in values if name != baseline]
    base = values[baseline]
    gain = {c: [values[name][c] - base[c] for name in others] for c in base if all(c in values[n] for n in others)}
    chosen = sorted(gain, key=lambda c: -abs(sum(gain[c])))[:shown]
    chosen.sort(key=lambda c: -sum(gain[c]))
    figure = Figure(figsize=(4.0 + 0.55 * len(others), 2.5 + 0.28 * len(chosen)), layout="constrained")
    axes = figure.add_subplot()
    most = max(1.0, max((abs(g) for c in chosen for g in gain[c]), default=1.0))
    drawn = axes.imshow([gain[c] for c in chosen], cmap="RdBu", vmin=-most, vmax=most, aspect="auto")
    for row, c in enumerate(chosen):
        for column, g in enumerate(gain[c]):
            colour = "white" if abs(g) > 0.6 * most else "black"
            axes.text(column, row, f"{g:+.0f}", ha="center", va="center", fontsize=7, color=colour)
    axes.set_xticks(range(len(others)), others, rotation=60, ha="right", fontsize=8, parse_math=False)
    labels = [c if len(c) <= 28 else c[:27] + "…" for c in chosen]
    axes.set_yticks(range(len(chosen)), labels, fontsize=8, parse_math=False)
    part = f" ({shown} of {len(gain)} classes)" if len(gain) > shown else ""
    bar = figure.colorbar(drawn, ax=axes, shrink=0.7)
    bar.set_label(f"points above {baseline}{part}", parse_math=False)
    return png(figure)


def draw_sweep(option: str, values: Sequence[str], quality: Sequence[float], metric: str) -> bytes:
    """Draw quality in percent against the values of an option, in their order. Returns a PNG."""
    figure = Figure(figsize=(7.0, 4.5), layout="constrained")
    axes = figure.add_subplot()
    axes.plot(range(len(values)), quality, "o-")
    for i, y in enumerate(quality):
        axes.annotate(f"{y:.1f}", (i, y), textcoords="offset points", xytext=(0, 7), ha="center", fontsize=8)
    axes.set_xticks(range(len(values)), values, rotation=30 if max(map(len, values)) > 8 else 0)
    axes.set(xlabel=option, ylabel=f"{metric}, %")
    axes.margins(y=0.2)
    axes.grid(alpha=0.3)
    return png(figure)


def draw_validations(
    curves: Mapping[str, Sequence[Mapping[int, float]]], metric: str, reach: float | None = None
) -> bytes:
    """Draw quality in percent over epochs: of several seeds the mean, and the range between them. Returns a PNG.

    Args:
        curves: By system, of each seed, by epoch.
        metric: What they are of.
        reach: A height to mark.
    """
    figure = Figure(figsize=(8.0, 5.0), layout="constrained")
    axes = figure.add_subplot()
    for name, seeds in curves.items():
        epochs = sorted(set.intersection(*(set(curve) for curve in seeds)))
        values = np.array([[curve[epoch] for epoch in epochs] for curve in seeds])
        (line,) = axes.plot(epochs, values.mean(axis=0), "o-", markersize=3, label=name)
        if len(seeds) > 1:
            axes.fill_between(epochs, values.min(axis=0), values.max(axis=0), color=line.get_color(), alpha=0.12)
    if reach is not None:
        axes.axhline(reach, color="black", linewidth=0.8, linestyle="--")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set(xlabel="epoch", ylabel=f"{metric} of the images held out, %")
    for text in axes.legend(fontsize=8).get_texts():
        text.set_parse_math(False)
    axes.grid(alpha=0.3)
    return png(figure)


def png(figure: Figure) -> bytes:
    """Draw a figure, as the bytes of a PNG."""
    FigureCanvasAgg(figure)
    picture = io.BytesIO()
    figure.savefig(picture, dpi=120)
    return picture.getvalue()
