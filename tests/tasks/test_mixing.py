"""Mixed images and targets: the formulas, and draws that depend only on the seed."""

from typing import Literal

import pytest
import torch

from cxlp.tasks.mixing import Mixing
from cxlp.utils.labels import classification_loss

KINDS = ("mixup", "cutmix")
IMAGES = torch.randint(0, 256, (4, 3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
SHARES = IMAGES.float() / 255  # values from 0 to 1, like mixtures
LABELS = torch.tensor([0, 1, 2, 1])


@pytest.mark.parametrize("kind", KINDS)
def test_targets_are_the_shares_of_the_images(kind: Literal["mixup", "cutmix"]) -> None:
    shares = set()
    for seed in range(10):
        images, targets = Mixing(kind, 1.0, 3)(IMAGES, LABELS, seed)
        assert images.dtype == torch.float32 and targets.shape == (4, 3)
        torch.testing.assert_close(targets.sum(1), torch.ones(4))
        share = float(targets[0, 0])  # the first image is mixed with the last, of class 1
        before = SHARES.roll(1, 0)
        if kind == "mixup":
            expected = share * SHARES + (1 - share) * before
            torch.testing.assert_close(images, expected, rtol=1e-4, atol=1e-3 / 255)
        else:
            own = (images == SHARES).all(1)  # (4, 16, 16)
            assert torch.equal(images, torch.where(own[:, None], SHARES, before))
            assert float(own[0].float().mean()) == pytest.approx(share, abs=1e-6)
        shares.add(share)
        assert torch.equal(
            Mixing(kind, 1.0, 3)(SHARES, LABELS, seed)[0], images
        )  # the same mixture for bytes and floats
    assert len(shares) >= 8 and 0 <= min(shares) < 0.4 and 0.6 < max(shares) <= 1


@pytest.mark.parametrize("kind", KINDS)
def test_a_draw_depends_on_its_seed_only(kind: Literal["mixup", "cutmix"]) -> None:
    mixing = Mixing(kind, 1.0, 3)
    torch.manual_seed(5)
    first, _ = mixing(IMAGES, LABELS, 0, 2, 1)
    after = torch.rand(1)
    torch.manual_seed(5)
    assert torch.equal(after, torch.rand(1))  # the global generator is not advanced
    assert torch.equal(first, mixing(IMAGES, LABELS, 0, 2, 1)[0])
    assert not torch.equal(first, mixing(IMAGES, LABELS, 0, 2, 2)[0])


def test_the_loss_of_a_mixture_is_the_mixture_of_losses() -> None:
    scores = torch.randn(4, 3, generator=torch.Generator().manual_seed(0))
    _, targets = Mixing("mixup", 1.0, 3)(IMAGES, LABELS, 0)
    share = targets[0, 0]
    expected = share * classification_loss(scores, LABELS) + (1 - share) * classification_loss(scores, LABELS.roll(1))
    torch.testing.assert_close(classification_loss(scores, targets), expected)
