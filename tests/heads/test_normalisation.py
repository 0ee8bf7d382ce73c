"""Roots of entries and matrices, signs and norms: values compared with NumPy and SciPy, and gradients."""

import math
from typing import Any

import numpy as np
import pytest
import scipy.linalg
import torch
from torch import Tensor
from torch.autograd import gradcheck

from cxlp.heads import BilinearPooling, CrossLayerPooling
from cxlp.heads.normalisation import Normalise, matrix_sqrt, signed_sqrt, spectral_root
from cxlp.utils.errors import CxlpError

SWITCHES = [
    {},
    {"spectral": True},
    {"spectral": True, "zscore": True, "channel_l2": True},
    {"l2": False},
    {"sqrt": False},
    {"sqrt": False, "l2": False},
    {"zscore": True},
    {"channel_l2": True},
    {"zscore": True, "channel_l2": True},
    {"zscore": True, "channel_l2": True, "sqrt": False, "l2": False},
]


def normalise(x: Tensor, **switches: bool) -> Tensor:
    vector: Tensor = Normalise(**switches)(x)
    return vector


def test_gradcheck_of_the_root_away_from_zero_and_within_the_line() -> None:
    eps = 1e-2
    inside = torch.linspace(-0.9, 0.9, 7, dtype=torch.float64) * eps  # contains 0 itself
    outside = torch.tensor([-3.0, -0.5, -0.02, 0.02, 0.5, 3.0], dtype=torch.float64)
    for x in (inside, outside):
        assert gradcheck(lambda t: signed_sqrt(t, eps), (x.clone().requires_grad_(),))
    assert gradcheck(signed_sqrt, (outside.clone().requires_grad_(),))


def test_the_root_and_its_linear_part_are_continuous() -> None:
    x = torch.tensor([-9.0, -1e-4, 0.0, 1e-4, 4.0], dtype=torch.float64)
    torch.testing.assert_close(signed_sqrt(x), torch.tensor([-3, -1e-2, 0, 1e-2, 2], dtype=torch.float64))
    eps = 1e-2
    edge = torch.tensor([eps, eps + 1e-12], dtype=torch.float64)
    torch.testing.assert_close(signed_sqrt(edge, eps), edge.sqrt())  # both ends of the transition
    inside = torch.linspace(0, eps, 1001, dtype=torch.float64)
    gap = (signed_sqrt(inside, eps) - inside.sqrt()).abs().max().item()
    assert gap == pytest.approx(math.sqrt(eps) / 4, rel=1e-3)  # the docstring's bound


@pytest.mark.parametrize("switches", SWITCHES, ids=lambda s: "+".join(f"{k}={v}" for k, v in s.items()) or "default")
def test_gradcheck_of_normalise(switches: dict[str, bool]) -> None:
    # Away from 0, where the slope of the root is too steep for finite differences.
    x = torch.randn(2, 3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    x = (x.sign() * (x.abs() + 0.3)).requires_grad_()
    assert gradcheck(lambda t: normalise(t, **switches), (x,))


def test_normalise_equals_numpy_in_its_documented_order() -> None:
    x = torch.randn(3, 4, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1)) + 0.5
    a = x.numpy()
    standard = (a - a.mean((1, 2), keepdims=True)) / a.std((1, 2), keepdims=True)
    np.testing.assert_allclose(normalise(x, zscore=True, sqrt=False, l2=False), standard.reshape(3, -1), atol=1e-12)
    channels = a / (1e-7 + np.linalg.norm(a, axis=2, keepdims=True))
    np.testing.assert_allclose(normalise(x, channel_l2=True, sqrt=False, l2=False), channels.reshape(3, -1), atol=1e-12)
    both = (channels - channels.mean((1, 2), keepdims=True)) / channels.std((1, 2), keepdims=True)
    rooted = (np.sign(both) * np.sqrt(np.abs(both))).reshape(3, -1)
    whole = rooted / np.linalg.norm(rooted, axis=1, keepdims=True)
    np.testing.assert_allclose(normalise(x, zscore=True, channel_l2=True), whole, atol=1e-8)


def test_the_default_has_unit_length_and_a_zero_vector_stays_zero() -> None:
    x = torch.randn(2, 4, 5)
    x[1] = 0
    torch.testing.assert_close(normalise(x).norm(dim=1), torch.tensor([1.0, 0.0]))


def test_zscore_of_a_constant_vector_is_zero() -> None:
    assert not normalise(torch.full((1, 3, 4), 7.0), zscore=True).any()


def test_signs_are_kept_scaled_and_passed_straight_through() -> None:
    x = torch.tensor([[[-5.0, 0.0, 0.1, 3.0]]], requires_grad=True)
    raw = normalise(x, sign=True, l2=False)
    assert raw.tolist() == [[-1, 0, 1, 1]]
    (gradient,) = torch.autograd.grad(raw, x, torch.tensor([[1.0, 2.0, 3.0, 4.0]]))
    assert gradient.flatten().tolist() == [1, 2, 3, 4]
    scaled = normalise(x, sign=True)
    torch.testing.assert_close(scaled, raw / math.sqrt(3))
    (gradient,) = torch.autograd.grad(scaled[0, 0], x)
    assert gradient.isfinite().all() and gradient.any()


def test_repr_names_the_steps_that_are_on() -> None:
    assert "channel_l2 + sqrt + l2" in repr(Normalise(channel_l2=True))
    assert "spectral + l2" in repr(Normalise(spectral=True, sqrt=False))


# --- matrix roots


