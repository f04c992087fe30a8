"""Several rows of x times a codebook weight: vectors are fetched once and meet all rows on tensor cores, in half precision.

    y[m, r v + i] = sum_c x[m, c] (s_c (C[idx[r, c], i] + C_res[idx_res[r, c], i]) + m_c)

A program takes a few rows of pieces and a share of the columns, 64 at a time.  The vectors that it fetches lie side by side as
one operand of a tensor-core product; rows of x are the other.  The last program of a few rows adds up what all shares gave, in
order: the same bits every time.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from lowbit_nb.kernels import shares
from lowbit_nb.kernels.general import codes, plane
from lowbit_nb.kernels.launching import room

PIECES = 16  # rows of pieces that a program takes
PROGRAMS = 132 * 4  # about as many as an H200 holds at once
MOST = 16  # rows of x


def product(x: Tensor, o: tuple, part: tuple, step: int, dtype: torch.dtype) -> Tensor:
    """x @ W_hat.T of one set of columns.

    Shapes:  x [M, d_in] float16 or bfloat16, M up to 16; o, part of `gather`; step: columns of a whole slice; returns
             [M, d_out] in `dtype`.
    Units:   those of the layer's output; products in float16, sums in float32.
    Raises:  nothing; `gather.product` has looked at the shapes.
    Source:  this project.
    Differs: no difference.
    """
    main, second, columns, offset = part
    M, rows, n = len(x), len(main.planes[0]), o.d_in if columns is None else len(columns)
    y = torch.empty(M, o.d_out, dtype=dtype, device=x.device)
    res = second or main
    w = [main.planes[0], main.planes[-1], res.planes[0], res.planes[-1]]
    few = triton.cdiv(rows, PIECES)
    n_shares = max(1, min(n // step, PROGRAMS // few))
    n_rows = few * PIECES * main.v
    partial = room(x.device, "partial", triton.next_power_of_2(n_shares * n_rows * M), torch.float32)
    tickets = room(x.device, "tickets", max(1024, triton.next_power_of_2(few)), torch.int32)
    _product[(few, n_shares)](
        x, o.scale, o.bias, columns, offset, *w, main.C, res.C, y, partial, tickets, n_rows, o.d_out, o.d_in, rows, n,
        *(t.stride(0) for t in w), BITS=main.bits, RES=second.bits if second else 0, V=main.v, PADDED=main.C.shape[-1],
        STEP=step, PIECES=PIECES, M=M, SHARES=n_shares, num_warps=4,
        num_stages=1)  # what is copied ahead would go past the first cache
    return y


@triton.jit
def _product(X, SCALE, BIAS, COLUMNS, OFFSET, I0, I1, R0, R1, C, C_RES, Y, PARTIAL, TICKETS, n_rows, d_out, d_in, rows, n,
             i0, i1, r0, r1, BITS: tl.constexpr, RES: tl.constexpr, V: tl.constexpr, PADDED: tl.constexpr, STEP: tl.constexpr,
             PIECES: tl.constexpr, M: tl.constexpr, SHARES: tl.constexpr):
    share = tl.program_id(1)
    piece = tl.program_id(0) * PIECES + tl.arange(0, PIECES)
    line = tl.minimum(piece, rows - 1).to(tl.int64)[None, :]
    lane = tl.arange(0, 64)
    acc = tl.zeros((16, PIECES * PADDED), tl.float32)
    bias = tl.zeros((16,), tl.float32)
    whole = n // STEP
    for t in range(share * whole // SHARES, (share + 1) * whole // SHARES):
        words = (lane,) * 16
        for j in tl.static_range(STEP // 64):
            main, low = indices(I0 + line * i0, I1 + line * i1, t * STEP, n, lane[:, None], j, words, 0, BITS, STEP)
            second, high = main, low
            if RES > 0:
                second, high = indices(R0 + line * r0, R1 + line * r1, t * STEP, n, lane[:, None], j, words, 8, RES, STEP)
            words = low + high
            acc, bias = _add(acc, bias, X, SCALE, BIAS, COLUMNS, OFFSET, C, C_RES, main, second, t * STEP + j * 64 + lane, d_in,
                             n, RES, M, PADDED)
    if share == SHARES - 1:
        for first in range(whole * STEP, n, 64):  # what is left
            main = anywhere(I0 + line * i0, I1 + line * i1, first, n, lane[:, None], BITS)
            second = main
            if RES > 0:
                second = anywhere(R0 + line * r0, R1 + line * r1, first, n, lane[:, None], RES)
            acc, bias = _add(acc, bias, X, SCALE, BIAS, COLUMNS, OFFSET, C, C_RES, main, second, first + lane, d_in, n, RES, M,
                             PADDED)
    acc += bias[:, None]
    m, at = tl.arange(0, 16), tl.arange(0, PIECES * PADDED)
    row = (tl.program_id(0) * PIECES + at // PADDED) * V + at % PADDED
    real = (m < M)[:, None] & (at % PADDED < V)[None, :]
    tl.store(PARTIAL + (share * M + m[:, None]) * n_rows + row[None, :], acc, mask=real)
    shares._add(Y, PARTIAL, TICKETS, n_rows, d_out, tl.program_id(0), tl.program_id(0) + 1, SHARES, M, PIECES * V, 1)


@triton.jit
def indices(I0, I1, first, n, lane, j: tl.constexpr, words, at: tl.constexpr, BITS: tl.constexpr, STEP: tl.constexpr):
    """Plane j of indices of up to 16 bits, and the eight words they were taken from.

    Shapes:  as `general.plane`; index [n], two times eight words.
    Units:   indices.
    Raises:  nothing.
    Source:  this project.
    Differs: no difference.
    """
    index, low = plane(I0, first, n, lane, j, words, at, min(BITS, 8), STEP)
    if BITS > 8:
        high, rest = plane(I1, first, n, lane, j, words, at + 4, BITS - 8, STEP)
        return index | (high << 8), low + rest
    else:
        return index, low + low


@triton.jit
def anywhere(I0, I1, first, n, lane, BITS: tl.constexpr):
    """Indices of up to 16 bits anywhere in a row.

    Shapes:  as `general.codes`.
    Units:   indices.
    Raises:  nothing.
    Source:  this project.
    Differs: no difference.
    """
    index = codes(I0, first, n, lane, min(BITS, 8))
    if BITS > 8:
        index |= codes(I1, first, n, lane, BITS - 8) << 8
    return index


@triton.jit
def _add(acc, bias, X, SCALE, BIAS, COLUMNS, OFFSET, C, C_RES, main, second, column, d_in, n, RES: tl.constexpr,
         M: tl.constexpr, PADDED: tl.constexpr):
    """Vectors of 64 columns times x there; nothing from column n on."""
    inside = column < n
    at = column if COLUMNS is None else tl.load(COLUMNS + column, mask=inside, other=0)
    m = tl.arange(0, 16)
    x = tl.load(X + m[:, None] * d_in + at[None, :], mask=(m < M)[:, None] & inside[None, :], other=0.0)
    if BIAS is not None:
        bias += tl.sum(x.to(tl.float32) * tl.load(BIAS + at, mask=inside, other=0.0).to(tl.float32)[None, :], 1)
    if SCALE is not None:
        x = x.to(tl.float32) * tl.load(SCALE + at, mask=inside, other=0.0).to(tl.float32)[None, :]
    i = tl.arange(0, PADDED)[None, None, :]
    if OFFSET is not None:
        main += tl.load(OFFSET + column, mask=inside, other=0)[:, None]
    w = tl.load(C + main[:, :, None] * PADDED + i)
    if RES > 0:
        if OFFSET is not None:
            second += tl.load(OFFSET + n + column, mask=inside, other=0)[:, None]
        w += tl.load(C_RES + second[:, :, None] * PADDED + i)
    w = tl.reshape(w, (64, main.shape[1] * PADDED))
    kind = X.dtype.element_ty
    return tl.dot(x.to(kind), w.to(kind), acc), bias
