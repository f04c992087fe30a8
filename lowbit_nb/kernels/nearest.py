"""The nearest vector of a codebook for many points: every program compares a few points with all vectors, no score is kept.

Products are plain float32 ones: on tensor cores rounding would choose for near ties, and a piece has too few numbers to gain.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

LONGEST = 32  # numbers of a point: they stay in registers
MANY = 2**15  # points enough for every warp to have its own; fewer points share a program's warps


def nearest(points: Tensor, centroids: Tensor, weights: Tensor | None = None) -> Tensor:
    """The index of the nearest vector, argmin_i sum_c weights_c (x_c - C_ic)**2; of equal ones the first.

    Shapes:  points [n, v]; centroids [k, v]; weights of coordinates [n, v], [v] or None (all 1); returns [n] int64.
    Units:   those of the points.
    Raises:  nothing.
    Source:  Lloyd's assignment step; the codeword search of VPTQ, Eq. 8.
    Differs: distances are never written to memory.
    """
    (n, v), weighted = points.shape, weights is not None
    points, index = points.contiguous(), torch.empty(len(points), dtype=torch.int64, device=points.device)
    weights = weights.expand_as(points) if weighted else points
    per = max(1, 2 ** (7 - weighted) // triton.next_power_of_2(v))  # points a thread carries
    rows, cols = (4 * min(per, 16), 32) if n >= MANY else (min(per, 8), 128)
    _nearest[(triton.cdiv(n, rows),)](points, weights, columns(centroids), index, n, len(centroids), weights.stride(0),
                                      weights.stride(1), V=v, WEIGHTED=weighted, ROWS=rows, COLS=cols, num_warps=4)
    return index


def columns(C: Tensor) -> Tensor:
    """A codebook as the kernels read it: one coordinate after the other, at last half of each vector's square.

    Shapes:  C [k, v]; returns [v + 1, k].
    Units:   those of the points; the last row squared.
    Raises:  nothing.
    Source:  this project.
    Differs: no difference.
    """
    return torch.cat([C.T, C.square().sum(1)[None] / 2])


@triton.jit
def _nearest(X, W, CT, INDEX, n, k, w_row, w_col, V: tl.constexpr, WEIGHTED: tl.constexpr, ROWS: tl.constexpr,
             COLS: tl.constexpr):
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    mine = row < n
    x = ()
    w = ()
    for d in tl.static_range(V):
        x_d = tl.load(X + row.to(tl.int64) * V + d, mask=mine, other=0.0)
        if WEIGHTED:
            w_d = tl.load(W + row.to(tl.int64) * w_row + d * w_col, mask=mine, other=0.0)
            w = w + (w_d,)
            x_d = x_d * w_d
        x = x + (x_d,)
    tl.store(INDEX + row, scan(x, w, CT, k, V, WEIGHTED, ROWS, COLS).to(tl.int64), mask=mine)


@triton.jit
def scan(x, w, CT, k, V: tl.constexpr, WEIGHTED: tl.constexpr, ROWS: tl.constexpr, COLS: tl.constexpr):
    """Inside a kernel: the first index of the least distance, found as the greatest x . C_i - |C_i|**2 / 2.

    Shapes:  x, w tuples of V tensors [ROWS], x times w already where WEIGHTED; CT [V + 1, k] as `columns`; returns [ROWS].
    Units:   those of the points.
    Raises:  nothing.
    Source:  as `nearest`.
    Differs: no difference.
    """
    best = tl.full([ROWS, COLS], float("-inf"), tl.float32)
    at = tl.zeros([ROWS, COLS], tl.int32)
    lane = tl.arange(0, COLS)
    for i in tl.range(0, k, COLS, loop_unroll_factor=4):  # loads of the next vectors while these are compared
        there = i + lane < k
        if WEIGHTED:
            s = tl.where(there, 0.0, float("-inf"))[None, :] + tl.zeros([ROWS, COLS], tl.float32)
        else:
            s = -tl.load(CT + V * k + i + lane, mask=there, other=float("inf"))[None, :]
        for d in tl.static_range(V):
            c = tl.load(CT + d * k + i + lane, mask=there, other=0.0)[None, :]
            s = s + x[d][:, None] * c
            if WEIGHTED:
                s = s - w[d][:, None] * (c * c * 0.5)
        better = s > best
        best = tl.where(better, s, best)
        at = tl.where(better, i, at)
    at += lane[None, :]
    return tl.min(tl.where(best == tl.max(best, 1)[:, None], at, 2147483647), 1)
