"""The score of a class, split exactly over pooling channels and over places.

Before normalisation the pooled vector is a sum over places, ``P_k = sum_i a_ik x_i``, and for a given image the
normalisation only scales its entries: ``n(P)_kj = r_kj P_kj`` with ``r_kj = n(P)_kj / P_kj``. (For the signed square
root and L2 that is ``1 / (sqrt|P_kj| ||.||)``; for signs ``1 / |P_kj|`` and the length; ``zscore`` subtracts the
vector's mean before, which is linear in P, too, or in the ``P_k / (1e-7 + |P_k|)`` of ``channel_l2``.) With the
weights w and the bias b of a class, its score is ::

    s = b + sum_kj w_kj n(P)_kj = b + sum_i sum_k e_ik,        e_ik = a_ik sum_j u_kj x_ij,

where ``u_kj = w_kj r_kj`` (less its mean under ``zscore``), and ``x_i`` is less its mean under ``centre``. That is
algebra, no approximation: the ``e_ik`` add up to the score, over places, over channels, or over both. What it holds
fixed is the image's own scaling r: another image has another. (For the signed square root, gradients that are
integrated along the straight path from P = 0 give the same, Sundararajan et al., ICML 2017.) Entries of P that almost
cancel have a large r, those of signs above all: places may then hold large shares of opposite sign.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from cxlp.heads.normalisation import CHANNEL_EPS, Normalise


def effective_weights(normalise: Normalise, pooled: Tensor, weights: Tensor) -> Tensor:
    """Weights u of the pooled vector before normalisation, holding its scaling fixed: see the module.

    Args:
        normalise: The steps.
        pooled: P of one image: ``(K, p)``, float64.
        weights: Weights w of the normalised vector: ``(K, p)``.

    Returns:
        ``(K, p)`` with ``sum u P = sum w n(P)``. (Where an entry is zero and scaled only, any weight would do.)
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
    """Shares ``e_ik`` of a pooling that is linear in its guide: an activation times its derivative.

    Args:
        pool: The guide ``(V, K, h, w) ->`` what is normalised, of one image: ``(K, p)``, or any matrix.
        activations: The guide's activations ``a_ik``, ``(V, K, h, w)``, float64.
        normalise: What follows.
        weights: Weights of the normalised vector, as many as it has entries.

    Returns:
        ``(V, K, h, w)``.
    """
    with torch.enable_grad():
        guide = activations.detach().clone().requires_grad_()
        pooled = pool(guide)
        effective = effective_weights(normalise, pooled.detach(), weights.view_as(pooled))
        (slopes,) = torch.autograd.grad((pooled * effective).sum(), guide)
    return activations * slopes
