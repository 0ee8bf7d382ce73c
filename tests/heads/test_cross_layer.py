"""The operator: its values against naive loops, its gradients, precisions, errors and modules."""

import os
import shutil
from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.autograd import gradcheck

from cxlp.heads.average import AveragePooling
from cxlp.heads.cross_layer import CrossLayerPooling
from cxlp.heads.normalisation import signed_sqrt
from cxlp.heads.operator import Align, Padding, align_maps, cross_layer_pooling, sub_arrays
from cxlp.utils.errors import CxlpError
from tests.heads.test_normalisation import SWITCHES, normalise


def maps(batch: int = 2, c: int = 5, k: int = 3, h: int = 7, w: int = 6, **kwargs: Any) -> tuple[Tensor, Tensor]:
    """Two random maps of one size, with negative values, the same in each call."""
    generator = torch.Generator().manual_seed(0)
    kwargs = {"dtype": torch.float64, **kwargs}
    return (
        torch.randn(batch, c, h, w, generator=generator, **kwargs),
        torch.randn(batch, k, h, w, generator=generator, **kwargs),
    )


def cross(
    c: int, k: int, pca_dim: int | None = None, *, guide: tuple[int, int] = (7, 6), **options: Any
) -> CrossLayerPooling:
    """A head for maps of 7 x 6, or a guide of another size."""
    return CrossLayerPooling(pca_dim, **options).connect((c, 7, 6), (k, *guide))


def average(**options: Any) -> AveragePooling:
    return AveragePooling(**options).connect((5, 7, 6))


def naive(
    local: Tensor, guide: Tensor, weight: Tensor | None, bias: Tensor | None, size: int, stride: int, padding: str
) -> np.ndarray[Any, np.dtype[np.float64]]:
    """The formula, place by place: P_k = sum_i a_ik (W x_i + b)."""
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
    # The fit by NumPy alone: centre, eigenvectors of the covariance, project; then W = basis, b = -basis @ mean.
    local, guide = maps(batch=6)
    features = sub_arrays(local, size).numpy()  # (B, N, d)
    flat = features.reshape(-1, features.shape[-1])
    mean = flat.mean(0)
    basis = np.linalg.eigh(np.cov(flat.T))[1][:, ::-1][:, :4].T  # (p, d), the largest first
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
    assert torch.equal(cut[1, 6], local[1, :, 1:4, 2:5].reshape(-1))  # place 6 of rows of 4: row 1, column 2
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


@pytest.mark.parametrize("batch", [0, 1, 3])
@pytest.mark.parametrize("align", ["strict", "to_local", "to_guide"])
@pytest.mark.parametrize("pca_dim", [None, 4])
def test_any_batch_size_even_an_empty_one(batch: int, align: Align, pca_dim: int | None) -> None:
    local, guide = maps(3)
    if align != "strict":
        guide = guide[..., :4, :4]
    pool = cross(5, 3, pca_dim, size=3, align=align, guide=(guide.shape[2], guide.shape[3])).double()
    whole, part = pool(local, guide), pool(local[:batch], guide[:batch])
    assert part.shape == (batch, pool.out_features)
    torch.testing.assert_close(part, whole[:batch])  # images do not influence one another


def test_channels_last_gives_the_same_values() -> None:
    local, guide = maps()
    weight = torch.randn(4, 5, 3, 3, dtype=torch.float64)
    x, a = (t.contiguous(memory_format=torch.channels_last) for t in (local, guide))
    torch.testing.assert_close(cross_layer_pooling(x, a, weight), cross_layer_pooling(local, guide, weight))
    torch.testing.assert_close(cross_layer_pooling(x, a, size=3), cross_layer_pooling(local, guide, size=3))


# --- maps of different sizes


