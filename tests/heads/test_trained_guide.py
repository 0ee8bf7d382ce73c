"""The trained guide: its formula, its training, and its remaining state."""

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from torch import Tensor

from cxlp.heads.trained_guide import TrainedGuidePooling
from cxlp.utils.errors import CxlpError


@torch.no_grad()
def test_values_equal_the_formula() -> None:
    torch.manual_seed(0)
    head = TrainedGuidePooling(5, 4).connect((8, 2, 3)).double()
    head.unit.fill_(3.0)
    maps = torch.rand(2, 8, 2, 3, dtype=torch.float64)
    assert head.projection is not None
    x = head.projection(maps).flatten(2).transpose(1, 2).numpy()  # (2, 6, 5)
    w, c = head.guide.weight.numpy(), head.guide.bias.numpy()
    a = np.maximum(x / 3 @ w.T + c, 0)
    pooled = np.einsum("bnk,bnp->bkp", a, x).reshape(2, -1)
    expected = np.sign(pooled) * np.sqrt(np.abs(pooled))
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    np.testing.assert_allclose(head(maps), expected, atol=1e-4)
    together = head(maps, views=2)
    joined = head(torch.cat([maps[0], maps[1]], dim=2)[None])
    torch.testing.assert_close(together, joined)


def two_kinds(n: int = 80) -> tuple[Tensor, Tensor]:
    """Return images of 9 places, only one of which depends on the class."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(n, 9, 6, generator=generator)
    labels = torch.arange(n) % 2
    x[torch.arange(n), torch.randint(0, 9, (n,), generator=generator), labels] += 12.0
    return x, labels


def test_it_learns_to_distinguish_the_classes() -> None:
    x, labels = two_kinds()

    def batches() -> Iterator[tuple[Tensor, Tensor]]:
        yield from zip(x.split(16), labels.split(16), strict=True)  # type: ignore[no-untyped-call]

    head = TrainedGuidePooling(6, 8).connect((6, 3, 3))
    with torch.no_grad():  # as in the fit
        head.learn(batches, classes=2)
    assert float(head.unit) == pytest.approx(float(x.square().sum(2).mean().sqrt()), rel=1e-5)
    with torch.no_grad():
        a = head.activations(x).mean(1)  # (n, K)
    gap = (a[labels == 0].mean(0) - a[labels == 1].mean(0)).abs() / a.std(0)
    assert gap.max() > 1.5  # some channel responds to one of them
    assert all(p.grad is None for p in head.parameters())


def test_a_rank_without_images_is_supported() -> None:
    x, labels = two_kinds(4)
    head = TrainedGuidePooling(6, 3).connect((6, 3, 3))
    head.learn(lambda: [(x, labels), (x[:0], labels[:0])], classes=2, epochs=2)
    assert all(p.isfinite().all() for p in head.parameters())


def test_invalid_options_are_refused() -> None:
    with pytest.raises(CxlpError, match="pca_dim is 9, but the layer has 8 channels"):
        TrainedGuidePooling(9).connect((8, 2, 3))
    with pytest.raises(CxlpError, match="channels is 0"):
        TrainedGuidePooling(4, 0)
