"""The cross-layer head: options, gradients, precisions, compilation and variants."""

import os
import shutil
from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from cxlp.heads.average import AveragePooling
from cxlp.heads.cross_layer import CrossLayerPooling
from cxlp.heads.normalisation import signed_sqrt
from cxlp.heads.operator import Align, centres, cross_layer_pooling, sub_arrays
from cxlp.heads.views import Views
from cxlp.utils.errors import CxlpError
from tests.heads.test_normalisation import SWITCHES, normalise
from tests.heads.test_operator import maps


def cross(
    c: int, k: int, pca_dim: int | None = None, *, guide: tuple[int, int] = (7, 6), **options: Any
) -> CrossLayerPooling:
    """Build a head for maps of 7 x 6, or for a guide of another size."""
    return CrossLayerPooling(pca_dim, **options).connect((c, 7, 6), (k, *guide))


def average(**options: Any) -> AveragePooling:
    return AveragePooling(**options).connect((5, 7, 6))


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
    torch.testing.assert_close(part, whole[:batch])  # images do not affect one another


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"pca_dim": 46, "size": 3}, r"pca_dim is 46, .* 45 values \(5 channels x 3 x 3\): choose 1 to 45"),
        ({"pca_dim": 0}, "pca_dim is 0"),
        ({"size": 4}, "size is 4"),
        ({"stride": -1}, "stride is -1"),
        ({"stride": True}, "stride is True: give a whole number"),
        ({"size": 3.0}, r"size is 3\.0: give a whole number"),
        ({"channels": True}, "channels is True, but the guide has 3"),
        ({"padding": "SAME"}, "'SAME'"),
        ({"channels": 4}, "channels is 4, but the guide has 3: choose 1 to 3, or null"),
        ({"guide": (4, 3)}, "maps of 7x6 and 4x3: .*align to to_local or to_guide"),
        ({"size": 9}, "7x6: too small for a whole 9x9"),
        ({"sketch": 8, "spectral": True}, "spectral is true.*sketch.*spectral to false"),
        ({"sketch": 8, "channel_l2": True}, "channel_l2 is true.*sketch.*channel_l2 to false"),
        ({"guide_dim": 4}, "guide_dim is 4, but the guide has 3 channels: choose 1 to 3, or null"),
        ({"guide_dim": 0}, "guide_dim is 0"),
        ({"guide_dim": 2, "sketch": 11}, "sketch is 11, but there are 2 x 5 pooled features: choose 1 to 10"),
    ],
)
def test_maps_that_do_not_fit_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(CxlpError, match=message):
        cross(5, 3, options.pop("pca_dim", None), **options)


@pytest.mark.parametrize("switches", SWITCHES, ids=lambda s: "+".join(f"{k}={v}" for k, v in s.items()) or "default")
@pytest.mark.parametrize(("sign", "autocast"), list(product((False, True), repeat=2)))
def test_gradients_are_finite_where_everything_is_zero(switches: dict[str, bool], sign: bool, autocast: bool) -> None:
    pool = cross(5, 3, pca_dim=4, size=3, **{"sign": sign, **switches})  # type: ignore[arg-type]
    nn.init.zeros_(pool.projection.bias)  # type: ignore[union-attr, arg-type]
    local = torch.rand(2, 5, 7, 7)
    guide = torch.rand(2, 3, 7, 7)
    local[0], guide[0] = 0, 0  # one image without activations
    guide[1, 2] = 0  # one pooling channel without activations
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


@pytest.mark.parametrize("projected", [False, True])
def test_autocast_is_switched_off_inside(projected: bool) -> None:
    # Inputs with an offset: their sums over 121 places need more than 8 bits of mantissa.
    local, guide = (t.bfloat16() + 1 for t in maps(h=11, w=11))
    pool = cross(5, 3, 4 if projected else None)
    expected = pool(local.float(), guide.float())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        for cast in (lambda t: t, Tensor.float):  # a backbone under autocast returns bfloat16; others return float32
            found = pool(cast(local), cast(guide))
            assert found.dtype == torch.float32
            assert torch.equal(found, expected)
        assert torch.mm(torch.ones(2, 2), torch.ones(2, 2)).dtype == torch.bfloat16  # autocast was enabled


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
    """Several heads on one pair of maps: tracing them together starts the compiler once."""

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
    slopes = torch.linspace(-1, 1, found.shape[1])  # different maps for each head
    (found @ slopes).sum().backward()
    again = [t.clone().requires_grad_() for t in (local, guide)]
    (pool(*again) @ slopes).sum().backward()
    for one, other in zip(inputs, again, strict=True):
        torch.testing.assert_close(one.grad, other.grad, rtol=1e-4, atol=1e-5)


def test_compiles_into_one_graph() -> None:
    compiles(forms(), "aot_eager")


@pytest.mark.slow
def test_the_spectral_root_compiles_into_one_graph() -> None:
    compiles(cross(5, 3, 4, spectral=True), "aot_eager")  # tracing its thirty steps takes long