def test_strict_refuses_and_names_both_sizes_and_the_way_out() -> None:
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
    ramp = torch.tensor([0.0, 4.0], dtype=torch.float64).expand(2, 3, 2, 2)  # 0 at the left cell, 4 at the right one
    same, grown = align_maps(local, ramp, "to_local")
    assert same is local
    # Cell centres of the fine grid lie at -1/4, 1/4, 3/4 and 5/4 of the coarse one; the border is held.
    assert grown[0, 0].tolist() == [[0.0, 1.0, 3.0, 4.0]] * 4
    torch.testing.assert_close(cross_layer_pooling(local, ramp, align="to_local"), cross_layer_pooling(local, grown))


def test_a_map_that_shrinks_one_way_and_grows_the_other_does_both_well() -> None:
    local = torch.arange(8.0).view(1, 1, 8, 1).expand(1, 1, 8, 2)
    shaped, _ = align_maps(local, torch.zeros(1, 1, 2, 4), "to_guide")
    # Bilinear sampling alone would look at four of the eight rows only.
    assert shaped[0, 0].tolist() == [[1.5] * 4, [5.5] * 4]


@pytest.mark.parametrize("rule", ["strict", "to_local", "to_guide"])
def test_equal_sizes_are_left_alone(rule: Align) -> None:
    local, guide = maps()
    aligned = align_maps(local, guide, rule)
    assert aligned[0] is local and aligned[1] is guide


@pytest.mark.parametrize("side", [4, 7])
def test_an_unknown_rule_is_refused_whatever_the_sizes(side: int) -> None:
    with pytest.raises(CxlpError, match=r"'stretch'.*strict, to_local, to_guide"):
        align_maps(torch.zeros(1, 1, 7, 7), torch.zeros(1, 1, side, side), "stretch")  # type: ignore[arg-type]


# --- errors


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"local": torch.zeros(2, 5, 7)}, r"local must be a map \(B, C, H, W\), not of shape \(2, 5, 7\)"),
        ({"guide": torch.zeros(5)}, r"guide must be a map .*\(5,\)"),
        ({"guide": torch.zeros(3, 3, 7, 7)}, "2 and 3 images"),
        ({"size": 2}, "size is 2.*odd"),
        ({"size": 0}, "size is 0"),
        ({"size": 9}, "7x7: too small for a whole 9x9 .*same"),
        ({"stride": 0}, "stride is 0"),
        ({"padding": "full"}, "'full'; valid: valid, same"),
        ({"weight": torch.zeros(4, 6, 3, 3)}, "expects 6 channels, the local map has 5"),
        ({"weight": torch.zeros(4, 5, 2, 2)}, "size is 2.*odd"),
        ({"weight": torch.zeros(4, 5, 9, 9)}, "too small"),
    ],
)
def test_errors_say_what_is_wrong(change: dict[str, Any], message: str) -> None:
    given: dict[str, Any] = {"local": torch.zeros(2, 5, 7, 7), "guide": torch.zeros(2, 3, 7, 7), **change}
    with pytest.raises(CxlpError, match=message):
        cross_layer_pooling(given.pop("local"), given.pop("guide"), given.pop("weight", None), **given)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"pca_dim": 46, "size": 3}, r"pca_dim is 46, .* 45 values \(5 channels x 3 x 3\): choose 1 to 45"),
        ({"pca_dim": 0}, "pca_dim is 0"),
        ({"size": 4}, "size is 4"),
        ({"stride": -1}, "stride is -1"),
        ({"padding": "SAME"}, "'SAME'"),
        ({"channels": 4}, "channels is 4, but the guide has 3: choose 1 to 3, or null"),
        ({"guide": (4, 3)}, "maps of 7x6 and 4x3: .*align to to_local or to_guide"),
        ({"size": 9}, "7x6: too small for a whole 9x9"),
        ({"sketch": 8, "spectral": True}, "spectral is true, but a sketch has no pooling channels.*spectral to false"),
        ({"sketch": 8, "channel_l2": True}, "channel_l2 is true, but a sketch has no pooling channels"),
        ({"guide_dim": 4}, "guide_dim is 4, but the guide has 3 channels: choose 1 to 3, or null"),
        ({"guide_dim": 0}, "guide_dim is 0"),
        ({"guide_dim": 2, "sketch": 11}, "sketch is 11, but there are 2 x 5 pooled features: choose 1 to 10"),
    ],
)
def test_the_head_refuses_what_does_not_fit(options: dict[str, Any], message: str) -> None:
    with pytest.raises(CxlpError, match=message):
        cross(5, 3, options.pop("pca_dim", None), **options)


