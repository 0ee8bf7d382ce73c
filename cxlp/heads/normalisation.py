"""Normalisations of pooled features, in pure torch: roots of entries and of matrices, signs, lengths."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

#: Steps of the iteration, as in the paper.
ITERATIONS = 5
#: Those of :func:`spectral_root`: pooled features are of low rank, and most of their singular values small.
SPECTRAL_ITERATIONS = 15
#: What the length of a pooling channel is raised by, so that silent channels stay zero.
CHANNEL_EPS = 1e-7


def full_precision(x: Tensor) -> Tensor:
    """Raise half precision to float32; leave float32 and float64 alone."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def signed_sqrt(x: Tensor, eps: float = 1e-8) -> Tensor:
    """Signed square root ``sign(x) sqrt(|x|)``, with a gradient that is finite everywhere.

    The derivative ``1 / (2 sqrt|x|)`` is infinite at 0, where whole pooling channels lie when
    their guide is silent. Within ``|x| <= eps`` the root is therefore replaced by the straight
    line ``x / sqrt(eps)``, which meets it at both ends (off by ``sqrt(eps) / 4`` at most).

    Args:
        x: Any shape.
        eps: Half-width of the linear part.

    Returns:
        Same shape and dtype (float32 for half inputs).
    """
    x = full_precision(x)
    # x / sqrt(max(|x|, eps)): four passes over memory, where sign times root with a branch takes seven.
    if torch.is_grad_enabled():
        return x * x.abs().clamp_min(eps).rsqrt()
    return x.abs().clamp_min_(eps).rsqrt_().mul_(x)  # the same values, in the memory of one result


def matrix_sqrt(a: Tensor, iterations: int = ITERATIONS) -> Tensor:
    """Square root of symmetric positive semidefinite matrices by the Newton-Schulz iteration.

    With ``Y_0 = A / tr A`` and ``Z_0 = I``, ::

        Y_k+1 = Y_k (3 I - Z_k Y_k) / 2,    Z_k+1 = (3 I - Z_k Y_k) Z_k / 2,

    ``sqrt(tr A) Y_k`` converges to the root of A: products only, which GPUs and autograd like. After five steps it
    is a root that damps small eigenvalues; they need more (Li et al., CVPR 2018, section 3.2).

    Args:
        a: ``(..., p, p)``, float32 or wider.
        iterations: How many steps.

    Returns:
        Same shape. A zero matrix is its own root.
    """
    size = a.diagonal(dim1=-2, dim2=-1).sum(-1)[..., None, None].clamp_min(torch.finfo(a.dtype).tiny ** 0.5)
    identity = torch.eye(a.shape[-1], dtype=a.dtype, device=a.device)
    y, z = a / size, identity.expand_as(a)
    for _ in range(iterations):
        t = 0.5 * (3 * identity - z @ y)
        y, z = y @ t, t @ z
    return y * size.sqrt()


