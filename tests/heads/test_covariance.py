"""Covariance pooling compared with NumPy."""

import numpy as np
import pytest
import torch

from cxlp.heads.covariance import CovariancePooling
from cxlp.heads.normalisation import matrix_sqrt, signed_sqrt
from cxlp.utils.errors import CxlpError


def test_gradients() -> None:
    head = CovariancePooling(3).connect((5, 3, 3)).double()
    torch.autograd.gradcheck(head, torch.rand(2, 5, 3, 3, dtype=torch.float64).requires_grad_())


@torch.no_grad()
def test_values_equal_the_formula() -> None:
    torch.manual_seed(0)
    head = CovariancePooling(4).connect((8, 5, 5)).double()
    maps = torch.rand(2, 8, 5, 5, dtype=torch.float64)
    assert head.projection is not None
    x = head.projection(maps).flatten(2).transpose(1, 2)  # (2, 25, 4)
    roots = matrix_sqrt(torch.stack([torch.from_numpy(np.cov(m.T.numpy(), bias=True)) for m in x]))
    # inner products of the vectors equal those of the whole matrices
    found = head(maps)
    whole = torch.nn.functional.normalize(roots.flatten(1), dim=1)
    torch.testing.assert_close(found @ found.T, whole @ whole.T)
    assert found.shape == (2, head.out_features) == (2, 10)


@torch.no_grad()
def test_views_are_pooled_together() -> None:
    maps = torch.rand(4, 8, 3, 3, dtype=torch.float64)
    head = CovariancePooling(None).connect((8, 3, 3)).double()
    torch.testing.assert_close(head(maps, views=2)[:1], head(torch.cat([maps[0], maps[1]], dim=2)[None]))


def test_invalid_options_are_refused() -> None:
    with pytest.raises(CxlpError, match="pca_dim is 9, but the layer has 8 channels"):
        CovariancePooling(9).connect((8, 3, 3))


@torch.no_grad()
def test_second_root_is_off_by_default() -> None:
    head = CovariancePooling(None).connect((8, 3, 3)).double()
    maps = torch.rand(2, 8, 3, 3, dtype=torch.float64)
    bare = head.encode(head.local(maps)).flatten(1)
    torch.testing.assert_close(head(maps), torch.nn.functional.normalize(bare, dim=1))
    assert head.options()["second_root"] is False
    again = CovariancePooling(None, second_root=True).connect((8, 3, 3)).double()
    torch.testing.assert_close(again(maps), torch.nn.functional.normalize(signed_sqrt(bare), dim=1))
