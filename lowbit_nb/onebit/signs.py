"""Sign planes: what one bit a weight, and a few numbers a row, can hold.

    one plane     w_hat = mu + a B                B = sgn(w - mu),  a = mean |w - mu|
    two planes    w_hat = mu + a1 B1 + a2 B2      the second is the sign of what the first left over
    split         two groups by |w|, a plane each: four levels a row, a 2-bit quantizer in disguise
    rank one      w_hat_ij = u_i v_j B_ij         u v.T the best rank-one fit of |W|

sgn(0) = +1: a third level would not fit in one bit.  Statistics are taken over a support (a boolean mask); a row without
support gets mu = a = 0.
"""

from __future__ import annotations

import torch
from torch import Tensor

PERCENTILES = tuple(p / 100 for p in range(10, 91))  # where the split search looks
CHUNK = 2**24  # numbers that the split search holds at once


def sgn(x: Tensor) -> Tensor:
    """+1 where x >= 0, else -1.

    Shapes:  any; returns the same.
    Units:   none.
    Raises:  nothing.
    Source:  BiLLM.
    Differs: torch.sign, which its code calls, gives 0 for 0.

    >>> sgn(torch.tensor([-2.0, 0.0, 3.0])).tolist()
    [-1.0, 1.0, 1.0]
    """
    return torch.where(x >= 0, 1.0, -1.0).to(x.dtype)


def row_mean(x: Tensor, support: Tensor | None = None) -> Tensor:
    """The mean of every row over its support; 0 where that is empty.

    Shapes:  x [..., d_in]; support broadcastable to x, boolean, or None for all; returns [...].
    Units:   those of x.
    Raises:  nothing.
    Source:  BiLLM code (masked means).
    Differs: no difference.

    >>> row_mean(torch.tensor([[1.0, 5.0, 3.0]]), torch.tensor([True, False, True])).tolist()
    [2.0]
    """
    if support is None:
        return x.mean(-1)
    return (x * support).sum(-1) / (support.expand(x.shape)).sum(-1).clamp(min=1)


def one_plane(W: Tensor, support: Tensor | None = None, centred: bool = True) -> tuple[Tensor, Tensor]:
    """Mean and level of one sign plane; the signs are sgn(W - mu).

    a = mean |W - mu| is the best level for these signs, and the error that is left is sum (W - mu)**2 - n a**2.

    Shapes:  W [d_out, d_in]; returns mu, a [d_out].
    Units:   those of the weight.
    Raises:  nothing.
    Source:  XNOR-Net, Sec. 3.1 (a = mean |w|); BiLLM code (the mean, which its paper leaves out).
    Differs: no difference.

    >>> mu, a = one_plane(torch.tensor([[1.0, 3.0, -1.0, -3.0]]))
    >>> mu.item(), a.item()
    (0.0, 2.0)
    """
    mu = row_mean(W, support) if centred else torch.zeros_like(W[:, 0])
    return mu, row_mean((W - mu[:, None]).abs(), support)


