"""Where the scales of a sign plane begin:  W_hat_ij = v_j (a_i B_ij + mu_i)  with the signs B given.

    mean     what PTQ1.61 starts from: the row's mean, the row's mean |w|, v = 1
    plane    the best level and v = 1
    weight   the best fit to the weight: a v.T is the rank-one fit of |W - mu|
    output   the best fit to the layer's output under H, by alternating closed-form solutions
"""

from __future__ import annotations

import torch
from torch import Tensor

from lowbit_nb.onebit import signs

STARTS = ("mean", "plane", "weight", "output")


def start_scales(W: Tensor, start: str = "weight") -> tuple[Tensor, Tensor, Tensor]:
    """Level, mean and column factors from the weight alone; the signs are sgn(W - mu).

    Shapes:  W [d_out, d_in]; returns a, mu [d_out], v [d_in].
    Units:   those of the weight; v has none.
    Raises:  ValueError for an unknown start.
    Source:  mean: PTQ1.61 code.  weight: the rank-one fit of ARB-LLM_RC and OneBit.
    Differs: zeros are weights like all others.
    """
    if start not in STARTS:
        raise ValueError(f"start={start!r} is unknown; use one of {', '.join(STARTS)}")
    mu, a = signs.one_plane(W)
    v = torch.ones_like(W[0])
    if start == "mean":
        return W.abs().mean(1), mu, v
    if start == "plane":
        return a, mu, v
    a, v = signs.rank_one((W - mu[:, None]).abs())
    return a, mu, v  # mean(v) = 1: the mean keeps its size


def fit_to_output(B: Tensor, v: Tensor, H: Tensor, C: Tensor, rounds: int = 3,
                  ridge: float = 1e-6) -> tuple[Tensor, Tensor, Tensor]:
    """Scales that minimise  sum_i w_hat_i H w_hat_i.T - 2 w_hat_i . C_i:  rows and columns in turn, each exactly.

    A row's (a_i, mu_i) solve two equations with the regressors v B_i and v; v solves (H o Z.T Z) v = sum_i Z_i o C_i with
    Z = a B + mu.  With C = W H this is the error of the layer's output.

    Shapes:  B [d_out, d_in] of +1 and -1; v [d_in] to begin with; H [d_in, d_in]; C [d_out, d_in]; returns a, mu [d_out],
             v [d_in] with mean |v| = 1.
    Units:   those of the weight; v has none.
    Raises:  nothing.
    Source:  the row and column solutions of output-aligned 1-bit PTQ (arXiv 2512.21651), with a mean beside the level.
    Differs: no loop over columns of signs; a relative ridge keeps the systems solvable.
    """
    B, v, H, C = (t.double() for t in (B, v, H, C))
    for k in range(rounds + 1):
        a, mu = _rows(B, v, H, C, ridge)
        if k == rounds:  # rows have the last word
            break
        Z = a[:, None] * B + mu[:, None]
        A = H * (Z.T @ Z)
        A.diagonal().add_(ridge * A.diagonal().mean() + torch.finfo(A.dtype).tiny)
        v = torch.cholesky_solve((Z * C).sum(0)[:, None], torch.linalg.cholesky(A))[:, 0]
    gauge = v.abs().mean().clamp(min=torch.finfo(v.dtype).tiny)
    return (a * gauge).float(), (mu * gauge).float(), (v / gauge).float()


def _rows(B: Tensor, v: Tensor, H: Tensor, C: Tensor, ridge: float) -> tuple[Tensor, Tensor]:
    P = B * v
    pp, pv, vv = ((P @ H) * P).sum(1), P @ (H @ v), v @ H @ v
    pp, vv = pp * (1 + ridge), vv * (1 + ridge)
    pc, vc = (P * C).sum(1), C @ v
    det = pp * vv - pv.square()
    det = det.clamp(min=torch.finfo(det.dtype).tiny)  # a layer of zeros
    return (vv * pc - pv * vc) / det, (pp * vc - pv * pc) / det
