"""The range search of `grid.fit` in one kernel: every candidate ruler of a group is tried on weights read once."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

ROWS = 16  # groups a program tries rulers on
HALF_EVEN = tl.constexpr(12582912.0)  # 1.5 * 2**23: adding it rounds a float32 to an integer, ties to even


def best(W: Tensor, s: Tensor, z: Tensor, importance: Tensor | None, q_max: int) -> Tensor:
    """Which candidate gives each group the least sum of importance * (W_hat - W)**2.

    Shapes:  W [n, g], a group a row; s, z [n_candidates, n]; importance [n_groups, g], group r of W weighted by row
             r mod n_groups, or None; returns [n] int64, the first of equals.
    Units:   s is real units per step, z is in integer steps.
    Raises:  nothing.
    Source:  GPTQ code (quant.py, `mse=True`).
    Differs: all candidates in one launch.
    """
    n, g = W.shape
    index = torch.empty(n, dtype=torch.int64, device=W.device)
    weighted = importance is not None
    W, s, z = W.contiguous(), s.contiguous(), z.contiguous()
    _best[(triton.cdiv(n, ROWS),)](W, s, z, importance.contiguous() if weighted else W, index, n, g, len(s), q_max,
                                   len(importance) if weighted else 1, WEIGHTED=weighted,
                                   G=triton.next_power_of_2(g), ROWS=ROWS, num_warps=4)
    return index


@triton.jit
def _best(W, S, Z, IMPORTANCE, INDEX, n, g, n_candidates, q_max, n_groups,
          WEIGHTED: tl.constexpr, G: tl.constexpr, ROWS: tl.constexpr):
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    i = tl.arange(0, G)
    mine = row < n
    inside = mine[:, None] & (i < g)[None, :]
    w = tl.load(W + row[:, None].to(tl.int64) * g + i[None, :], mask=inside, other=0.0)
    if WEIGHTED:
        h = tl.load(IMPORTANCE + (row % n_groups)[:, None] * g + i[None, :], mask=inside, other=0.0)
    else:
        h = tl.where(inside, 1.0, 0.0)
    least = tl.full([ROWS], float("inf"), tl.float32)
    index = tl.zeros([ROWS], tl.int32)
    for k in range(n_candidates):
        s = tl.load(S + k * n + row, mask=mine, other=1.0)
        z = tl.load(Z + k * n + row, mask=mine, other=0.0)
        steps = tl.div_rn(w, s[:, None]) + z[:, None]
        inner = tl.minimum(tl.maximum(steps, -4096.0), 4096.0)
        q = tl.minimum(tl.maximum((inner + HALF_EVEN) - HALF_EVEN, 0.0), q_max)
        loss = tl.sum((q - steps) * (q - steps) * h, 1) * s * s
        better = loss < least
        least = tl.where(better, loss, least)
        index = tl.where(better, k, index)
    tl.store(INDEX + row, index.to(tl.int64), mask=mine)