def two_planes(W: Tensor, support: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """One mean and the levels of two sign planes, the second of what the first leaves over.

    mu is the sum of both means; the signs are B1 = sgn(W - mu1) and B2 = sgn(W - mu1 - a1 B1 - mu2).

    Shapes:  W [d_out, d_in]; returns mu [d_out, 2] (one a plane), a1, a2 [d_out].
    Units:   those of the weight.
    Raises:  nothing.
    Source:  BiLLM (residual approximation) and its code.
    Differs: no difference.
    """
    mu1, a1 = one_plane(W, support)
    left = residual(W, mu1, a1)
    mu2, a2 = one_plane(left, support)
    return torch.stack([mu1, mu2], -1), a1, a2


def residual(W: Tensor, mu: Tensor, a: Tensor) -> Tensor:
    """W - mu - a sgn(W - mu): what one plane leaves over.

    Shapes:  W [..., d_out, d_in]; mu, a [..., d_out]; returns the shape of W.
    Units:   those of the weight.
    Raises:  nothing.
    Source:  BiLLM.
    Differs: no difference.
    """
    centred = W - mu[..., None]
    return centred - a[..., None] * sgn(centred)


def plane_error(W: Tensor, support: Tensor) -> Tensor:
    """The squared error of one plane on a support, without making it: sum (w - mu)**2 - n a**2.

    Shapes:  W [d_out, d_in]; support [..., d_out, d_in]; returns [..., d_out].
    Units:   those of the weight, squared.
    Raises:  nothing.
    Source:  this project, from BiLLM.
    Differs: no difference.
    """
    n = support.sum(-1)
    mu = row_mean(W.expand(support.shape), support)
    centred = (W - mu[..., None]) * support
    return centred.square().sum(-1) - centred.abs().sum(-1).square() / n.clamp(min=1)


def split_errors(W: Tensor, thresholds: Tensor, live: Tensor | None = None) -> Tensor:
    """The squared error of every row if it is split at each threshold of |W|, one plane on either side.

    Shapes:  W [d_out, d_in]; thresholds [k]; live [d_in] boolean, the columns that take part; returns [k, d_out].
    Units:   those of the weight, squared.
    Raises:  nothing.
    Source:  BiLLM (bell-shaped distribution splitting).
    Differs: many thresholds at once.
    """
    W = W if live is None else W[:, live]
    far = []
    for some in thresholds.split(max(1, CHUNK // max(1, W.numel()))):
        outside = W.abs() >= some[:, None, None]
        far.append(plane_error(W, outside) + plane_error(W, ~outside))
    return torch.cat(far)


def split_threshold(W: Tensor, live: Tensor | None = None, per_row: bool = False) -> Tensor:
    """The threshold of |W| with the least error, among the percentiles of |W|: one for all rows together, or one a row.

    Shapes:  W [d_out, d_in]; live as in `split_errors`; returns a scalar, or [d_out, 1].
    Units:   those of the weight.
    Raises:  nothing.
    Source:  BiLLM code (81 percentiles from 10 to 90).
    Differs: percentiles of the columns that take part; the code counts the zeros that stand for salient columns too.  A
             threshold a row costs no storage, as thresholds are not stored.
    """
    size = (W if live is None else W[:, live]).abs().float().flatten()
    thresholds = torch.quantile(size, torch.tensor(PERCENTILES, device=W.device, dtype=size.dtype)).to(W.dtype)
    errors = split_errors(W, thresholds, live)
    return thresholds[errors.argmin(0)][:, None] if per_row else thresholds[errors.sum(1).argmin()]


def rank_one(A: Tensor, support: Tensor | None = None, iterations: int = 15) -> tuple[Tensor, Tensor]:
    """The best u v.T for a matrix without negative entries, by alternating least squares over a support.

    u_i = sum_j A_ij v_j / sum_j v_j**2  and  v_j = sum_i A_ij u_i / sum_i u_i**2,  sums over the support, in turn

    Shapes:  A [d_out, d_in]; support the same, boolean, or None; returns u [d_out], v [d_in] with mean(v) = 1.
    Units:   those of A in u; v has none.
    Raises:  nothing.
    Source:  ARB-LLM_RC (row and column scales); without a support it is the first singular pair (OneBit).
    Differs: the gauge is fixed; a row or column without support gets 0 or 1.
    """
    M = torch.ones_like(A) if support is None else support.to(A.dtype)
    A = A * M
    v = torch.ones_like(A[0])
    for _ in range(iterations):
        u = _over(A @ v, M @ v.square(), 0.0)
        v = _over(A.T @ u, M.T @ u.square(), 1.0)
    u, gauge = _over(A @ v, M @ v.square(), 0.0), v.mean()
    return u * gauge, v / gauge


def _over(x: Tensor, y: Tensor, empty: float) -> Tensor:
    return torch.where(y > 0, x / y.clamp(min=torch.finfo(y.dtype).tiny), empty)
