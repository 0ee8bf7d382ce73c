"""Normalisations of pooled features, in pure torch."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

#: Steps of the Newton-Schulz iteration of :func:`matrix_sqrt`, as in the paper on iSQRT-COV.
ITERATIONS = 5
#: Steps of the iterations of :func:`spectral_root`. Pooled features have low rank and mostly small singular values.
SPECTRAL_ITERATIONS = 15
#: Added to the length of a pooling channel, so that channels of zeros remain zero.
CHANNEL_EPS = 1e-7


def full_precision(x: Tensor) -> Tensor:
    """Convert half precision to float32; return float32 and float64 unchanged."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def signed_sqrt(x: Tensor, eps: float = 1e-8) -> Tensor:
    """Compute the signed square root ``sign(x) sqrt(|x|)``, with a gradient that is finite everywhere.

    The derivative ``1 / (2 sqrt|x|)`` is infinite at 0, which is the value of a whole pooling channel if the guide's
    activations are zero. For ``|x| <= eps``, the root is therefore replaced by the linear function ``x / sqrt(eps)``,
    which is continuous at both ends and differs from the root by at most ``sqrt(eps) / 4``.

    Args:
        x: Tensor of any shape.
        eps: Half-width of the linear part.

    Returns:
        Tensor of the same shape and dtype (float32 for half-precision inputs).
    """
    x = full_precision(x)
    # x / sqrt(max(|x|, eps)) takes four passes over memory; sign times root with a branch would take seven.
    if torch.is_grad_enabled():
        return x * x.abs().clamp_min(eps).rsqrt()
    return x.abs().clamp_min_(eps).rsqrt_().mul_(x)  # the same values, in place


def matrix_sqrt(a: Tensor, iterations: int = ITERATIONS) -> Tensor:
    """Compute the square root of symmetric positive semidefinite matrices by the Newton-Schulz iteration.

    With ``Y_0 = A / tr A`` and ``Z_0 = I``, ::

        Y_k+1 = Y_k (3 I - Z_k Y_k) / 2,    Z_k+1 = (3 I - Z_k Y_k) Z_k / 2,

    ``sqrt(tr A) Y_k`` converges to the root of A. The iteration consists of matrix products only, which are efficient
    on GPUs and in autograd. After five steps, the roots of small eigenvalues are still too small, since they need more
    steps to converge (Li et al., CVPR 2018, section 3.2).

    Args:
        a: ``(..., p, p)``, float32 or float64.
        iterations: Number of steps.

    Returns:
        Tensor of the same shape. The root of a zero matrix is zero.
    """
    size = a.diagonal(dim1=-2, dim2=-1).sum(-1)[..., None, None].clamp_min(torch.finfo(a.dtype).tiny ** 0.5)
    identity = torch.eye(a.shape[-1], dtype=a.dtype, device=a.device)
    y, z = a / size, identity.expand_as(a)
    for _ in range(iterations):
        t = 0.5 * (3 * identity - z @ y)
        y, z = y @ t, t @ z
    return y * size.sqrt()


def spectral_root(x: Tensor, iterations: int = SPECTRAL_ITERATIONS) -> Tensor:
    """Compute the square root of a rectangular matrix's singular values: ``U S V^T -> U sqrt(S) V^T``.

    Improved bilinear pooling (Lin and Maji, BMVC 2017) takes the matrix square root of the symmetric ``A = U S U^T``.
    For a rectangular matrix ``P = U S V^T``, this generalises to the orthogonal factor of its polar decomposition times
    the root of the symmetric factor, ::

        U sqrt(S) V^T = Q H^(1/2),    Q = U V^T,    H = Q^T P = V S V^T.

    ``Q`` is the limit of ``X_k+1 = X_k (3 I - X_k^T X_k) / 2`` from ``X_0 = P / |P|`` (Frobenius norm), and
    :func:`matrix_sqrt` computes ``H^(1/2)``. After a finite number of steps, the result is ``P g(P^T P)`` with a
    polynomial ``g``. The result and its gradient are therefore finite for matrices of any rank, and the result is 0 for
    ``P = 0``. Computed values never exceed the roots of the singular values, and are too small for small singular
    values: after 15 steps, a singular value of ``0.01 |P|`` or more has its root within rounding, one of ``0.003 |P|``
    has 0.85 of its root, one of ``0.001 |P|`` has 0.27. (``P (P^T P)^(-1/4)`` is equal in exact arithmetic, but squares
    the matrix: in float32, its iteration overflows within 20 steps for a singular ``P``.)

    Cost for ``(K, p)`` with ``p <= K`` (otherwise with K and p exchanged): ``2 K p^2 + 3 p^3`` multiply-adds per step,
    and memory for about ``2 K p + 5 p^2`` values per step for the gradient.

    Args:
        x: ``(..., K, p)``, float32 or float64.
        iterations: Number of steps of each of the two iterations.

    Returns:
        Tensor of the same shape.
    """
    if x.shape[-2] < x.shape[-1]:  # use the smaller Gram matrix
        return spectral_root(x.transpose(-2, -1), iterations).transpose(-2, -1)
    norm: Tensor = torch.linalg.matrix_norm(x, keepdim=True)
    q = x / norm.clamp_min(torch.finfo(x.dtype).tiny ** 0.5)
    for _ in range(iterations):
        q = 1.5 * q - 0.5 * q @ (q.transpose(-2, -1) @ q)
    h = q.transpose(-2, -1) @ x
    return q @ matrix_sqrt(0.5 * (h + h.transpose(-2, -1)), iterations)


class Normalise(nn.Module):
    """Normalisation and flattening of pooled features.

    The enabled steps are applied in the order of the options.

    Args:
        spectral: Square root of the matrix's singular values, see :func:`spectral_root`.
        channel_l2: Scale each pooling channel's ``P_k`` to unit length: ``P_k / (1e-7 + |P_k|)``.
        zscore: Standardise each image's vector: subtract its mean and divide by its standard deviation.
        sign: Replace each entry by its sign, {-1, 0, 1} (section 3.4 of the paper). The gradient is that of the
            identity (straight-through estimator), since the gradient of the sign is zero.
        sqrt: Signed square root, see :func:`signed_sqrt`. Has no effect after ``sign``.
        l2: Scale the whole vector to unit length (a zero vector remains zero).

    Attributes:
        steps: Maps the name of each step to whether it is enabled.

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
        """Normalise and flatten: ``(B, K, p) -> (B, K * p)``; float32 for half-precision inputs."""
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
                # the variance is clamped so that a constant vector becomes zero, with a finite gradient
                x = (x - mean) * variance.clamp_min(1e-12).rsqrt()
            if on["sign"]:
                x = x.sign().detach() + (x - x.detach())
            elif on["sqrt"]:
                x = signed_sqrt(x)
            x = x.flatten(1)  # (B, K p)
            return F.normalize(x, dim=1) if on["l2"] else x

    def extra_repr(self) -> str:
        """Return the enabled steps, for ``repr``."""
        return " + ".join(step for step, on in self.steps.items() if on)
