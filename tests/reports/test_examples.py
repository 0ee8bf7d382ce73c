"""The worst mistakes and some right predictions: their choice for any batches and ranks, and their thumbnails."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

import cxlp.reports.examples
from cxlp.data.dataset import ImageDataset, Sample
from cxlp.data.decode import Box
from cxlp.data.transforms import Aspect, AugmentConfig, Transform
from cxlp.models.network import Network
from cxlp.reports.examples import (
    GAP,
    HEIGHT,
    MISTAKES,
    RIGHT,
    WIDTH,
    Example,
    Examples,
    example_table,
    write_thumbnails,
)
from cxlp.reports.outputs import Outputs
from cxlp.reports.overlays import Statement
from tests.generate import write_image
from tests.networks import SMALL, build


def many() -> tuple[Tensor, Tensor]:
    """Return scores of 300 images of 20 classes, half of them right, and labels."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(20, (300,), generator=generator)
    scores = torch.randn(300, 20, generator=generator)
    scores[torch.arange(300), labels] += 1.8
    return scores, labels


def collected(scores: Tensor, labels: Tensor, *parts: Tensor) -> Examples:
    found = Examples()
    for part in parts:
        found.update(scores[part], labels[part], part)
    return found


def test_mistakes_are_those_of_least_probable_truth() -> None:
    scores, labels = many()
    mistakes, right = collected(scores, labels, torch.arange(300)).gather()
    probabilities = scores.softmax(dim=1)
    of_truth = probabilities[torch.arange(300), labels]
    wrong = [i for i in of_truth.argsort().tolist() if int(scores[i].argmax()) != labels[i]]
    assert [e.position for e in mistakes] == wrong[:MISTAKES]
    for e in mistakes:
        assert (e.true, e.answered) == (int(labels[e.position]), int(scores[e.position].argmax()))
        assert e.probability == pytest.approx(float(probabilities[e.position].max()))
        assert e.loss == pytest.approx(-float(of_truth[e.position].log()), rel=1e-5)
        assert e.truth == pytest.approx(float(of_truth[e.position]), rel=1e-5)
        assert e.statements == [(e.answered, 1), (e.true, 1)]
    shown = [e.truth for e in mistakes]
    assert shown == sorted(shown)  # in the order of the table
    assert len(right) == RIGHT and len({e.answered for e in right}) == RIGHT  # of different classes
    assert all(e.true == e.answered == e.shown and e.truth == pytest.approx(e.probability) for e in right)
    surest = max(i for i in range(300) if int(scores[i].argmax()) == labels[i] and of_truth[i] == max(
        of_truth[j] for j in range(300) if int(scores[j].argmax()) == labels[j]
    ))  # fmt: skip
    assert right[0].position == surest


def test_examples_do_not_depend_on_batches_or_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    scores, labels = many()
    scores[5], labels[5] = scores[6], labels[6]  # ties
    whole = collected(scores, labels, torch.arange(300)).gather()
    assert collected(scores, labels, *torch.arange(300).flip(0).chunk(7)).gather() == whole
    ranks = [collected(scores, labels, *torch.arange(300)[r::3].chunk(25)) for r in range(3)]
    everywhere = [(list(rank.mistakes), dict(rank.right)) for rank in ranks]
    monkeypatch.setattr(cxlp.reports.examples, "gather_objects", lambda mine: everywhere)
    assert [rank.gather() for rank in ranks] == [whole] * 3


def test_several_labels_are_separate_predictions_without_unspecified_ones() -> None:
    scores = torch.tensor([[3.0, -1.0, 9.0], [-2.0, 4.0, -9.0]])
    labels = torch.tensor([[-1, 1, 0], [1, 1, 0]])
    mistakes, right = collected(scores, labels, torch.tensor([0, 1])).gather()
    classes = ["car", "dog", "cow"]
    assert [(e.position, *e.names(classes)) for e in mistakes] == [
        (0, "no car", "car"), (1, "car", "no car"), (0, "dog", "no dog"),
    ]  # fmt: skip
    assert [e.probability for e in mistakes] == pytest.approx(torch.tensor([3.0, 2.0, 1.0]).sigmoid().tolist())
    assert [e.truth + e.probability for e in mistakes] == pytest.approx([1.0] * 3)
    # Prediction and truth for one class: present or absent.
    assert [e.statements for e in mistakes] == [[(0, 1), (0, -1)], [(0, -1), (0, 1)], [(1, -1), (1, 1)]]
    assert [e.statements for e in right] == [[(1, 1)]]
    assert [(e.position, *e.names(classes)) for e in right] == [
        (1, "dog", "dog")
    ]  # right predictions of absent classes are not shown


