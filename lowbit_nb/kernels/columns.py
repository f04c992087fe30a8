"""Many columns of error feedback in one kernel: on a GPU, rows walk side by side and nothing waits for Python.

The walk is that of `feedback`: round the column, tell the columns still to come.  Rows never meet, so each program takes a few
of them through all columns of a stretch with their current values in registers.
"""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

ROWS = 16  # rows a program carries
HALF_EVEN = tl.constexpr(12582912.0)  # 1.5 * 2**23: adding it rounds a float32 to an integer, ties to even


def walk(Wt: Tensor, T: Tensor, V: Tensor, s: Tensor, z: Tensor, q_max: int, real: bool = False, D: Tensor | None = None,
         tau: float = math.inf) -> tuple[Tensor, Tensor, Tensor]:
    """Round k columns one after the other, each with the errors of those before it.

    real  z is a real number: round(t / s + z); otherwise round(t / s) + z
    D, tau  a column's cost D_j: where D_j (t - w_hat)**2 exceeds tau, a float16 correction is kept and added

    Shapes:  Wt, T [k, d_out] original and current values, T updated in place to what each column was when it was rounded;
             V [k, k] unit upper triangular; s, z [k, d_out] (a stride of 0 shares a ruler); returns codes uint8, rounded
             values float32 and corrections float16, all [k, d_out].
    Units:   those of the weight; codes are in integer steps.
    Raises:  nothing.
    Source:  GPTQ, Alg. 1 (inner loop); SpQR, Alg. 1 (outlier test).
    Differs: one kernel for all columns of a stretch, no launch a column.
    """
    (k, d_out), V = T.shape, V.contiguous()
    q, W_hat = torch.empty_like(T, dtype=torch.uint8), torch.empty_like(T)
    keep = math.isfinite(tau)
    kept = torch.zeros_like(T, dtype=torch.float16) if keep else torch.empty(0, dtype=torch.float16, device=T.device)
    _walk[(triton.cdiv(d_out, ROWS),)](
        Wt, T, V, s, z, q, W_hat, kept, T if D is None else D, tau if keep else 0.0, k, d_out, q_max, Wt.stride(0), T.stride(0),
        V.stride(0), s.stride(0), z.stride(0), REAL=real, KEEP=keep, K=triton.next_power_of_2(k), ROWS=ROWS, num_warps=1)
    return q, W_hat, kept


@triton.jit
def _walk(W, T, V, S, Z, Q, W_HAT, KEPT, D, tau, k, d_out, q_max, w_col, t_col, v_col, s_col, z_col,
          REAL: tl.constexpr, KEEP: tl.constexpr, K: tl.constexpr, ROWS: tl.constexpr):
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    mine = row < d_out
    i = tl.arange(0, K)
    at = i[:, None] * t_col + row[None, :]
    inside = (i < k)[:, None] & mine[None, :]
    t = tl.load(T + at, mask=inside, other=0.0)  # current values: [column, row]
    for j in range(k):
        t_j = tl.sum(tl.where((i == j)[:, None], t, 0.0), 0)
        s = tl.load(S + j * s_col + row, mask=mine, other=1.0)
        z = tl.load(Z + j * z_col + row, mask=mine, other=0.0)
        x = tl.div_rn(t_j, tl.where(s > 0, s, 1.0))
        if REAL:
            x = x + z
        x = tl.minimum(tl.maximum(x, -4096.0), 4096.0)
        q = (x + HALF_EVEN) - HALF_EVEN
        if not REAL:
            q = q + z
        q = tl.minimum(tl.maximum(q, 0.0), q_max)
        w_hat = (q - z) * s
        if KEEP:
            miss = t_j - w_hat
            kept = tl.where(miss * miss * tl.load(D + j) > tau, miss, 0.0).to(tl.float16)
            tl.store(KEPT + j * d_out + row, kept, mask=mine)
            w_hat = w_hat + kept.to(tl.float32)
        tl.store(Q + j * d_out + row, q.to(tl.uint8), mask=mine)
        tl.store(W_HAT + j * d_out + row, w_hat, mask=mine)
        e = tl.load(W + j * w_col + row, mask=mine, other=0.0) - w_hat
        v = tl.load(V + j * v_col + i, mask=(i > j) & (i < k), other=0.0)
        t += v[:, None] * e[None, :]
    tl.store(T + at, t, mask=inside)
