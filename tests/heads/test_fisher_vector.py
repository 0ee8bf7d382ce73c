"""Fisher vectors compared with derivatives of the log-likelihood, loops and scikit-learn."""

import math

import numpy as np
import pytest
import torch
from sklearn.decomposition import sparse_encode
from sklearn.mixture import GaussianMixture
from torch import Tensor

from cxlp.heads.fisher_vector import FisherVector, SparseFisherVector
from cxlp.utils.errors import CxlpError

#: Approximate root mean square norm of :func:`clustered`.
UNIT = 8.0


def clustered(n: int = 600, dim: int = 5, clusters: int = 3) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    centres = 4 * torch.randn(clusters, dim, generator=generator)
    return centres[torch.arange(n) % clusters] + torch.randn(n, dim, generator=generator)


def gaussian(atoms: int = 3, dim: int = 5) -> FisherVector:
    generator = torch.Generator().manual_seed(1)
    encoder = FisherVector(dim, atoms).connect((8, 3, 2))
    encoder.weights.copy_(torch.rand(atoms, generator=generator).softmax(0))
    encoder.means.copy_(torch.randn(atoms, dim, generator=generator))
    encoder.deviations.copy_(0.5 + torch.rand(atoms, dim, generator=generator))
    return encoder.double()


def sparse(atoms: int = 6, dim: int = 5) -> SparseFisherVector:
    encoder = SparseFisherVector(dim, atoms).connect((8, 3, 2))
    encoder.iterations = 5000
    random = torch.randn(atoms, dim, generator=torch.Generator().manual_seed(1))
    encoder.dictionary.copy_(random / random.norm(dim=1, keepdim=True))
    encoder.unit.fill_(UNIT)
    return encoder.double()


def log_likelihood(x: Tensor, weights: Tensor, means: Tensor, deviations: Tensor) -> Tensor:
    normal = torch.distributions.Normal(means, deviations)
    each = normal.log_prob(x[:, None]).sum(2)  # type: ignore[no-untyped-call]
    each = each + weights.log()  # (N, K)
    total: Tensor = each.logsumexp(1).sum()
    return total


def test_the_gaussian_vector_is_the_whitened_likelihood_gradient() -> None:
    """Sanchez et al.: gradients by mean and deviation, times s / sqrt(w) and s / sqrt(2 w), divided by N."""
    encoder, x = gaussian(), clustered(40).double()
    means, deviations = encoder.means.clone().requires_grad_(), encoder.deviations.clone().requires_grad_()
    log_likelihood(x, encoder.weights, means, deviations).backward()  # type: ignore[no-untyped-call]
    root = encoder.weights.sqrt()[:, None]
    assert means.grad is not None and deviations.grad is not None
    expected = torch.cat(
        [means.grad * encoder.deviations / root, deviations.grad * encoder.deviations / (math.sqrt(2) * root)], dim=1
    )
    torch.testing.assert_close(encoder.encode(x[None])[0], expected / len(x))


def test_posteriors_equal_scikit_learn() -> None:
    x = clustered()
    encoder = FisherVector(5, 3).connect((8, 3, 2))
    encoder.learn(x)
    reference = GaussianMixture(3, covariance_type="diag", random_state=0)
    reference.weights_ = encoder.weights.double().numpy()
    reference.means_ = encoder.means.double().numpy()
    reference.precisions_cholesky_ = 1 / encoder.deviations.double().numpy()
    np.testing.assert_allclose(encoder.posteriors(x), reference.predict_proba(x.double().numpy()), atol=1e-4)


def test_a_mixture_finds_its_clusters() -> None:
    encoder = FisherVector(5, 3).connect((8, 3, 2))
    encoder.learn(clustered())
    torch.testing.assert_close(encoder.weights, torch.full((3,), 1 / 3), atol=0.02, rtol=0)
    torch.testing.assert_close(encoder.deviations, torch.ones(3, 5), atol=0.15, rtol=0)
    typical = encoder.encode(clustered()[None])[0]
    assert typical.abs().max() < 1e-2  # the gradient vanishes at the maximum


