"""Classifiers by fold: each image is scored by those that were fitted without it."""

import torch

from cxlp.frozen.folds import FoldClassifiers


def test_each_image_is_scored_by_its_own_fold() -> None:
    torch.manual_seed(0)
    folds, classes, dim = 3, 4, 7
    classifiers = FoldClassifiers(
        torch.randn(folds, classes, dim), torch.randn(folds, classes), torch.tensor([2, 0, 1, 1, 0, 2, 2, 0])
    )
    positions, features = torch.tensor([5, 1, 2, 0]), torch.randn(4, dim, dtype=torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16):  # scores have full precision nevertheless
        scores = classifiers(features, positions)
    for row, position in enumerate(positions.tolist()):
        fold = int(classifiers.fold[position])
        expected = classifiers.weight[fold] @ features[row].float() + classifiers.bias[fold]
        torch.testing.assert_close(scores[row], expected)
    assert scores.dtype == torch.float32


def test_classifiers_of_folds_move_between_devices() -> None:
    classifiers = FoldClassifiers(torch.zeros(2, 3, 4), torch.zeros(2, 3), torch.zeros(5, dtype=torch.int64))
    moved = classifiers.to(torch.device("meta"))
    assert {t.device.type for t in vars(moved).values()} == {"meta"}
    assert {t.device.type for t in vars(classifiers).values()} == {"cpu"}
