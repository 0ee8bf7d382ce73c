"""Count sketch: values compared with naive loops and FFTs, expectation and gradient."""

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck

from cxlp.heads.count_sketch import CountSketch
from cxlp.utils.errors import CxlpError


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("dim", [1, 7, 20, 30])
def test_values_equal_a_naive_loop(dim: int) -> None:
    x, sketch = random(2, 5, 6), CountSketch(5, 6, dim)
    expected = np.zeros((2, dim))
    for k in range(5):
        for j in range(6):
            place = (int(sketch.row_bins[k]) + int(sketch.column_bins[j])) % dim
            sign = int(sketch.row_signs[k]) * int(sketch.column_signs[j])
            expected[:, place] += sign * x[:, k, j].numpy()
    np.testing.assert_allclose(sketch(x), expected, atol=1e-12)


def test_the_sketch_equals_the_fft_tensor_sketch_summed_over_places() -> None:
    guide, local = random(2, 9, 5), random(2, 9, 6, seed=1)  # (B, N, K), (B, N, p)
    sketch = CountSketch(5, 6, 16)

    def count_sketch(x: Tensor, bins: Tensor, signs: Tensor) -> Tensor:
        matrix = torch.zeros(x.shape[2], 16, dtype=x.dtype)
        matrix[torch.arange(x.shape[2]), bins] = signs.to(x.dtype)
        return x @ matrix

    a = count_sketch(guide, sketch.row_bins, sketch.row_signs)
    b = count_sketch(local, sketch.column_bins, sketch.column_signs)
    by_fft = torch.fft.irfft(torch.fft.rfft(a) * torch.fft.rfft(b), n=16).sum(dim=1)
    torch.testing.assert_close(sketch(guide.transpose(1, 2) @ local), by_fft)


def test_inner_products_are_unbiased_and_improve_with_the_length() -> None:
    x = random(2, 5, 6)
    exact = float((x[0] * x[1]).sum())
    size = float(x[0].norm() * x[1].norm())
    spreads = []
    for dim in (4, 24):
        found = [float(a @ b) for a, b in (CountSketch(5, 6, dim, seed)(x) for seed in range(600))]
        spreads.append(float(np.std(found)))
        assert abs(np.mean(found) - exact) < 4 * spreads[-1] / 600**0.5  # four standard errors
        assert abs(np.mean(found) - exact) < 0.1 * size
    assert spreads[1] < 0.6 * spreads[0]  # proportional to 1 / sqrt(D): 0.41


def test_gradcheck() -> None:
    assert gradcheck(CountSketch(3, 4, 5), (random(2, 3, 4).requires_grad_(),))


def test_hashes_travel_with_the_weights_and_are_always_the_same() -> None:
    one, other = CountSketch(3, 4, 5), CountSketch(3, 4, 5, seed=1)
    x = random(2, 3, 4)
    assert torch.equal(CountSketch(3, 4, 5)(x), one(x))
    assert not torch.equal(other(x), one(x))
    other.load_state_dict(one.state_dict())
    assert torch.equal(other(x), one(x))


def test_an_empty_batch_has_an_empty_sketch() -> None:
    assert CountSketch(3, 4, 5)(torch.empty(0, 3, 4)).shape == (0, 5)


@pytest.mark.parametrize("dim", [0, -3, 13])
def test_an_invalid_length_is_refused(dim: int) -> None:
    with pytest.raises(CxlpError, match=rf"^sketch is {dim}, but there are 3 x 4 .*choose 1 to 12, or null"):
        CountSketch(3, 4, dim)
