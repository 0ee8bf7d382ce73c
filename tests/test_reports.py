"""Tables and pictures of a test, class by class."""

import io

import numpy as np
import pytest
import torch
from PIL import Image

from cxlp.reports import confusion_table, draw_confusion, draw_precisions, precision_table

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
        ["tern", 0, 0, None, "", 0],  # without images: nothing is known
    ]


@pytest.mark.parametrize("classes", [3, 30, 100])
def test_a_confusion_matrix_is_drawn_in_its_colours(classes: int) -> None:
    shown = picture(draw_confusion(torch.diag(torch.full((classes,), 5)), [f"class {k}" for k in range(classes)]))
    dark = (shown[..., 2] - shown[..., 0] > 60) & (shown[..., 0] < 60)  # the diagonal's blue
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