def test_sparse_codes_equal_scikit_learn() -> None:
    encoder, x = sparse(), clustered(30).double()
    expected = sparse_encode(
        (x / UNIT).numpy(), encoder.dictionary.numpy(), algorithm="lasso_lars", alpha=0.1, max_iter=1000
    )
    found = encoder.codes(x)
    np.testing.assert_allclose(found, expected, atol=2e-3)
    encoder.iterations = 100  # the default number
    objective = [
        0.5 * (x / UNIT - u @ encoder.dictionary).square().sum(1) + 0.1 * u.abs().sum(1)
        for u in (encoder.codes(x), torch.from_numpy(expected))
    ]
    torch.testing.assert_close(objective[0], objective[1], rtol=1e-3, atol=0)
    assert 0.1 < float((found == 0).double().mean()) < 0.9  # exact zeros


def test_the_sparse_vector_is_the_gradient_for_the_dictionary() -> None:
    encoder, x = sparse(), clustered(30).double()
    codes = encoder.codes(x)
    dictionary = encoder.dictionary.clone().requires_grad_()
    (-0.5 * (x / UNIT - codes @ dictionary).square().sum()).backward()  # type: ignore[no-untyped-call]
    torch.testing.assert_close(encoder.encode(x[None])[0], dictionary.grad)


def test_the_learnt_dictionary_explains_the_features() -> None:
    generator = torch.Generator().manual_seed(0)
    atoms = torch.nn.functional.normalize(torch.randn(6, 10, generator=generator), dim=1)
    codes = torch.randn(2000, 6, generator=generator) * (torch.rand(2000, 6, generator=generator) < 0.3)
    x = 7 * codes @ atoms
    encoder = SparseFisherVector(10, atoms=6, sparsity=0.05).connect((16, 3, 2))
    encoder.learn(x)
    assert float(encoder.unit) == pytest.approx(float(x.square().sum(1).mean().sqrt()), rel=1e-5)
    unit = float(encoder.unit)
    cost = {}
    for name, dictionary in (("learnt", encoder.dictionary.clone()), ("true", atoms), ("other", atoms.flip(1))):
        encoder.dictionary.copy_(dictionary)
        u = encoder.codes(x)
        cost[name] = float((0.5 * (x / unit - u @ dictionary).square().sum(1) + 0.05 * u.abs().sum(1)).mean())
    assert cost["learnt"] < 1.5 * cost["true"] and cost["learnt"] < 0.6 * cost["other"]
    encoder.learn(x)
    torch.testing.assert_close(encoder.dictionary.norm(dim=1), torch.ones(6), atol=1e-4, rtol=0)


@pytest.mark.parametrize("encoder", [gaussian(), sparse()], ids=["gaussian", "sparse"])
@torch.no_grad()
def test_views_are_encoded_together(encoder: FisherVector | SparseFisherVector) -> None:
    maps = 50 * torch.rand(6, 8, 3, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    found = encoder(maps, views=3)
    assert found.shape == (2, encoder.out_features)
    # The same places side by side on one map.
    joined = torch.cat([maps[0], maps[1], maps[2]], dim=2)[None]
    torch.testing.assert_close(found[:1], encoder(joined))
    torch.testing.assert_close(found.norm(dim=1), torch.ones(2, dtype=torch.float64))


@torch.no_grad()
def test_half_precision_is_encoded_in_full() -> None:
    maps = torch.rand(2, 8, 3, 3).bfloat16()
    for encoder in (gaussian().float(), sparse().float()):
        with torch.autocast("cpu", torch.bfloat16):
            found = encoder(maps)
        assert found.dtype == torch.float32
        torch.testing.assert_close(found, encoder(maps.float()))


def test_invalid_options_are_refused() -> None:
    with pytest.raises(CxlpError, match="atoms is 1"):
        FisherVector(5, 1)
    for dim in (0, 9):
        with pytest.raises(CxlpError, match=f"pca_dim is {dim}, but the layer has 8 channels"):
            SparseFisherVector(dim).connect((8, 3, 2))
    with pytest.raises(CxlpError, match="sparsity is 0"):
        SparseFisherVector(5, sparsity=0)
    with pytest.raises(CxlpError, match=r"atoms is 100.* 30 .*lower atoms"):
        SparseFisherVector(5).connect((8, 3, 2)).learn(clustered(30))
