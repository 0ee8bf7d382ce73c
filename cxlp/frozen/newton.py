"""Linear SVMs by Newton's method on blocks of rows, without an n x n matrix."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from cxlp.frozen.rows import Rows
from cxlp.utils.distributed import all_sum, from_rank_zero
from cxlp.utils.errors import CxlpError

#: Half the width h of the hinge's rounded corner: small enough that 99 of 100 predictions agree with libsvm's.
CORNER = 0.25
#: Default tolerance: largest distance from the optimal weights, relative to their length.
TOLERANCE = 0.02
_MOST_STEPS = 50  # Newton steps; about ten are usual
_MOST_PRODUCTS = 20  # matrix products of conjugate gradients per step: more would save steps, but cost more products
_PRECISION = 0.3  # relative residual of a step's equations: low precision suffices, since the next step has new ones
_ROUNDING = 1e-6  # relative rounding error of a sum of rows in float32
_CHUNK = 1 << 20  # entries of margins processed at a time: few enough for the processor's cache


@dataclass(frozen=True)
class Solution:
    """Weights of SVMs on centred rows: ``score_k(x) = weights[k] . (x - mean) + intercepts[k]``.

    Attributes:
        weights: ``(k, D)`` float32.
        intercepts: ``(k,)`` float32.
        scores: ``(k, m)`` float32, the scores of this rank's rows.
        passes: Number of passes over the rows; each pass multiplies the rows by vectors of the SVMs, and vice versa.
        unsolved: Number of SVMs that are further from the minimum than the tolerance allows.
    """

    weights: Tensor
    intercepts: Tensor
    scores: Tensor
    passes: int
    unsolved: int


def minimise(
    rows: Rows, targets: Tensor, c: float, start: Solution | None = None, tolerance: float = TOLERANCE
) -> Solution:
    r"""Fit several SVMs simultaneously by a truncated Newton method.

    .. math:: \min_{w, b} \tfrac12 |w|^2 + C \sum_i \ell(y_i (w \cdot x_i + b)), \qquad
        \ell(z) = 0,\ (1 + h - z)^2 / 4h,\ 1 - z \text{ for } z \ge 1 + h,\ |1 - z| \le h,\ z \le 1 - h

    The loss is the hinge with its corner rounded (Chapelle, "Training a support vector machine in the primal", 2007; h
    is :data:`CORNER`), so that C has the same meaning as in libsvm. b is not regularised: it is optimised before each
    step, and eliminated from the step's equations. The rows are centred, which removes the direction that all features
    share. Centring does not change the solution, because b compensates for it. The equations of a step, with the
    Hessian ``I + C X^T D X``, are solved approximately by conjugate gradients. A line search on the margins follows,
    which reads no rows (Keerthi and DeCoste, "A modified finite Newton method for fast solution of large scale linear
    SVMs", 2005; Galli and Lin, "A study on truncated Newton methods for linear classification", 2022). SVMs that have
    converged take no further steps.

    An SVM has converged when its gradient g is short relative to w. The objective is strongly convex, so the distance
    of w from the minimum is at most ``|g|``, whatever C is; ``|g|^2 / 2`` is the duality gap.

    Args:
        rows: This rank's share of the rows; all ranks together have at least one row.
        targets: ``(k, m)`` int8, the targets of this rank's rows: 1 positive, -1 negative, 0 ignored. An SVM whose rows
            all have the same sign scores every row with that sign.
        c: Cost C of a row.
        start: Starting point, such as the solution for another C. It affects the number of steps, not the solution.
        tolerance: Largest distance of w from the minimum, relative to ``|w|``.

    Returns:
        The solution, the same on each rank.

    Raises:
        CxlpError: If the features are too large for float32.
    """
    k, device = len(targets), rows.device
    targets = targets.to(device)
    signs = torch.stack([(targets == sign).sum(dim=1) for sign in (1, -1)])
    all_sum(signs)
    live = (signs > 0).all(dim=0).nonzero().flatten()  # SVMs whose rows all have the same sign need no fit
    weights, bias, scores, passes = _begin(rows, k, start)
    size = 0.0
    for step in range(_MOST_STEPS + 1):
        y, f, w = targets[live], scores[live], weights[live]
        bias[live] = b = _best_bias(f, y, bias[live])
        f += b[:, None]
        gradient, offset = torch.zeros_like(w), torch.zeros_like(w)  # offset: X^T D 1
        for part, block in rows.blocks():
            gradient.addmm_(_slope(f[:, part], y[:, part]), block)
            offset.addmm_(_curvature(f[:, part], y[:, part]), block)
            if not step:
                size += float(block.square().sum(dtype=torch.float64))
        gradient, offset = all_sum(gradient).mul_(c).add_(w), all_sum(offset).mul_(c)
        passes += 1
        if not step:
            squares, count = all_sum(torch.tensor([size, len(rows.places)], dtype=torch.float64)).tolist()
            size = (squares / count) ** 0.5  # root mean square length of the rows
        # A gradient shorter than this consists of rounding errors. Needed if w is zero because nothing can be learnt.
        rounding = _ROUNDING * c * size * all_sum(_sum(lambda f, y: _slope(f, y).abs(), f, y))
        length = gradient.norm(dim=1)
        solved = length <= torch.maximum(tolerance * w.norm(dim=1), rounding.float())
        unsolved = from_rank_zero((~solved).double()) > 0  # all ranks must leave the loop together
        if not bool(unsolved.all()):
            live, y, f, w, gradient, offset = (x[unsolved] for x in (live, y, f, w, gradient, offset))
        if not len(live) or step == _MOST_STEPS:
            break
        mass = all_sum(_sum(_curvature, f, y)).mul_(c)
        s, along, products = _newton_step(rows, y, f, gradient, offset, mass, c)
        passes += products
        shift = -c * all_sum(_sum(lambda f, y, a: _curvature(f, y) * a, f, y, along)) / mass.clamp_min(1e-12)
        t = _line_search(f, y, along + shift.float()[:, None], w, s, gradient, c)
        weights[live] = s.mul_(t[:, None]).add_(w)
        scores[live] = f.sub_(bias[live][:, None]).add_(along.mul_(t[:, None]))
        bias[live] += t * shift.float()
    if not bool(torch.isfinite(weights).all() and torch.isfinite(bias).all()):
        raise CxlpError(
            f"the primal solver left the range of float32: features of length {size:.1e} are too large for it. Give "
            "the heads a normalisation to unit length (l2: true), or choose model.frozen.solver: kernel"
        )
    one_sign = ~(signs > 0).all(dim=0)
    weights[one_sign], scores[one_sign] = 0.0, 0.0
    bias[one_sign] = (signs[0].sign() - signs[1].sign())[one_sign].float()
    return Solution(weights, bias, scores.add_(bias[:, None]), passes, len(live))


def _begin(rows: Rows, k: int, start: Solution | None) -> tuple[Tensor, Tensor, Tensor, int]:
    """Return the initial weights, intercepts, scores without intercepts, and the number of passes over the rows."""
    device, m = rows.device, len(rows.places)
    if start is None:
        weights, bias, scores = (torch.zeros(shape, device=device) for shape in ((k, rows.store.dim), (k,), (k, m)))
        return weights, bias, scores, 0
    weights, bias = start.weights.clone(), start.intercepts.clone()
    if start.scores.shape[1] == m:
        return weights, bias, start.scores - bias[:, None], 0
    scores = torch.empty(k, m, device=device)
    for part, block in rows.blocks():
        scores[:, part] = weights @ block.T
    return weights, bias, scores, 1


def _newton_step(
    rows: Rows, y: Tensor, f: Tensor, gradient: Tensor, offset: Tensor, mass: Tensor, c: float
) -> tuple[Tensor, Tensor, int]:
    """Solve ``H s = -gradient`` approximately by conjugate gradients, with the bias eliminated from H.

    Returns:
        The step s ``(k, D)``, the products ``s X^T (k, m)``, and the number of passes over the rows.
    """
    s = torch.zeros_like(gradient)
    r = -gradient
    p = r.clone()
    rr = r.square().sum(dim=1)
    enough = _PRECISION**2 * rr
    going = torch.arange(len(y), device=y.device)
    products = 0
    while products < _MOST_PRODUCTS and len(going):
        products += 1
        hp, total = torch.zeros_like(p), torch.zeros(len(p), dtype=torch.float64, device=p.device)
        for part, block in rows.blocks():
            curved = _curvature(f[going, part], y[going, part]).mul_(p @ block.T)
            hp.addmm_(curved, block)
            total += curved.sum(dim=1, dtype=torch.float64)
        hp, total = all_sum(hp).mul_(c).add_(p), c * all_sum(total)
        hp.addcmul_((total / mass[going].clamp_min(1e-12)).float()[:, None], offset[going], value=-1)
        # p H p >= p p, because H is the identity plus a positive semidefinite matrix; less is a rounding error.
        a = (rr / torch.maximum((p * hp).sum(dim=1), p.square().sum(dim=1)))[:, None]
        s.index_add_(0, going, a * p)
        r.addcmul_(a, hp, value=-1)
        new = r.square().sum(dim=1)
        more = from_rank_zero(new) > enough[going]
        p = p.mul_((new / rr)[:, None]).add_(r)
        rr = new
        if not bool(more.all()):
            p, r, rr, going = p[more], r[more], rr[more], going[more]
    along = torch.empty_like(f)
    for part, block in rows.blocks():
        along[:, part] = s @ block.T
    return s, along, products + 1


def _line_search(f: Tensor, y: Tensor, along: Tensor, w: Tensor, s: Tensor, gradient: Tensor, c: float) -> Tensor:
    """Return step lengths ``(k,)`` that reduce each SVM's slope to a tenth or less: 1 if that suffices."""
    at_start, ws, ss = ((a * s).sum(dim=1).double() for a in (gradient, w, s))
    t = torch.ones_like(at_start)
    low, high = torch.zeros_like(t), torch.full_like(t, torch.inf)
    for _ in range(20):
        ahead = f + t.float()[:, None] * along
        slope = ws + t * ss + c * all_sum(_sum(lambda f, y, a: _slope(f, y) * a, ahead, y, along))
        wanted = from_rank_zero((slope.abs() > 0.1 * at_start.abs()).double()) > 0
        if not bool(wanted.any()):
            break
        low, high = torch.where(slope < 0, t, low), torch.where(slope < 0, high, t)
        t = torch.where(wanted, torch.where(high.isinf(), 2 * t, (low + high) / 2), t)
    return t.float()


def _best_bias(f: Tensor, y: Tensor, b: Tensor) -> Tensor:
    """Minimise each SVM's loss over its bias ``(k,)`` by Newton's method with bisection."""
    b = b.double()
    low, high, reach = torch.full_like(b, -torch.inf), torch.full_like(b, torch.inf), torch.ones_like(b)
    for _ in range(60):
        ahead = f + b.float()[:, None]
        slope, curvature = (all_sum(_sum(of, ahead, y)) for of in (_slope, _curvature))
        off = from_rank_zero(((slope.abs() > 1e-3) & (high - low > 1e-6)).double()) > 0
        if not bool(off.any()):
            break
        low, high = torch.where(slope < 0, b, low), torch.where(slope < 0, high, b)
        far = b - reach * slope.sign()  # the step if there is no curvature
        new = torch.where(curvature > 1e-6, b - slope / curvature.clamp_min(1e-6), far)
        new = torch.where((new <= low) | (new >= high), torch.where((high - low).isinf(), far, (low + high) / 2), new)
        b, reach = torch.where(off, new, b), 2 * reach
    return b.float()


def _slope(f: Tensor, y: Tensor) -> Tensor:
    """Return the derivative of the loss with respect to the score."""
    y = y.to(f.dtype)
    return (1 + CORNER - y * f).div_(2 * CORNER).clamp_(0, 1).mul_(-y)


def _curvature(f: Tensor, y: Tensor) -> Tensor:
    """Return the second derivative of the loss with respect to the score."""
    y = y.to(f.dtype)
    return ((1 - y * f).abs_() < CORNER).to(f.dtype).mul_(y.abs()).div_(2 * CORNER)


def _sum(of: Callable[..., Tensor], *arrays: Tensor) -> Tensor:
    """Sum a function of ``(k, m)`` arrays over their second dimension: ``(k,)`` float64, a few SVMs at a time."""
    step = max(1, _CHUNK // max(1, arrays[0].shape[1]))
    parts = zip(*(torch.split(a, step) for a in arrays), strict=True)
    return torch.cat([of(*part).sum(dim=1, dtype=torch.float64) for part in parts])