def test_thumbnails_show_the_image_and_the_evidence_for_both_classes(tmp_path: Path) -> None:
    grey = write_image(tmp_path / "a.png", np.full((64, 96, 3), 100, dtype=np.uint8))
    data = ImageDataset([Sample(grey, 1)], ["gull", "tern", "wren"], Transform(32, "warp", AugmentConfig()))
    mistake = Example(2.0, 0, shown=2, true=1, answered=2, probability=0.8)
    right = Example(0.125, 0, shown=1, true=1, answered=1, probability=0.9)
    asked: list[list[Statement]] = []

    def overlay(network: Network, pictures: Tensor, statements: Sequence[Sequence[Statement]]) -> list[list[Tensor]]:
        assert pictures.shape[1:] == (3, 32, 32) and pictures.dtype == torch.uint8
        asked.extend(map(list, statements))
        return [
            [torch.full_like(picture, 50 * k) for k, _ in own]
            for picture, own in zip(pictures, statements, strict=True)
        ]

    outputs = Outputs()
    write_thumbnails(tmp_path, build(backbone=SMALL), data, [mistake], [right], outputs, overlay)
    columns, rows = example_table(data, [mistake], [right])
    assert asked == [[(2, 1), (1, 1)], [(1, 1)]]  # the prediction, then the truth if it differs
    assert [row[0] for row in rows] == ["mistake-01.jpg", "right-01.jpg"]
    strip = np.asarray(Image.open(tmp_path / "examples" / "mistake-01.jpg")).astype(int)
    assert strip.shape == (124, 3 * WIDTH + 2 * GAP, 3)  # 2 : 3, like the photo
    assert [strip[60, WIDTH // 2 + k * (WIDTH + GAP)].mean() for k in range(3)] == pytest.approx([100, 100, 50], abs=3)
    assert dict(zip(columns, rows[0], strict=True)) == {
        "picture": "mistake-01.jpg", "kind": "mistake", "true": "tern", "true probability": 0.1353, "answered": "wren",
        "answered probability": 0.8, "image": str(grey),
    }  # fmt: skip
    write_thumbnails(tmp_path, build(backbone=SMALL), data, [mistake], [], outputs)
    assert outputs.failed == []
    (plain,) = (tmp_path / "examples").iterdir()  # files of the earlier test are deleted
    assert Image.open(plain).size == (WIDTH, 124)


@pytest.mark.parametrize(
    ("shape", "box", "aspect", "size"),
    [
        ((90, 30), None, "warp", (round(HEIGHT / 3), HEIGHT)),
        ((30, 90), None, "crop", (HEIGHT, HEIGHT)),  # the network's input is square
        ((90, 90), (10, 10, 60, 30), "warp", (WIDTH, WIDTH // 2)),  # the shape of its box
    ],
)
def test_thumbnails_keep_the_aspect_ratio(
    tmp_path: Path, shape: tuple[int, int], box: Box | None, aspect: Aspect, size: tuple[int, int]
) -> None:
    photo = write_image(tmp_path / "a.png", np.zeros((*shape, 3), dtype=np.uint8))
    data = ImageDataset([Sample(photo, 0, box)], ["gull"], Transform(32, aspect, AugmentConfig()))
    outputs = Outputs()
    right = Example(0.1, 0, shown=0, true=0, answered=0, probability=0.9)
    write_thumbnails(tmp_path, build(backbone=SMALL), data, [], [right], outputs)
    assert outputs.failed == [] and Image.open(tmp_path / "examples" / "right-01.jpg").size == size


def test_nan_scores_are_the_worst_mistakes() -> None:
    scores, labels = torch.zeros(4, 3), torch.tensor([0, 1, 1, 2])
    scores[1, 1], scores[2, 0] = 5.0, 9.0
    scores[3] = torch.nan
    for positions in (torch.arange(4), torch.tensor([3, 2, 1, 0])):
        mistakes, _ = collected(scores, labels, *positions.chunk(4)).gather()
        assert [e.position for e in mistakes] == [3, 2]
    mistakes, _ = collected(scores, torch.tensor([[1, -1, 0]] * 4), torch.arange(4)).gather()
    assert mistakes[0].position == 3
