"""Classifiers by fold: each image by those that have not seen it."""

import torch

from cxlp.frozen.folds import FoldClassifiers


def test_each_image_is_scored_by_its_own_fold() -> None:
    torch.manual_seed(0)
    folds, classes, dim = 3, 4, 7
    crossed = FoldClassifiers(
        torch.randn(folds, classes, dim), torch.randn(folds, classes), torch.tensor([2, 0, 1, 1, 0, 2, 2, 0])
    )
    positions, features = torch.tensor([5, 1, 2, 0]), torch.randn(4, dim, dtype=torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16):  # scores are of full precision all the same
        scores = crossed(features, positions)
    for row, position in enumerate(positions.tolist()):
        fold = int(crossed.fold[position])
        expected = crossed.weight[fold] @ features[row].float() + crossed.bias[fold]
        torch.testing.assert_close(scores[row], expected)
    assert scores.dtype == torch.float32


def test_it_moves_as_a_whole() -> None:
    crossed = FoldClassifiers(torch.zeros(2, 3, 4), torch.zeros(2, 3), torch.zeros(5, dtype=torch.int64))
    moved = crossed.to(torch.device("meta"))
    assert {t.device.type for t in vars(moved).values()} == {"meta"}
    assert {t.device.type for t in vars(crossed).values()} == {"cpu"}