# --- gradients


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


@pytest.mark.parametrize("switches", SWITCHES, ids=lambda s: "+".join(f"{k}={v}" for k, v in s.items()) or "default")
@pytest.mark.parametrize(("sign", "autocast"), list(product((False, True), repeat=2)))
def test_gradients_are_finite_where_everything_is_zero(switches: dict[str, bool], sign: bool, autocast: bool) -> None:
    pool = cross(5, 3, pca_dim=4, size=3, **{"sign": sign, **switches})  # type: ignore[arg-type]
    nn.init.zeros_(pool.projection.bias)  # type: ignore[union-attr, arg-type]
    local = torch.rand(2, 5, 7, 7)
    guide = torch.rand(2, 3, 7, 7)
    local[0], guide[0] = 0, 0  # one silent image
    guide[1, 2] = 0  # one silent pooling channel
    local.requires_grad_()
    guide.requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        vector = pool(local, guide)
        loss = (vector * torch.linspace(-1, 1, vector.shape[1])).sum()
    loss.backward()  # type: ignore[no-untyped-call]
    assert vector.isfinite().all()
    assert vector[1].any()
    for tensor in (local, guide, *pool.parameters()):
        assert tensor.grad is not None
        assert tensor.grad.isfinite().all()
    assert local.grad is not None and local.grad[1].any()


# --- precision


@pytest.mark.parametrize("projected", [False, True])
def test_autocast_is_switched_off_inside(projected: bool) -> None:
    # Offset inputs: their sums over 121 places need more than 8 bits of mantissa.
    local, guide = (t.bfloat16() + 1 for t in maps(h=11, w=11))
    pool = cross(5, 3, 4 if projected else None)
    expected = pool(local.float(), guide.float())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        for cast in (lambda t: t, Tensor.float):  # a backbone under autocast hands on bfloat16; others float32
            found = pool(cast(local), cast(guide))
            assert found.dtype == torch.float32
            assert torch.equal(found, expected)
        assert torch.mm(torch.ones(2, 2), torch.ones(2, 2)).dtype == torch.bfloat16  # autocast was on


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_inputs_are_computed_in_float32(dtype: torch.dtype) -> None:
    local, guide = maps(dtype=torch.float32)
    local, guide = local.to(dtype), guide.to(dtype)
    weight, bias = torch.randn(4, 5, 1, 1).to(dtype), torch.randn(4).to(dtype)
    found = cross_layer_pooling(local, guide, weight, bias)
    assert found.dtype == torch.float32
    assert torch.equal(found, cross_layer_pooling(local.float(), guide.float(), weight.float(), bias.float()))
    assert normalise(found.to(dtype)).dtype == torch.float32
    assert signed_sqrt(found.to(dtype)).dtype == torch.float32
    assert average()(local).dtype == torch.float32


def test_float64_stays_float64() -> None:
    local, guide = maps()
    assert cross(5, 3)(local, guide).dtype == torch.float64


def test_half_precision_would_have_lost_the_sum() -> None:
    # 65536 = 256 x 256 overflows float16, in which the maps themselves are exact.
    ones = torch.full((1, 1, 16, 16), 16.0, dtype=torch.float16)
    assert cross_layer_pooling(ones, ones).item() == 65536


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_cuda_agrees_with_the_processor(dtype: torch.dtype) -> None:
    local, guide = maps(h=13, w=13)
    pool = cross(5, 3, 4, size=3).double()
    expected = pool(local, guide)
    pool.cuda()
    torch.testing.assert_close(pool(local.cuda(), guide.cuda()).cpu(), expected)
    pool.float()
    with torch.autocast("cuda", dtype=dtype):
        found = pool(local.cuda().to(dtype), guide.cuda().to(dtype))
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.cpu().double(), expected, atol=2e-2, rtol=0)


