"""Tables and pictures of a test by class."""

import io
from itertools import combinations

import numpy as np
import pytest
import torch
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from PIL import Image

from cxlp.reports.figures import (
    _block,
    confusion_pairs,
    confusion_table,
    draw_confusion,
    draw_costs,
    draw_precisions,
    draw_validations,
    precision_table,
)

COUNTS = torch.tensor([[8, 2, 0], [0, 0, 0], [1, 4, 5]])
NAMES = ["gull", "tern", "wren"]


def picture(data: bytes) -> np.ndarray[tuple[int, ...], np.dtype[np.int64]]:
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"), dtype=np.int64)


def test_confusions_are_listed_worst_class_first() -> None:
    columns, rows = confusion_table(COUNTS, NAMES)
    assert columns == ["class", "images", "right", "accuracy", "most often taken for", "times"]
    assert rows == [
        ["wren", 10, 5, 0.5, "tern", 4],
        ["gull", 10, 8, 0.8, "tern", 2],
        ["tern", 0, 0, None, "", 0],  # a class without images has no values
    ]


def test_confused_pairs_are_listed_most_frequent_first_with_a_limit() -> None:
    columns, rows = confusion_pairs(COUNTS, NAMES)
    assert columns == ["true", "taken for", "times", "part of the true class"]
    assert rows == [["wren", "tern", 4, 0.4], ["gull", "tern", 2, 0.2], ["wren", "gull", 1, 0.1]]
    many = torch.ones(200, 200, dtype=torch.long)
    assert len(confusion_pairs(many, [str(k) for k in range(200)])[1]) == 50


def test_the_most_confused_of_many_classes_are_drawn_side_by_side() -> None:
    counts = torch.diag(torch.full((200,), 30))
    pairs = [(i, 199 - i) for i in range(25)]
    for n, (i, j) in enumerate(pairs):
        counts[i, j] = counts[j, i] = 20 - n // 2
    block = _block(counts, 40)
    assert sorted(block) == sorted(k for pair in pairs[:20] for k in pair)
    places = {k: place for place, k in enumerate(block)}
    assert all(abs(places[i] - places[j]) == 1 for i, j in pairs[:20])
    assert len(draw_confusion(counts, [f"a rather long name of class {k}" for k in range(200)])) < 500_000


@pytest.mark.parametrize("classes", [2, 45])
def test_without_confusions_the_matrix_is_still_drawn(classes: int) -> None:
    assert sorted(_block(torch.eye(classes, dtype=torch.long), 40)) == list(range(min(40, classes)))


@pytest.mark.parametrize("classes", [3, 30, 100])
def test_a_confusion_matrix_is_drawn_in_its_colours(classes: int) -> None:
    shown = picture(draw_confusion(torch.diag(torch.full((classes,), 5)), [f"class {k}" for k in range(classes)]))
    dark = (shown[..., 2] - shown[..., 0] > 60) & (shown[..., 0] < 60)  # the blue of the diagonal
    rows, columns = np.nonzero(dark[:, : int(shown.shape[1] * 0.8)])  # without the colour bar
    assert len(rows) > 200
    assert np.corrcoef(rows, columns)[0, 1] > 0.85  # from the upper left to the lower right


def test_precisions_are_listed_worst_class_first() -> None:
    labels = torch.tensor([[1, -1, -1], [1, -1, 0], [-1, -1, 1]])
    found = {"AP_11point": torch.tensor([0.75, torch.nan, 0.25]), "AP": torch.tensor([0.8, torch.nan, 0.31])}
    columns, rows = precision_table(found, labels, NAMES)
    assert columns == ["class", "present", "absent", "unspecified", "AP_11point", "AP"]
    assert rows == [["wren", 1, 1, 1, 0.25, 0.31], ["gull", 2, 1, 0, 0.75, 0.8], ["tern", 0, 3, 0, None, None]]


