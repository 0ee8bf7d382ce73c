"""Both kinds of labels: targets, strata and losses."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.special import expit

from cxlp.utils.labels import as_targets, classification_loss, strata

TAGS = torch.tensor([[1, -1, -1], [1, 1, 0], [1, 1, -1], [-1, -1, -1], [0, 0, 1]])


def test_targets_are_one_row_per_class() -> None:
    targets = as_targets(torch.tensor([0, 2, 1]), 3)
    assert targets.tolist() == [[1, -1, -1], [-1, -1, 1], [-1, 1, -1]]
    assert targets.dtype == torch.int8
    assert as_targets(TAGS, 3).tolist() == TAGS.T.tolist()
    assert as_targets(TAGS, 3).dtype == torch.int8


def test_strata_are_the_rarest_class_present() -> None:
    labels = torch.tensor([2, 0, 1])
    assert strata(labels) is labels
    # images by class: 6, 4, 2; two images have none
    twice = torch.cat([TAGS, TAGS])
    assert strata(twice).tolist() == [0, 1, 1, 3, 2] * 2
    assert strata(twice, parts=3).tolist() == [1] * 10  # a group of two cannot have an image in each of three parts
    # alone in its group, so it is merged with the largest group
    assert strata(TAGS).tolist() == [1, 1, 1, 1, 1]


def test_one_label_per_image_is_the_softmax_cross_entropy() -> None:
    scores, labels = torch.randn(5, 3), torch.tensor([0, 2, 1, 1, 0])
    torch.testing.assert_close(classification_loss(scores, labels), F.cross_entropy(scores, labels))
    smooth = classification_loss(scores, labels, 0.3)
    torch.testing.assert_close(smooth, F.cross_entropy(scores, labels, label_smoothing=0.3))


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_several_labels_are_sigmoids_of_what_is_specified(smoothing: float) -> None:
    scores = torch.randn(5, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    total = 0.0
    for s, y in zip(scores.flatten().tolist(), TAGS.flatten().tolist(), strict=True):
        if y:
            p = (1 - smoothing) * (y > 0) + smoothing / 2
            total -= p * np.log(expit(s)) + (1 - p) * np.log(expit(-s))
    assert float(classification_loss(scores, TAGS, smoothing)) == pytest.approx(total / 15)


def test_the_mean_of_two_ranks_is_the_loss_of_both_batches() -> None:
    scores = torch.randn(4, 3)
    whole = classification_loss(scores, TAGS[1:])  # the halves have different numbers of unspecified entries
    halves = classification_loss(scores[:2], TAGS[1:3]), classification_loss(scores[2:], TAGS[3:])
    torch.testing.assert_close(whole, (halves[0] + halves[1]) / 2)


def test_unspecified_labels_have_no_gradient() -> None:
    scores = torch.randn(5, 3, requires_grad=True)
    classification_loss(scores, TAGS).backward()  # type: ignore[no-untyped-call]
    assert scores.grad is not None
    assert torch.equal(scores.grad == 0, TAGS == 0)