# --- torch.compile


class Forms(nn.Module):
    """Several heads of one pair of maps: tracing them together starts the compiler once."""

    def __init__(self, *heads: CrossLayerPooling) -> None:
        super().__init__()
        self.heads = nn.ModuleList(heads)

    def forward(self, *maps: Tensor) -> Tensor:
        return torch.cat([head(*maps) for head in self.heads], dim=1)


def forms() -> Forms:
    return Forms(
        cross(5, 3),
        cross(5, 3, 4, size=3, zscore=True, channel_l2=True),
        cross(5, 3, 4, padding="same", stride=2, sign=True),
        cross(5, 3, 4, guide_dim=2, sketch=6),
    )


def compiles(pool: nn.Module, backend: str) -> None:
    torch._dynamo.reset()
    local, guide = maps(dtype=torch.float32)
    compiled = torch.compile(pool, fullgraph=True, backend=backend)
    inputs = [t.clone().requires_grad_() for t in (local, guide)]
    found = compiled(*inputs)
    torch.testing.assert_close(found, pool(local, guide))
    slopes = torch.linspace(-1, 1, found.shape[1])  # other ones for each head
    (found @ slopes).sum().backward()
    again = [t.clone().requires_grad_() for t in (local, guide)]
    (pool(*again) @ slopes).sum().backward()
    for one, other in zip(inputs, again, strict=True):
        torch.testing.assert_close(one.grad, other.grad, rtol=1e-4, atol=1e-5)


def test_compiles_into_one_graph() -> None:
    compiles(forms(), "aot_eager")


@pytest.mark.slow
def test_the_spectral_root_compiles_into_one_graph() -> None:
    compiles(cross(5, 3, 4, spectral=True), "aot_eager")  # its thirty steps take their time to trace


def test_compiles_into_one_graph_under_autocast() -> None:
    torch._dynamo.reset()
    pool, (local, guide) = cross(5, 3, 4), maps(dtype=torch.float32)
    compiled = torch.compile(pool, fullgraph=True, backend="eager")  # what differs is what is traced
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = compiled(local, guide)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, pool(local, guide))


@pytest.mark.slow
def test_compiles_with_the_default_backend() -> None:
    if shutil.which(os.environ.get("CXX", "c++")) is None:
        pytest.skip("torch.compile's default backend needs a C++ compiler")
    compiles(forms().heads[1], "inductor")


# --- modules


@pytest.mark.parametrize(("size", "pca_dim"), list(product((1, 3), (None, 4))))
def test_the_module_is_the_function_and_says_its_length(size: int, pca_dim: int | None) -> None:
    local, guide = maps(dtype=torch.float32)
    for padding, stride in product(("valid", "same"), (1, 2)):
        geometry: dict[str, Any] = {"size": size, "stride": stride, "padding": padding}
        pool = cross(5, 3, pca_dim, zscore=True, **geometry)
        weight, bias = (None, None) if pool.projection is None else (pool.projection.weight, pool.projection.bias)
        raw = cross_layer_pooling(local, guide, weight, bias, **geometry)
        assert torch.equal(pool.pool(local, guide), raw)
        assert torch.equal(pool(local, guide), normalise(raw, zscore=True))
        assert pool(local, guide).shape == (2, pool.out_features)
        assert pool.local_dim == 5 * size * size


def test_the_projection_used_alone_gives_the_local_features() -> None:
    # Frozen fitting reads local features off the convolution: it must cut them as the pooling does.
    local, guide = maps(dtype=torch.float32)
    pool = cross(5, 3, 4, size=3, stride=2, padding="same")
    assert pool.projection is not None
    features = pool.projection(local).flatten(2)
    torch.testing.assert_close(pool.pool(local, guide), guide[..., ::2, ::2].flatten(2) @ features.transpose(1, 2))


