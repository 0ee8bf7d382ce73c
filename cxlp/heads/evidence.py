"""Exact decomposition of a class score over pooling channels and places.

Before normalisation, the pooled vector is a sum over places, ``P_k = sum_i a_ik x_i``. For a given image, the
normalisation only scales the entries: ``n(P)_kj = r_kj P_kj`` with ``r_kj = n(P)_kj / P_kj``. (For the signed square
root with L2, ``r_kj = 1 / (sqrt|P_kj| ||.||)``. For signs, ``r_kj`` is ``1 / |P_kj|`` divided by the length.
``zscore`` first subtracts the vector's mean, which is linear in P as well, or in ``P_k / (1e-7 + |P_k|)`` with
``channel_l2``.) The score of a class with weights w and bias b is ::

    s = b + sum_kj w_kj n(P)_kj = b + sum_i sum_k e_ik,        e_ik = a_ik sum_j u_kj x_ij,

where ``u_kj = w_kj r_kj``. Under ``zscore``, the mean of u is subtracted from u; under ``centre``, the mean of the
``x_i`` is subtracted from ``x_i``. This is algebra, not an approximation: the ``e_ik`` sum to the score. They can be
summed over places, over channels, or over both. The decomposition treats the scaling r as constant, although r depends
on the image. (For the signed square root, integrated gradients along the straight path from P = 0 give the same result:
Sundararajan et al., ICML 2017.) Entries of P whose summands almost cancel have a large r, in particular with signs.
Places can then have large shares of opposite sign.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from cxlp.heads.normalisation import CHANNEL_EPS, Normalise


def effective_weights(normalise: Normalise, pooled: Tensor, weights: Tensor) -> Tensor:
    """Compute the weights u of the unnormalised pooled vector for a constant scaling r, see the module.

    Args:
        normalise: The normalisation.
        pooled: P of one image: ``(K, p)``, float64.
        weights: Weights w of the normalised vector: ``(K, p)``.

    Returns:
        ``(K, p)`` with ``sum u P = sum w n(P)``. (For an entry of zero that is only scaled, any weight is valid.)
    """
    steps = normalise.steps
    lengths = CHANNEL_EPS + pooled.norm(dim=1, keepdim=True) if steps["channel_l2"] else 1.0
    shift = (pooled / lengths).mean() if steps["zscore"] else 0.0
    centred = pooled / lengths - shift
    scaled = weights * torch.where(centred == 0, 0.0, normalise(pooled[None]).view_as(pooled) / centred)
    return (scaled - scaled.mean() if steps["zscore"] else scaled) / lengths


def shares_of_guide(
    pool: Callable[[Tensor], Tensor], activations: Tensor, normalise: Normalise, weights: Tensor
) -> Tensor:
    """Compute the shares ``e_ik`` for a pooling that is linear in its guide: activation times derivative.

    Args:
        pool: Function from the guide ``(V, K, h, w)`` of one image to the unnormalised matrix, such as ``(K, p)``.
        activations: The guide's activations ``a_ik``, ``(V, K, h, w)``, float64.
        normalise: The normalisation that follows ``pool``.
        weights: Weights of the normalised vector, one per entry.

    Returns:
        ``(V, K, h, w)``.
    """
    with torch.enable_grad():
        guide = activations.detach().clone().requires_grad_()
        pooled = pool(guide)
        effective = effective_weights(normalise, pooled.detach(), weights.view_as(pooled))
        (slopes,) = torch.autograd.grad((pooled * effective).sum(), guide)
    return activations * slopes
