"""A test's result class by class: tables and pictures, for files and for wandb alike."""

import io
import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch

# The object interface: pyplot would look for a screen and keep state between runs.
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
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


def draw_confusion(counts: Tensor, classes: Sequence[str]) -> bytes:
    """Draw a confusion matrix, rows summing to 1; names and numbers where they can be read. Returns a PNG."""
    n = len(classes)
    rates = counts.float() / counts.sum(dim=1, keepdim=True).clamp_min(1)
    side = min(16.0, 4.0 + 0.35 * n)
    figure = Figure(figsize=(side + 1.5, side), layout="constrained")
    axes = figure.add_subplot()
    shown = axes.imshow(rates.numpy(), cmap="Blues", vmin=0, vmax=1)
    figure.colorbar(shown, ax=axes, shrink=0.8, label="part of the true class")
    accuracy = float(torch.trace(counts) / counts.sum().clamp_min(1))
    axes.set(xlabel="predicted", ylabel="true", title=f"{accuracy:.1%} of {int(counts.sum())} test images")
    if n <= 60:
        short = [name if len(name) <= 28 else name[:27] + "…" for name in classes]
        axes.set_xticks(range(n), short, rotation=90, fontsize=8)
        axes.set_yticks(range(n), short, fontsize=8)
    if n <= 20:
        for i, j in (counts > 0).nonzero().tolist():
            colour = "white" if rates[i, j] > 0.5 else "black"
            axes.text(j, i, str(int(counts[i, j])), ha="center", va="center", color=colour, fontsize=8)
    return _png(figure)


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
    axes.set_yticks(range(len(rows)), [str(row[0]) for row in rows], fontsize=8)
    axes.set(xlim=(0, 1.1), xlabel=f"average precision ({columns[-1]})")
    axes.set_title(f"mean {mean:.3f} over {len(defined)} classes")
    axes.legend(loc="lower right", fontsize=8)
    return _png(figure)


def _png(figure: Figure) -> bytes:
    FigureCanvasAgg(figure)
    picture = io.BytesIO()
    figure.savefig(picture, dpi=120)
    return picture.getvalue()
