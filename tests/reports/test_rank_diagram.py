"""The critical-difference diagram: positions of names, ranks and bars."""

import numpy as np
import pytest
from matplotlib.figure import Figure

from cxlp.reports.rank_diagram import draw_ranks


@pytest.fixture
def kept(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    figures: list[Figure] = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, *_, **__: figures.append(figure))
    return figures


def test_ranks_and_bars(kept: list[Figure]) -> None:
    draw_ranks(["average", "CL", "bilinear"], [3.0, 1.2, 1.8], 1.0, 7)
    (axes,) = kept[0].axes
    bars = [np.asarray(line.get_xdata()).tolist() for line in axes.lines if line.get_linewidth() == 4]
    assert bars == [[1.2, 1.8]]
    texts = {text.get_text().strip(): text for text in axes.texts}
    assert {"CL  1.20", "bilinear  1.80", "3.00  average", "1", "2", "3"} <= texts.keys()
    assert texts["CL  1.20"].get_position()[1] > texts["bilinear  1.80"].get_position()[1]  # the best on top
    assert "7 cells" in axes.get_title() and any("1.00" in text for text in texts)


@pytest.mark.parametrize("systems", [2, 3, 12])
def test_texts_do_not_overlap(kept: list[Figure], systems: int) -> None:
    draw_ranks([f"system number {k}" for k in range(systems)], [1 + 0.5 * k for k in range(systems)], 2.2, 6)
    figure = kept[0]
    figure.draw_without_rendering()
    boxes = [text.get_window_extent() for text in figure.axes[0].texts]
    assert not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[:i])
