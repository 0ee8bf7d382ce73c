"""Streamed moments compared with NumPy, and principal axes with scikit-learn."""

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from sklearn.decomposition import PCA

from cxlp.heads.pca import Moments
from cxlp.utils.errors import CxlpError

CPU = torch.device("cpu")


def vectors(n: int, d: int, mean: float = 0.0, spread: float = 1.0, seed: int = 0) -> NDArray[np.float32]:
    """Return correlated vectors whose scales range from ``spread`` to ``100 * spread``, around ``mean``."""
    random = np.random.default_rng(seed)
    mixed = random.normal(size=(n, d)) @ random.normal(size=(d, d))
    return (mean + spread * mixed * np.logspace(0, 2, d)).astype(np.float32)


def streamed(x: NDArray[np.float32], cuts: list[int]) -> Moments:
    """Compute the moments of ``x``, given in batches that end at ``cuts``."""
    moments = Moments(x.shape[1], CPU)
    for batch in np.split(x, sorted(cuts)):
        moments.update(torch.from_numpy(batch))
    return moments


@settings(deadline=None, max_examples=60)
@given(
    n=st.integers(2, 60),
    d=st.integers(1, 6),
    cuts=st.lists(st.integers(0, 60), max_size=6),
    mean=st.sampled_from([0.0, 1e2, -1e5]),
    spread=st.sampled_from([1e-2, 1.0, 1e3]),
    seed=st.integers(0, 1000),
)
@example(
    n=60, d=6, cuts=[10, 20, 30, 40, 50], mean=-1e5, spread=1e-2, seed=0
)  # the mean is much larger than the spread
@example(n=60, d=6, cuts=list(range(1, 60)), mean=1e2, spread=1.0, seed=0)  # one vector at a time
def test_moments_equal_numpy_for_any_batches(
    n: int, d: int, cuts: list[int], mean: float, spread: float, seed: int
) -> None:
    x = vectors(n, d, mean, spread, seed)
    moments = streamed(x, [c for c in cuts if c <= n])
    expected = np.atleast_2d(np.cov(x.astype(np.float64).T, bias=True))
    # The tolerance of each entry depends on its two coordinates, so that large entries do not hide small ones.
    scale = np.sqrt(np.diag(expected)).clip(1e-6 * spread)
    assert moments.count == n
    np.testing.assert_allclose(moments.mean.numpy(), x.mean(axis=0, dtype=np.float64), rtol=1e-12, atol=1e-9 * spread)
    np.testing.assert_allclose(
        (moments.scatter / n).numpy() / np.outer(scale, scale), expected / np.outer(scale, scale), atol=2e-5
    )


def test_an_empty_batch_changes_nothing() -> None:
    x = vectors(20, 4)
    moments = Moments(4, CPU)
    moments.update(torch.empty(0, 4))
    assert moments.count == 0
    moments.update(torch.from_numpy(x))
    mean, scatter = moments.mean.clone(), moments.scatter.clone()
    moments.update(torch.empty(0, 4))
    assert moments.count == 20
    assert torch.equal(moments.mean, mean)
    assert torch.equal(moments.scatter, scatter)
    assert bool(scatter.isfinite().all())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_dtypes_are_summed_up_in_full_precision(dtype: torch.dtype) -> None:
    x = torch.from_numpy(vectors(3000, 3, mean=50.0, spread=0.1)).to(dtype)
    moments = Moments(3, CPU)
    for batch in x.chunk(3):
        moments.update(batch)
    exact = x.double().numpy()
    np.testing.assert_allclose(moments.mean.numpy(), exact.mean(axis=0), rtol=1e-9)
    np.testing.assert_allclose((moments.scatter / 3000).numpy(), np.cov(exact.T, bias=True), rtol=1e-4, atol=1e-6)


def test_principal_axes_equal_scikit_learn() -> None:
    x = vectors(500, 12, mean=30.0)
    axes = streamed(x, [100, 130, 400]).principal_axes(5)[0].numpy()
    expected = PCA(5, svd_solver="full").fit(x.astype(np.float64)).components_
    cosines = (axes * expected).sum(axis=1)
    np.testing.assert_allclose(np.abs(cosines), 1.0, atol=1e-8)  # each axis, up to its sign
    np.testing.assert_allclose(axes.T @ axes, expected.T @ expected, atol=1e-5)  # the subspace


def test_axes_of_the_second_moment_equal_numpy() -> None:
    x = vectors(500, 12, mean=30.0)
    moments = streamed(x, [100, 130, 400])
    axes = moments.principal_axes(5, centred=False)[0].numpy()
    exact = x.astype(np.float64)
    expected = np.linalg.eigh(exact.T @ exact / len(x))[1][:, ::-1][:, :5].T
    np.testing.assert_allclose(np.abs((axes * expected).sum(axis=1)), 1.0, atol=1e-8)
    centred = moments.principal_axes(5)[0].numpy()  # which leaves the moments as they were
    assert np.abs((axes * centred).sum(axis=1)).min() < 0.99
    # the best approximation of rank 5 to the vectors, by NumPy's SVD
    u, s, v = np.linalg.svd(exact, full_matrices=False)
    best = (u[:, :5] * s[:5]) @ v[:5]
    np.testing.assert_allclose(exact @ axes.T @ axes, best, atol=1e-3 * np.abs(best).max())


def test_axes_are_orthonormal_and_their_largest_entry_is_positive() -> None:
    axes = streamed(vectors(300, 10), [77]).principal_axes(10)[0].numpy()
    np.testing.assert_allclose(axes @ axes.T, np.eye(10), atol=1e-10)
    assert (axes[np.arange(10), np.abs(axes).argmax(axis=1)] > 0).all()


def test_signs_do_not_depend_on_the_sign_of_the_data() -> None:
    x = vectors(300, 8)
    np.testing.assert_allclose(
        streamed(x, [50]).principal_axes(4)[0].numpy(), streamed(-x, [200]).principal_axes(4)[0].numpy(), atol=1e-5
    )


def test_variances_fall_along_the_axes() -> None:
    x = vectors(400, 8)
    projected = (x - x.mean(axis=0)) @ streamed(x, []).principal_axes(8)[0].numpy().T
    variances = projected.var(axis=0)
    assert (np.diff(variances) < 0).all()
    off_diagonal = np.corrcoef(projected.T) - np.eye(8)
    np.testing.assert_allclose(off_diagonal, 0, atol=1e-2)


def test_too_few_vectors_are_refused_with_both_numbers() -> None:
    moments = streamed(vectors(5, 8), [])
    with pytest.raises(CxlpError, match=r"PCA to 5 dimensions .*more than 5 .* 5: "):
        moments.principal_axes(5)
    assert moments.principal_axes(4)[0].shape == (4, 8)  # n vectors span n - 1 axes


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_scatter_is_of_full_precision_under_autocast(dtype: torch.dtype) -> None:
    x = 300 * torch.randn(400, 8, generator=torch.Generator().manual_seed(0))  # sums of squares overflow float16
    moments, reference = Moments(8, torch.device("cpu")), torch.cov(x.T.double(), correction=0) * len(x)
    with torch.autocast("cpu", dtype):
        moments.update(x)
    torch.testing.assert_close(moments.scatter, reference, rtol=1e-5, atol=1e-5 * float(reference.abs().max()))