def spectral_root(x: Tensor, iterations: int = SPECTRAL_ITERATIONS) -> Tensor:
    """Square root of a rectangular matrix's singular values: ``U S V^T -> U sqrt(S) V^T``.

    Improved bilinear pooling (Lin and Maji, BMVC 2017) takes the matrix square root of the symmetric ``A = U S U^T``;
    of a rectangular matrix ``P = U S V^T`` it is the orthogonal factor times the root of the symmetric one, ::

        U sqrt(S) V^T = Q H^(1/2),    Q = U V^T,    H = Q^T P = V S V^T.

    ``Q`` is the limit of ``X_k+1 = X_k (3 I - X_k^T X_k) / 2`` from ``X_0 = P / |P|`` (Frobenius norm), ``H^(1/2)``
    that of :func:`matrix_sqrt`. After finitely many steps the result is ``P g(P^T P)`` with a polynomial ``g``: so it
    is finite, with a finite gradient, for matrices of any rank, and 0 for 0. Singular values are damped, never raised
    above their root, the smaller the more: 15 steps bring those of ``0.01 |P|`` and more to their root within
    rounding, ``0.003 |P|`` to 0.85 of it, ``0.001 |P|`` to 0.27. (``P (P^T P)^(-1/4)``, the same in exact arithmetic,
    squares the matrix: in float32 its iteration overflows within 20 steps where ``P`` is singular.)

    Cost for ``(K, p)`` with ``p <= K`` (else the other way round), in multiply-adds: ``2 K p^2 + 3 p^3`` a step;
    memory for the gradient: about ``2 K p + 5 p^2`` values a step.

    Args:
        x: ``(..., K, p)``, float32 or wider.
        iterations: Steps of each of the two iterations.

    Returns:
        Same shape.
    """
    if x.shape[-2] < x.shape[-1]:  # the smaller Gram matrix
        return spectral_root(x.transpose(-2, -1), iterations).transpose(-2, -1)
    norm: Tensor = torch.linalg.matrix_norm(x, keepdim=True)
    q = x / norm.clamp_min(torch.finfo(x.dtype).tiny ** 0.5)
    for _ in range(iterations):
        q = 1.5 * q - 0.5 * q @ (q.transpose(-2, -1) @ q)
    h = q.transpose(-2, -1) @ x
    return q @ matrix_sqrt(0.5 * (h + h.transpose(-2, -1)), iterations)


class Normalise(nn.Module):
    """Normalises pooled features and flattens them, each step a switch, in this order.

    Args:
        spectral: Square root of the matrix's singular values, see :func:`spectral_root`.
        channel_l2: Scale each pooling channel's ``P_k`` to unit length: ``P_k / (1e-7 + |P_k|)``.
        zscore: Subtract the mean and divide by the standard deviation of each image's own vector.
        sign: Keep only the sign, {-1, 0, 1} (section 3.4 of the paper). Its gradient is passed
            straight through, since its own is zero.
        sqrt: Signed square root, see :func:`signed_sqrt` (a sign is its own root).
        l2: Scale the whole vector to unit length (a zero vector stays zero).

    Attributes:
        steps: The switches by their names.

    Example:
        >>> Normalise(sqrt=False)(torch.tensor([[[3.0, 0.0], [0.0, 4.0]]]))
        tensor([[0.6000, 0.0000, 0.0000, 0.8000]])
    """

    def __init__(
        self,
        *,
        spectral: bool = False,
        channel_l2: bool = False,
        zscore: bool = False,
        sign: bool = False,
        sqrt: bool = True,
        l2: bool = True,
    ) -> None:
        super().__init__()
        self.steps = {
            "spectral": spectral, "channel_l2": channel_l2, "zscore": zscore, "sign": sign, "sqrt": sqrt, "l2": l2
        }  # fmt: skip

    def forward(self, pooled: Tensor) -> Tensor:
        """``(B, K, p) -> (B, K * p)``, float32 for half inputs."""
        on = self.steps
        with torch.autocast(pooled.device.type, enabled=False):
            x = full_precision(pooled)  # (B, K, p)
            if on["spectral"]:
                x = spectral_root(x)
            if on["channel_l2"]:
                x = x / (CHANNEL_EPS + x.norm(dim=2, keepdim=True))
            if on["zscore"]:
                mean = x.mean(dim=(1, 2), keepdim=True)
                variance = x.var(dim=(1, 2), keepdim=True, correction=0)
                # rsqrt of a clamped variance: a constant vector becomes zero, with a finite gradient
                x = (x - mean) * variance.clamp_min(1e-12).rsqrt()
            if on["sign"]:
                x = x.sign().detach() + (x - x.detach())
            elif on["sqrt"]:
                x = signed_sqrt(x)
            x = x.flatten(1)  # (B, K p)
            return F.normalize(x, dim=1) if on["l2"] else x

    def extra_repr(self) -> str:
        """Name the steps that are on."""
        return " + ".join(step for step, on in self.steps.items() if on)
