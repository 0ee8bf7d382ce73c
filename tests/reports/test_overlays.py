"""Figures of explanations: colours are at the places of the evidence."""

import io
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from cxlp.explain.attribution import Explanation, PartEvidence
from cxlp.heads.views import Window
from cxlp.models.network import Network
from cxlp.reports.overlays import draw_evidence, draw_explanation, draw_patches, headline
from tests.networks import SMALL, build

GREY = torch.full((3, 64, 64), 128, dtype=torch.uint8)
Shown = np.ndarray[tuple[int, ...], np.dtype[np.int64]]


def picture(data: bytes) -> Shown:
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"), dtype=np.int64)


def explanation(sign: float = 1.0, second: float = 0.0, against: int | None = None) -> Explanation:
    """An explanation with two channels, with evidence at the lower left of 4 x 4 places, and in the middle."""
    shares = torch.zeros(1, 2, 4, 4, dtype=torch.float64)
    shares[0, 0, 3, 0], shares[0, 1, 1, 1] = sign, second
    part = PartEvidence(shares, shares.abs(), (Window(0, 0, False),), 64, 64)
    return Explanation(0, against, torch.tensor([0.75, 0.25]), -0.5, (part,))


def coloured(shown: Shown) -> tuple[Shown, Shown]:
    """Return the masks of red and blue pixels."""
    red = (shown[..., 0] - shown[..., 2] > 60) & (shown[..., 0] > 100)
    blue = (shown[..., 2] - shown[..., 0] > 60) & (shown[..., 2] > 100)
    return np.argwhere(red), np.argwhere(blue)


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_evidence_is_red_for_the_class_and_blue_against_it(sign: float) -> None:
    shown = picture(draw_explanation(GREY, 1.0, explanation(sign), [0], ["cost $\\frac{1$ in $", "tern"], "a note"))
    width = shown.shape[1]
    # Above the channels, between the image and the colour bar: the map only.
    for_it, against_it = coloured(shown[: shown.shape[0] // 2, int(0.23 * width) : int(0.45 * width)])
    found, other = (for_it, against_it) if sign > 0 else (against_it, for_it)
    assert len(found) > 200 and len(other) == 0
    rows, columns = found.mean(axis=0)
    grey = np.argwhere(
        (abs(shown - 128).max(axis=2) <= 2)[: shown.shape[0] // 2, int(0.23 * width) : int(0.45 * width)]
    )
    assert rows > np.quantile(grey[:, 0], 0.75) and columns < np.quantile(grey[:, 1], 0.25)  # lower left


def test_channels_highlight_the_image_in_a_frame_of_their_sign() -> None:
    shown = picture(draw_explanation(GREY, 1.0, explanation(second=-0.2), [0, 1], ["gull", "tern"]))
    below = shown[shown.shape[0] // 2 :]
    for_it, against_it = coloured(below)
    assert len(for_it) > 1000 and len(against_it) > 1000 and for_it[:, 1].max() < against_it[:, 1].min()
    light = np.argwhere(abs(below - 128).max(axis=2) <= 8)  # as bright as the image itself
    inner = light[light[:, 1] < shown.shape[1] / 4]
    middle = for_it.mean(axis=0)  # of the frame
    assert np.median(inner[:, 0]) > middle[0] and np.median(inner[:, 1]) < middle[1]


def test_figures_keep_the_aspect_ratio() -> None:
    for proportion in (0.6, 1.5):
        shown = picture(draw_explanation(GREY, proportion, explanation(), [0], ["gull", "tern"]))
        rows, columns = coloured(shown[shown.shape[0] // 2 :])[0].T  # the channel's frame
        height, width = rows.max() - rows.min(), columns.max() - columns.min()
        assert height / width == pytest.approx(proportion, rel=0.02)


def test_the_headline_adds_up() -> None:
    assert headline(explanation(), ["gull", "tern"]) == (
        "gull (probability 75.00%)\nscore +0.500 = evidence +1.000, bias -0.500"
    )
    assert headline(explanation(against=1), ["gull", "tern"]) == (
        "gull (probability 75.00%) rather than tern (probability 25.00%)\n"
        "difference of scores +0.500 = evidence +1.000, bias -0.500"
    )


def test_patches_are_arranged_in_rows_by_channel() -> None:
    colours = torch.tensor([[[220, 30, 30], [30, 30, 220]], [[30, 30, 220], [220, 30, 30]]], dtype=torch.uint8)
    rows = [(f"channel {i}", [(c.view(3, 1, 1).expand(3, 9, 9), "1.0") for c in row]) for i, row in enumerate(colours)]
    shown = picture(draw_patches(rows))
    red, blue = coloured(shown)
    height, width = shown.shape[:2]
    for found, on_diagonal in ((red, True), (blue, False)):
        same = (found[:, 0] < height / 2) == (found[:, 1] < (found[:, 1].min() + found[:, 1].max()) / 2)
        assert len(found) > 1000 and same.all() == on_diagonal and same.any() == on_diagonal
    assert width > height


def test_names_of_patch_rows_are_not_cut() -> None:
    patch = torch.full((3, 9, 9), 200, dtype=torch.uint8)
    for patches in (1, 9):
        shown = picture(
            draw_patches([("channel 12345\nmean |share| 0.123\nmean share +0.123", [(patch, "1")] * patches)])
        )
        dark = np.argwhere(shown.max(axis=2) < 100)
        assert dark[:, 1].min() >= 8 and dark[:, 0].min() >= 8  # white left of the letters, and above


def test_evidence_is_red_for_the_class_and_grey_without_evidence(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    network = build(backbone=SMALL, classes=["gull", "tern"])
    picture = torch.full((3, 40, 40), 120, dtype=torch.uint8)
    evidence = torch.zeros(40, 40, dtype=torch.float64)
    evidence[:10], evidence[-10:] = 2.0, -1.0

    class Found:
        def map(self, side: int) -> Tensor:
            assert side == 40
            return evidence

    def watch(_: Network, images: Tensor, targets: list[list[int]]) -> Iterator[Found]:
        assert images.shape == (1, 3, 32, 32) and targets == [[1, 0]]  # the size on which the network is trained
        return iter([Found(), Found()])  # each class once

    monkeypatch.setattr("cxlp.reports.overlays.explain", watch)
    ((drawn, absent, _),) = draw_evidence(network, picture[None], [[(1, 1), (1, -1), (0, 1)]])
    assert drawn.shape == picture.shape and drawn.dtype == torch.uint8
    assert torch.equal(drawn[:, 10:30], picture[:, 10:30])
    red, _, blue = drawn.float()
    assert (red[:10] > blue[:10] + 30).all() and (blue[-10:] > red[-10:] + 30).all()
    # Evidence against the class is evidence for its absence.
    red, _, blue = absent.float()
    assert (blue[:10] > red[:10] + 30).all() and (red[-10:] > blue[-10:] + 30).all()
    changed = (drawn.float() - picture.float()).norm(dim=0)
    assert changed[:10].min() > 1.2 * changed[-10:].max()  # twice the evidence