def covariances(n: int = 3, p: int = 6) -> Tensor:
    x = torch.randn(n, 40, p, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    return x.transpose(1, 2) @ x


def test_the_iteration_converges_to_the_matrix_root() -> None:
    a = covariances()
    expected = np.stack([scipy.linalg.sqrtm(m) for m in a.numpy()])
    np.testing.assert_allclose(matrix_sqrt(a, 25), expected, atol=1e-8)
    # five steps are accurate if eigenvalues are large
    np.testing.assert_allclose(matrix_sqrt(a), expected, atol=0.05 * np.abs(expected).max())


def test_singular_and_zero_matrices_have_finite_roots_and_gradients() -> None:
    a = covariances(2).clone()
    a[0] = 0
    a[1, -1] = a[1, :, -1] = 0
    a.requires_grad_()
    root = matrix_sqrt(a)
    root.square().sum().backward()  # type: ignore[no-untyped-call]
    assert a.grad is not None and root.isfinite().all() and a.grad.isfinite().all()
    assert not root[0].any()


def test_gradcheck_of_the_matrix_root() -> None:
    assert gradcheck(matrix_sqrt, covariances(2, 4).requires_grad_())


def exact_root(p: Tensor) -> Tensor:
    """Compute the root of singular values by NumPy's SVD, in float64."""
    u, s, v = np.linalg.svd(p.double().numpy(), full_matrices=False)
    return torch.from_numpy((u * np.sqrt(s)[:, None]) @ v)


@pytest.mark.parametrize("shape", [(6, 4), (4, 6), (5, 5), (1, 7), (7, 1)])
def test_the_spectral_root_equals_the_svd(shape: tuple[int, int]) -> None:
    p = torch.randn(3, *shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(spectral_root(p, 30), exact_root(p), rtol=0, atol=1e-8)
    torch.testing.assert_close(spectral_root(p * 1e-4), spectral_root(p) * 1e-2)  # independent of the scale


def test_the_spectral_root_of_a_symmetric_matrix_is_its_root() -> None:
    a = covariances()
    torch.testing.assert_close(spectral_root(a, 25), matrix_sqrt(a, 25), rtol=0, atol=1e-8)


def test_small_singular_values_are_damped_as_documented() -> None:
    small = torch.tensor([0.01, 0.003, 0.001], dtype=torch.float64)
    large = (1 - small.square().sum()).sqrt()
    found = spectral_root(torch.diag(torch.cat([large[None], small])))
    parts = found.diagonal() / torch.cat([large[None], small]).sqrt()
    np.testing.assert_allclose(parts, [1, 1, 0.850, 0.269], atol=2e-3)


@pytest.mark.parametrize("places", [1, 49, 169])
def test_pooled_features_of_few_places_have_a_finite_root_in_float32(places: int) -> None:
    generator = torch.Generator().manual_seed(0)
    guide = torch.rand(2, places, 96, generator=generator) ** 8  # few channels respond at a place
    local = torch.randn(2, places, 80, generator=generator) * torch.logspace(0, -2, 80)
    p = (guide.mT @ local).requires_grad_()  # (2, 96, 80), of rank min(N, 80) at most
    root = spectral_root(p)
    root.square().sum().backward()  # type: ignore[no-untyped-call]
    assert p.grad is not None and bool(p.grad.isfinite().all())
    exact = exact_root(p.detach())
    assert float(torch.cosine_similarity(root.detach().double().flatten(1), exact.flatten(1)).min()) > 0.995
    # damped, never amplified
    assert float(torch.linalg.matrix_norm(root.detach()).max()) <= float(torch.linalg.matrix_norm(exact).max()) * 1.001


def test_the_spectral_root_of_zero_is_zero_with_a_finite_gradient() -> None:
    p = torch.zeros(2, 4, 3)
    p[1, 0] = torch.tensor([3.0, 4.0, 0.0])  # beside it: of rank one
    p.requires_grad_()
    root = spectral_root(p)
    root.sum().backward()  # type: ignore[no-untyped-call]
    assert not root[0].any()
    torch.testing.assert_close(root[1, 0].detach(), torch.tensor([3.0, 4.0, 0.0]) / 5**0.5)
    assert p.grad is not None and bool(p.grad.isfinite().all())


@pytest.mark.parametrize("shape", [(4, 3), (3, 4)])
def test_gradcheck_of_the_spectral_root(shape: tuple[int, int]) -> None:
    p = torch.randn(2, *shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    p[1, 0] = 0
    p[1, 1] = p[1, 2]  # of low rank
    assert gradcheck(spectral_root, (p.requires_grad_(),))


@pytest.mark.parametrize("kind", [CrossLayerPooling, BilinearPooling])
def test_spectral_replaces_the_root_of_entries(kind: Any) -> None:
    def steps(**options: bool) -> dict[str, bool]:
        on: dict[str, bool] = kind(pca_dim=4, **options).normalise.steps
        return {name: on[name] for name in ("spectral", "sqrt")}

    assert steps() == {"spectral": False, "sqrt": True}
    assert steps(spectral=True) == {"spectral": True, "sqrt": False}
    assert steps(spectral=True, second_root=True) == {"spectral": True, "sqrt": True}
    with pytest.raises(CxlpError, match=r"second_root is true.*spectral to true"):
        kind(second_root=True)


def test_the_spectral_step_comes_before_the_others() -> None:
    x = torch.randn(2, 4, 3, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(normalise(x, spectral=True), normalise(spectral_root(x)))
    torch.testing.assert_close(Normalise(spectral=True, sqrt=False)(x), normalise(spectral_root(x), sqrt=False))