def test_the_state_dict_holds_the_projection_and_nothing_else() -> None:
    assert not cross(5, 3).state_dict()
    one, other = cross(5, 3, 4, size=3), cross(5, 3, 4, size=3)
    assert {k: tuple(v.shape) for k, v in one.state_dict().items()} == {
        "projection.weight": (4, 5, 3, 3),
        "projection.bias": (4,),
    }
    other.load_state_dict(one.state_dict())
    local, guide = maps(dtype=torch.float32)
    assert torch.equal(one(local, guide), other(local, guide))


@pytest.mark.parametrize("align", ["to_local", "to_guide"])
def test_a_projected_guide_pools_the_projected_rows(align: Align) -> None:
    local, _ = maps()
    _, guide = maps(k=4, h=14, w=3)
    pool = cross(5, 4, 3, align=align, guide_dim=2, guide=(14, 3)).double()
    assert pool.projection is not None and pool.guide_projection is not None
    rows = cross_layer_pooling(local, guide, pool.projection.weight, pool.projection.bias, align=align)  # (2, 4, 3)
    v = pool.guide_projection.weight.flatten(1)  # (2, 4)
    torch.testing.assert_close(pool.pool(local, guide), v @ rows)
    assert pool(local, guide).shape == (2, pool.out_features) == (2, 6)
    torch.testing.assert_close(v @ v.T, torch.eye(2, dtype=torch.float64), atol=1e-6, rtol=0)  # as it starts


def test_as_many_directions_as_channels_keep_all_inner_products() -> None:
    local, guide = maps(batch=4)
    plain = cross(5, 3)
    turned = cross(5, 3, guide_dim=3).double()
    one, other = (pool.pool(local, guide).flatten(1) for pool in (plain, turned))
    assert not torch.allclose(one, other)
    torch.testing.assert_close(other @ other.T, one @ one.T, atol=1e-4, rtol=1e-5)


def test_a_sketch_stands_between_pooling_and_normalisation() -> None:
    local, guide = maps()
    pool = cross(5, 3, 4, sketch=7, guide_dim=2, zscore=True).double()
    assert pool.count_sketch is not None
    sketched = pool.count_sketch(pool.pool(local, guide))
    torch.testing.assert_close(pool(local, guide), normalise(sketched[:, None], zscore=True))
    assert sketched.shape == (2, pool.out_features) == (2, 7)
    # views of an image are pooled before it is sketched: both are linear
    together = cross(5, 3, 4, sketch=7, sqrt=False, l2=False).double()
    torch.testing.assert_close(together(local, guide, views=2), together(local, guide).sum(0, keepdim=True))


def test_repr_names_the_options() -> None:
    assert "size=3, stride=2, padding=same, align=to_guide" in repr(
        cross(5, 3, size=3, stride=2, padding="same", align="to_guide")
    )


def test_average_pooling_is_the_normalised_mean() -> None:
    local, _ = maps()
    mean = local.numpy().mean((2, 3))
    rooted = np.sign(mean) * np.sqrt(np.abs(mean))
    pool = average()
    assert pool.out_features == 5
    np.testing.assert_allclose(pool(local), rooted / np.linalg.norm(rooted, axis=1, keepdims=True), atol=1e-8)
    plain = average(sqrt=False, l2=False)
    np.testing.assert_allclose(plain(local), mean, atol=1e-15)
    assert plain(local[:0]).shape == (0, 5)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert plain(local.float()).dtype == torch.float32


def test_average_pooling_is_cross_layer_pooling_under_a_constant_guide() -> None:
    local, _ = maps()
    guide = torch.full((2, 1, 7, 6), 1 / 42, dtype=torch.float64)
    torch.testing.assert_close(cross(5, 1)(local, guide), average()(local))