def test_compiles_into_one_graph_under_autocast() -> None:
    torch._dynamo.reset()
    pool, (local, guide) = cross(5, 3, 4), maps(dtype=torch.float32)
    compiled = torch.compile(pool, fullgraph=True, backend="eager")  # the traced part is the one that differs
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
def test_the_module_equals_the_function_and_knows_its_length(size: int, pca_dim: int | None) -> None:
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
    # The frozen fit reads local features from the convolution, with the same sub-arrays as the pooling.
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
    torch.testing.assert_close(v @ v.T, torch.eye(2, dtype=torch.float64), atol=1e-6, rtol=0)  # the initial values


def test_as_many_directions_as_channels_keep_all_inner_products() -> None:
    local, guide = maps(batch=4)
    plain = cross(5, 3)
    turned = cross(5, 3, guide_dim=3).double()
    one, other = (pool.pool(local, guide).flatten(1) for pool in (plain, turned))
    assert not torch.allclose(one, other)
    torch.testing.assert_close(other @ other.T, one @ one.T, atol=1e-4, rtol=1e-5)


def test_the_sketch_is_applied_between_pooling_and_normalisation() -> None:
    local, guide = maps()
    pool = cross(5, 3, 4, sketch=7, guide_dim=2, zscore=True).double()
    assert pool.count_sketch is not None
    sketched = pool.count_sketch(pool.pool(local, guide))
    torch.testing.assert_close(pool(local, guide), normalise(sketched[:, None], zscore=True))
    assert sketched.shape == (2, pool.out_features) == (2, 7)
    # views of an image are pooled before sketching: both are linear
    together = cross(5, 3, 4, sketch=7, sqrt=False, l2=False).double()
    torch.testing.assert_close(together(local, guide, views=2), together(local, guide).sum(0, keepdim=True))


def test_repr_names_the_options() -> None:
    head = cross(5, 3, size=3, stride=2, padding="same", align="to_guide")
    assert "size=3, stride=2, padding='same', align='to_guide'" in repr(head)
    assert repr(CrossLayerPooling()) == "CrossLayerPooling()"
    both = CrossLayerPooling(pca_dim=2, views=Views("flip")).connect((4, 3, 3), (5, 3, 3))
    assert repr(both) == "CrossLayerPooling(pca_dim=2, views={'kind': 'flip'}): 4 x 3 x 3, 5 x 3 x 3 -> 10"


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


@pytest.mark.parametrize("options", [{}, {"size": 3}, {"padding": "same", "size": 3, "stride": 2}, {"pca_dim": 4}])
def test_centred_pooling_is_the_cross_covariance(options: dict[str, Any]) -> None:
    """By a loop over places, with the means of both layers subtracted; the operator centres only one."""
    local, guide = maps(batch=2)
    geometry = {key: value for key, value in options.items() if key != "pca_dim"}
    pool = cross(5, 3, options.get("pca_dim"), centre=True, **geometry).double()
    x = sub_arrays(local, **geometry)
    if pool.projection is not None:
        assert pool.projection.bias is not None
        x = x @ pool.projection.weight.flatten(1).T + pool.projection.bias
    a = centres(guide, **geometry).flatten(2).transpose(1, 2)
    for image in range(2):
        expected = torch.zeros(3, x.shape[2], dtype=torch.float64)
        for place in range(x.shape[1]):
            expected += torch.outer(a[image, place] - a[image].mean(0), x[image, place] - x[image].mean(0))
        torch.testing.assert_close(pool.pool(local, guide)[image], expected)


def test_centred_pooling_does_not_depend_on_the_means() -> None:
    local, guide = maps(batch=2)
    pool = cross(5, 3, 4, centre=True, guide_dim=2, spectral=True).double()
    torch.testing.assert_close(pool(local + 3, guide - 2), pool(local, guide))


@pytest.mark.parametrize("options", [{"sqrt": False}, {"spectral": True, "guide_dim": 3}])
def test_centred_pooling_has_the_gradient_of_finite_differences(options: dict[str, Any]) -> None:
    local, guide = maps(batch=2)
    pool = cross(5, 3, 4, centre=True, **options).double()
    inputs = (local.requires_grad_(), guide.requires_grad_())
    assert torch.autograd.gradcheck(lambda *given: pool(*given), inputs, atol=1e-5)


def test_the_most_accurate_form_has_finite_gradients_at_constant_maps() -> None:
    local, guide = (torch.ones_like(m).requires_grad_() for m in maps(batch=2))
    vector = cross(5, 3, 4, centre=True, guide_dim=3, spectral=True).double()(local, guide)
    vector.sum().backward()  # type: ignore[no-untyped-call]
    assert vector.isfinite().all() and local.grad is not None and local.grad.isfinite().all()


@pytest.mark.parametrize("whiten", [-0.1, 1.1])
def test_whitening_out_of_its_range_is_refused(whiten: float) -> None:
    with pytest.raises(CxlpError, match=r"whiten is .*between 0 and 1"):
        cross(5, 3, 4, whiten=whiten)


def test_whitening_without_projections_is_refused() -> None:
    with pytest.raises(CxlpError, match=r"whiten is .*pca_dim or guide_dim"):
        cross(5, 3, whiten=0.5)


@pytest.mark.parametrize(("side", "size"), [(1, 1), (3, 3)])
def test_one_local_feature_cannot_be_centred(side: int, size: int) -> None:
    with pytest.raises(CxlpError, match=r"centre is true.* centre to false"):
        CrossLayerPooling(pca_dim=None, size=size, centre=True).connect((4, side, side), (3, side, side))
