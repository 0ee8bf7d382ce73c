"""Matrix roots against SciPy, covariance pooling against NumPy."""

import numpy as np
import pytest
import scipy.linalg
import torch
from torch import Tensor

from cxlp.errors import CxlpError
from cxlp.representations.covariance import CovariancePooling, matrix_sqrt

pytestmark = pytest.mark.usefixtures("one_thread")


def covariances(n: int = 3, p: int = 6) -> Tensor:
    x = torch.randn(n, 40, p, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    return x.transpose(1, 2) @ x


def test_the_iteration_converges_to_the_root() -> None:
    a = covariances()
    expected = np.stack([scipy.linalg.sqrtm(m) for m in a.numpy()])
    np.testing.assert_allclose(matrix_sqrt(a, 25), expected, atol=1e-8)
    # five steps: close where eigenvalues are large
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


def test_gradients() -> None:
    torch.autograd.gradcheck(matrix_sqrt, covariances(2, 4).requires_grad_())
    head = CovariancePooling(5, 3).double()
    torch.autograd.gradcheck(head, torch.rand(2, 5, 3, 3, dtype=torch.float64).requires_grad_())


@torch.no_grad()
def test_it_is_its_formula() -> None:
    torch.manual_seed(0)
    head = CovariancePooling(8, 4).double()
    maps = torch.rand(2, 8, 5, 5, dtype=torch.float64)
    assert head.projection is not None
    x = head.projection(maps).flatten(2).transpose(1, 2)  # (2, 25, 4)
    roots = matrix_sqrt(torch.stack([torch.from_numpy(np.cov(m.T.numpy(), bias=True)) for m in x]))
    # inner products of vectors are those of the whole matrices
    found = head(maps)
    whole = torch.nn.functional.normalize(roots.flatten(1), dim=1)
    torch.testing.assert_close(found @ found.T, whole @ whole.T)
    assert found.shape == (2, head.out_features) == (2, 10)


@torch.no_grad()
def test_views_are_pooled_together() -> None:
    maps = torch.rand(4, 8, 3, 3, dtype=torch.float64)
    head = CovariancePooling(8, None).double()
    torch.testing.assert_close(head(maps, views=2)[:1], head(torch.cat([maps[0], maps[1]], dim=2)[None]))


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(CxlpError, match="pca_dim is 9, but the layer has 8 channels"):
        CovariancePooling(8, 9)