def test_precisions_are_drawn_as_bars_of_their_length() -> None:
    columns = ["class", "present", "absent", "unspecified", "AP"]
    rows = [["low", 1, 9, 0, 0.2], ["high", 1, 9, 0, 0.8], ["none", 0, 9, 0, None]]
    shown = picture(draw_precisions(columns, rows))
    blue = (abs(shown - np.array([31, 119, 180])).sum(axis=2) < 30).sum(axis=1)  # tab:blue, pixels per row
    lengths = blue[blue > 20]
    assert lengths.max() / lengths.min() == pytest.approx(4, rel=0.05)


def test_names_of_systems_overlap_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    kept: list[Figure] = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, *_, **__: kept.append(figure))
    names = [f"a system with a rather long name {k}" for k in range(12)]
    quality = [90.0 + 0.2 * (k % 4) for k in range(12)]
    ends = [(y - 3, y + 3) if k % 2 else None for k, y in enumerate(quality)]
    seconds = [0.010 + 0.0004 * k for k in range(11)] + [0.4]
    draw_costs(names, quality, ends, [1000 * s for s in seconds], "ms", "accuracy, %")
    (axes,) = kept[0].axes
    boxes = [text.get_window_extent() for text in axes.texts]
    assert sorted(text.get_text() for text in axes.texts) == sorted(names)
    assert not any(a.overlaps(b) for a, b in combinations(boxes, 2))
    assert all(axes.bbox.x0 <= box.x0 and box.x1 <= axes.bbox.x1 for box in boxes)
    points = axes.transData.transform([(1000 * s, y) for s, y in zip(seconds, quality, strict=True)])
    assert not any(box.contains(x, y) for box in boxes for x, y in points)
    (bars,) = (c for c in axes.collections if isinstance(c, LineCollection))
    heights = [segment[1, 1] - segment[0, 1] for segment in bars.get_segments()]
    assert heights == pytest.approx([6.0 * (k % 2) for k in range(12)])


@pytest.mark.parametrize("systems", [1, 2])
def test_the_axes_fit_few_systems(systems: int, monkeypatch: pytest.MonkeyPatch) -> None:
    kept: list[Figure] = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, *_, **__: kept.append(figure))
    ends = [(75.0, 84.0), None][:systems]
    draw_costs(["a", "b"][:systems], [80.0, 90.0][:systems], ends, [10.0, 20.0][:systems], "kB", "accuracy")
    (axes,) = kept[0].axes
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("kB", "accuracy")
    (left, right), (low, high) = axes.get_xlim(), axes.get_ylim()
    assert 5 < left < 10 and 10 * systems < right < 30 * systems
    assert 70 < low < 75 and (84 if systems == 1 else 90) < high < 95


def test_validations_are_drawn_as_the_seeds_mean_and_range() -> None:
    up, down = {epoch: 10.0 * epoch for epoch in range(9)}, {epoch: 80 - 10.0 * epoch for epoch in range(9)}
    shown = picture(draw_validations({"level": [up, down], "up": [up]}, "accuracy", 70.0))
    inside = shown[60:-80, 80:-20]
    blue, orange, black = (
        abs(inside - np.array(c)).sum(axis=2) < 30 for c in ((31, 119, 180), (255, 127, 14), (0, 0, 0))
    )
    pale = (inside[..., 2] - inside[..., 0] > 15) & ~blue  # the range is wide at both ends
    edges = [pale[:, part].sum() for part in (slice(0, 200), slice(350, 450), slice(-200, None))]
    assert min(edges[0], edges[2]) > 2 * edges[1]
    rows, columns = np.nonzero(blue)
    assert np.median(rows) == pytest.approx(np.percentile(rows, 75), abs=6)  # the mean is constant
    rows, columns = np.nonzero(orange)
    assert np.corrcoef(rows, columns)[0, 1] < -0.9  # and this one increases
    assert black.sum() > 200  # the marked height
