"""Many columns of vectors in one kernel: nearest vectors for a column's pieces, then what the later columns make up for.

Pieces of different rows never meet, so each program takes a few of them through all columns of a stretch.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from lowbit_nb.kernels.nearest import columns, scan


def walk(Wt: Tensor, T: Tensor, V: Tensor, Cs: list[Tensor], held: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Take the nearest vectors of n columns one after the other, each with the errors of those before it.

    Cs    the codebook, and that of the second stage if there is one, which corrects the first
    held  what the second stage holds until it is its turn; None: nothing

    Shapes:  Wt, T [n, d_out] original and current values, T updated in place to what each column was when it was rounded;
             V [n, n], read above its diagonal; Cs one or two [k, v]; held [n, R, v] with R = ceil(d_out / v); returns
             indices [stages, n, R] int32 and rounded values [n, d_out].
    Units:   those of the weight.
    Raises:  nothing.
    Source:  VPTQ, Alg. 1 (inner loop).
    Differs: one kernel for all columns, no launch a column; their current values stay in registers, so n is 64 or so.
    """
    (n, d_out), v, V = T.shape, Cs[0].shape[1], V.contiguous()
    R, wide = triton.cdiv(d_out, v), triton.next_power_of_2(v)
    idx = torch.empty(len(Cs), n, R, dtype=torch.int32, device=T.device)
    W_hat = torch.empty_like(T, memory_format=torch.contiguous_format)
    held, first, last = (None if held is None else held.contiguous()), Cs[0].contiguous(), Cs[-1].contiguous()
    P = min(8, max(2, triton.next_power_of_2(R // 264)), max(1, 64 // wide))  # pieces a program carries
    share = dict(num_warps=8, maxnreg=None if P < 8 else 128)  # so that all programs run at the same time
    if P == 8 and len(first) <= 2**13:
        share = dict(num_warps=4, maxnreg=168)
    _walk[(triton.cdiv(R, P),)](
        Wt, T, V, T if held is None else held, first, columns(first), last, columns(last), idx, W_hat, n, d_out, R,
        len(first), len(last), Wt.stride(0), T.stride(0), HOLD=held is not None, STAGES=len(Cs),
        K=max(2, triton.next_power_of_2(n)), V=v, WIDE=wide, P=P, COLS=32 * share["num_warps"], **share)
    return idx, W_hat


@triton.jit
def _walk(W, T, VV, HELD, C, CT, C2, CT2, IDX, W_HAT, n, d_out, R, k, k2, w_col, t_col, HOLD: tl.constexpr,
          STAGES: tl.constexpr, K: tl.constexpr, V: tl.constexpr, WIDE: tl.constexpr, P: tl.constexpr, COLS: tl.constexpr):
    piece = tl.program_id(0) * P + tl.arange(0, P)
    d = tl.arange(0, WIDE)
    row = piece[:, None] * V + d[None, :]  # [piece, coordinate]
    real = (d < V)[None, :] & (piece >= 0)[:, None]
    mine = real & (row < d_out)
    i = tl.arange(0, K)
    t = tl.load(T + i[:, None, None] * t_col + row[None], mask=(i < n)[:, None, None] & mine[None], other=0.0)  # current values
    for j in range(n):
        t_j = tl.sum(tl.where((i == j)[:, None, None], t, 0.0), 0)
        tl.store(T + j * t_col + row, t_j, mask=mine)
        tl.debug_barrier()  # every thread is about to read all of it
        x = ()
        for c in tl.static_range(V):
            x_c = tl.load(T + j * t_col + piece * V + c, mask=piece * V + c < d_out, other=0.0)
            if HOLD:
                x_c = x_c - tl.load(HELD + (j * R + piece) * V + c, mask=piece < R, other=0.0)
            x = x + (x_c,)
        idx = scan(x, x, CT, k, V, False, P, COLS)
        tl.store(IDX + j * R + piece, idx, mask=piece < R)
        q = tl.load(C + idx[:, None] * V + d[None, :], mask=real, other=0.0)
        if STAGES == 2:
            left = ()
            for c in tl.static_range(V):
                t_c = tl.load(T + j * t_col + piece * V + c, mask=piece * V + c < d_out, other=0.0)
                left = left + (t_c - tl.load(C + idx * V + c),)
            idx = scan(left, left, CT2, k2, V, False, P, COLS)
            tl.store(IDX + (n + j) * R + piece, idx, mask=piece < R)
            q += tl.load(C2 + idx[:, None] * V + d[None, :], mask=real, other=0.0)
        tl.store(W_HAT + j * d_out + row, q, mask=mine)
        e = tl.where(mine, tl.load(W + j * w_col + row, mask=mine, other=0.0) - q, 0.0)
        v = tl.load(VV + j * n + i, mask=(i > j) & (i < n), other=0.0)
        t += v[:, None, None] * e[None]
