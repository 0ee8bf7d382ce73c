"""The operator: values compared with naive loops, gradients, precisions and errors."""

from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.autograd import gradcheck

from cxlp.heads.operator import Align, Padding, align_maps, cross_layer_pooling, sub_arrays
from cxlp.utils.errors import CxlpError


def maps(batch: int = 2, c: int = 5, k: int = 3, h: int = 7, w: int = 6, **kwargs: Any) -> tuple[Tensor, Tensor]:
    """Return two random maps of one size, with negative values, the same in each call."""
    generator = torch.Generator().manual_seed(0)
    kwargs = {"dtype": torch.float64, **kwargs}
    return (
        torch.randn(batch, c, h, w, generator=generator, **kwargs),
        torch.randn(batch, k, h, w, generator=generator, **kwargs),
    )


def naive(
    local: Tensor, guide: Tensor, weight: Tensor | None, bias: Tensor | None, size: int, stride: int, padding: str
) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Compute the formula place by place: P_k = sum_i a_ik (W x_i + b)."""
    x, a = local.numpy(), guide.numpy()
    (batch, c, h, w), k, r = x.shape, a.shape[1], size // 2
    low, high_h, high_w = (r, h - r, w - r) if padding == "valid" else (0, h, w)
    bordered = np.zeros((batch, c, h + 2 * r, w + 2 * r))
    bordered[:, :, r : r + h, r : r + w] = x
    p = c * size * size if weight is None else weight.shape[0]
    pooled = np.zeros((batch, k, p))
    for b in range(batch):
        for i in range(low, high_h, stride):
            for j in range(low, high_w, stride):
                feature = bordered[b, :, i : i + size, j : j + size].reshape(-1)
                if weight is not None:
                    feature = weight.numpy().reshape(p, -1) @ feature
                if bias is not None:
                    feature = feature + bias.numpy()
                for channel in range(k):
                    pooled[b, channel] += a[b, channel, i, j] * feature
    return pooled


@pytest.mark.parametrize("projected", ["no", "weight", "weight and bias"])
@pytest.mark.parametrize("size", [1, 3])
def test_values_equal_a_naive_loop(size: int, projected: str) -> None:
    weight = None if projected == "no" else torch.randn(4, 5, size, size, dtype=torch.float64)
    bias = torch.randn(4, dtype=torch.float64) if "bias" in projected else None
    paddings: tuple[Padding, ...] = ("valid", "same")
    for padding, stride, (h, w) in product(paddings, (1, 2, 3), ((7, 7), (8, 6), (5, 8))):
        local, guide = maps(h=h, w=w)
        pooled = cross_layer_pooling(local, guide, weight, bias, size=size, stride=stride, padding=padding)
        expected = naive(local, guide, weight, bias, size, stride, padding)
        assert pooled.shape == expected.shape
        np.testing.assert_allclose(pooled.numpy(), expected, rtol=1e-12, atol=1e-12)


@settings(max_examples=60, deadline=None)
@given(
    size=st.sampled_from([1, 3, 5]),
    stride=st.integers(1, 4),
    padding=st.sampled_from(["valid", "same"]),
    h=st.integers(1, 9),
    w=st.integers(1, 9),
    c=st.integers(1, 3),
    k=st.integers(1, 3),
    project=st.booleans(),
)
def test_any_geometry_equals_a_naive_loop_or_is_refused(
    size: int, stride: int, padding: Padding, h: int, w: int, c: int, k: int, project: bool
) -> None:
    local, guide = maps(1, c, k, h, w)
    weight = torch.linspace(-1, 1, 2 * c * size * size, dtype=torch.float64).view(2, c, size, size) if project else None
    if padding == "valid" and min(h, w) < size:
        with pytest.raises(CxlpError, match="too small"):
            cross_layer_pooling(local, guide, weight, size=size, stride=stride, padding=padding)
        return
    pooled = cross_layer_pooling(local, guide, weight, size=size, stride=stride, padding=padding)
    expected = naive(local, guide, weight, None, size, stride, padding)
    np.testing.assert_allclose(pooled.numpy(), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("size", [1, 3])
def test_pca_of_sub_arrays_is_one_convolution(size: int) -> None:
    # The fit by NumPy: centre, eigenvectors of the covariance, project; then W = basis, b = -basis @ mean.
    local, guide = maps(batch=6)
    features = sub_arrays(local, size).numpy()  # (B, N, d)
    flat = features.reshape(-1, features.shape[-1])
    mean = flat.mean(0)
    basis = np.linalg.eigh(np.cov(flat.T))[1][:, ::-1][:, :4].T  # (p, d), the largest eigenvalue first
    reduced = (features - mean) @ basis.T  # (B, N, p)
    r = size // 2
    centres = guide.numpy()[:, :, r : 7 - r, r : 6 - r].reshape(6, 3, -1)
    weight = torch.from_numpy(basis.copy()).view(4, 5, size, size)
    bias = torch.from_numpy(-basis @ mean)
    np.testing.assert_allclose(cross_layer_pooling(local, guide, weight, bias).numpy(), centres @ reduced, atol=1e-11)


def test_sub_arrays_are_row_major_and_ordered_as_a_convolution_weight() -> None:
    local, _ = maps()
    cut = sub_arrays(local, 3)
    assert cut.shape == (2, 5 * 4, 5 * 9)
    assert torch.equal(cut[1, 6], local[1, :, 1:4, 2:5].reshape(-1))  # place 6 in rows of length 4: row 1, column 2
    assert sub_arrays(local, 3, stride=2, padding="same").shape == (2, 4 * 3, 45)


@pytest.mark.parametrize("size", [1, 3])
def test_the_guide_looks_at_the_centre(size: int) -> None:
    local, guide = maps(batch=1)
    guide = torch.zeros_like(guide)
    guide[0, 1, 3, 2] = 2.0
    pooled = cross_layer_pooling(local, guide, size=size)
    r = size // 2
    assert torch.equal(pooled[0, 1], 2 * local[0, :, 3 - r : 4 + r, 2 - r : 3 + r].reshape(-1))
    assert not pooled[0, [0, 2]].any()


def test_pooling_is_linear_in_each_map() -> None:
    local, guide = maps()
    once = cross_layer_pooling(local, guide, size=3)
    torch.testing.assert_close(cross_layer_pooling(2 * local, -3 * guide, size=3), -6 * once)


def test_channels_last_gives_the_same_values() -> None:
    local, guide = maps()
    weight = torch.randn(4, 5, 3, 3, dtype=torch.float64)
    x, a = (t.contiguous(memory_format=torch.channels_last) for t in (local, guide))
    torch.testing.assert_close(cross_layer_pooling(x, a, weight), cross_layer_pooling(local, guide, weight))
    torch.testing.assert_close(cross_layer_pooling(x, a, size=3), cross_layer_pooling(local, guide, size=3))


def test_strict_names_both_sizes_and_the_remedy() -> None:
    local, guide = torch.zeros(1, 2, 14, 12), torch.zeros(1, 3, 7, 6)
    with pytest.raises(CxlpError, match=r"14x12 and 7x6.*align to to_local or to_guide"):
        cross_layer_pooling(local, guide)


def test_to_guide_averages_areas_where_the_local_map_shrinks() -> None:
    local, guide = maps(h=8, w=6)
    guide = guide[..., :4, :3]
    shrunk, same = align_maps(local, guide, "to_guide")
    expected = local.numpy().reshape(2, 5, 4, 2, 3, 2).mean((3, 5))
    assert same is guide
    np.testing.assert_allclose(shrunk.numpy(), expected, atol=1e-15)
    pooled = cross_layer_pooling(local, guide, align="to_guide")
    np.testing.assert_allclose(pooled, naive(shrunk, guide, None, None, 1, 1, "valid"), atol=1e-12)


def test_to_local_interpolates_where_the_guide_grows() -> None:
    local, _ = maps(h=4, w=4)
    ramp = torch.tensor([0.0, 4.0], dtype=torch.float64).expand(2, 3, 2, 2)  # 0 at the left cell, 4 at the right cell
    same, grown = align_maps(local, ramp, "to_local")
    assert same is local
    # Cell centres of the fine grid are at -1/4, 1/4, 3/4 and 5/4 of the coarse one; the border is replicated.
    assert grown[0, 0].tolist() == [[0.0, 1.0, 3.0, 4.0]] * 4
    torch.testing.assert_close(cross_layer_pooling(local, ramp, align="to_local"), cross_layer_pooling(local, grown))


def test_a_map_that_shrinks_one_way_and_grows_the_other_does_both_well() -> None:
    local = torch.arange(8.0).view(1, 1, 8, 1).expand(1, 1, 8, 2)
    shaped, _ = align_maps(local, torch.zeros(1, 1, 2, 4), "to_guide")
    # Bilinear sampling without a low-pass filter would read only four of the eight rows.
    assert shaped[0, 0].tolist() == [[1.5] * 4, [5.5] * 4]


@pytest.mark.parametrize("rule", ["strict", "to_local", "to_guide"])
def test_equal_sizes_are_not_resampled(rule: Align) -> None:
    local, guide = maps()
    aligned = align_maps(local, guide, rule)
    assert aligned[0] is local and aligned[1] is guide


@pytest.mark.parametrize("side", [4, 7])
def test_an_unknown_rule_is_refused_for_any_sizes(side: int) -> None:
    with pytest.raises(CxlpError, match=r"'stretch'.*strict, to_local, to_guide"):
        align_maps(torch.zeros(1, 1, 7, 7), torch.zeros(1, 1, side, side), "stretch")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"local": torch.zeros(2, 5, 7)}, r"^local .*\(2, 5, 7\).*\(B, C, H, W\)"),
        ({"guide": torch.zeros(5)}, r"^guide .*\(5,\)"),
        ({"guide": torch.zeros(3, 3, 7, 7)}, "local has 2 images.*guide has 3"),
        ({"size": 2}, "size is 2.*odd"),
        ({"size": 0}, "size is 0"),
        ({"size": 9}, "7x7: too small for a whole 9x9 .*same"),
        ({"stride": 0}, "stride is 0"),
        ({"padding": "full"}, "'full'; valid: valid, same"),
        ({"weight": torch.zeros(4, 6, 3, 3)}, r"weight has 6 channels.*local map has 5\b"),
        ({"weight": torch.zeros(4, 5, 2, 2)}, "size is 2.*odd"),
        ({"weight": torch.zeros(4, 5, 9, 9)}, "too small"),
    ],
)
def test_errors_name_the_cause(change: dict[str, Any], message: str) -> None:
    given: dict[str, Any] = {"local": torch.zeros(2, 5, 7, 7), "guide": torch.zeros(2, 3, 7, 7), **change}
    with pytest.raises(CxlpError, match=message):
        cross_layer_pooling(given.pop("local"), given.pop("guide"), given.pop("weight", None), **given)


@pytest.mark.parametrize("projected", [False, True])
@pytest.mark.parametrize(
    "geometry",
    [{}, {"size": 3}, {"size": 3, "padding": "same", "stride": 2}, {"align": "to_local"}, {"align": "to_guide"}],
)
def test_gradcheck_of_pooling(projected: bool, geometry: dict[str, Any]) -> None:
    local, guide = maps(1, 2, 2, 4, 3)
    if "align" in geometry:
        guide = guide[..., :3, :2].contiguous()
    size = geometry.get("size", 1)
    weight = torch.randn(2, 2, size, size, dtype=torch.float64, requires_grad=True) if projected else None
    bias = torch.randn(2, dtype=torch.float64, requires_grad=True) if projected else None
    inputs = [t for t in (local.requires_grad_(), guide.requires_grad_(), weight, bias) if t is not None]
    assert gradcheck(lambda *args: cross_layer_pooling(*args, **geometry), inputs)


def test_sums_in_half_precision_would_lose_digits() -> None:
    # 65536 = 256 x 256 overflows float16, in which the maps are exact.
    ones = torch.full((1, 1, 16, 16), 16.0, dtype=torch.float16)
    assert cross_layer_pooling(ones, ones).item() == 65536
