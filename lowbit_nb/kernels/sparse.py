"""Corrections at single places of a weight, in compressed rows: what SpQR adds to its dense product.

    y[m, o] = base[m, o] + sum_{ptr[o] <= e < ptr[o + 1]} values[e] * x[m, cols[e]]

A program takes a few rows and walks along their corrections; nobody else writes those rows, so the same bits every time.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

ROWS = 4  # rows a program takes
SPAN = 64  # corrections of a row it takes at once
TOKENS = 4  # rows of x that share a correction


class Operand(NamedTuple):
    """Compressed rows, ready for `product`: ptr [d_out + 1] int32; cols [n] int16 or int32; values [n]; d_in.

    Source: this project. Differs: no difference.
    """

    ptr: Tensor
    cols: Tensor
    values: Tensor
    d_in: int


def operand(ptr: Tensor, cols: Tensor, values: Tensor, d_in: int) -> Operand:
    """Look once whether the compressed rows fit one another.

    Shapes:  ptr [d_out + 1] int32; cols [n] int16 or int32; values [n] float16.
    Units:   those of the weight.
    Raises:  ValueError if rows, columns and values do not fit one another.
    Source:  the layout of SpQR's outliers.
    Differs: no difference.
    """
    if int(ptr[0]) or not int(ptr[-1]) == len(cols) == len(values) or bool((ptr.diff() < 0).any()):
        raise ValueError(f"rows up to {int(ptr[-1])}, {len(cols)} columns and {len(values)} values do not fit one another")
    if bool(((cols < 0) | (cols >= d_in)).any()):
        raise ValueError(f"corrections lie in columns {int(cols.min())} to {int(cols.max())}; d_in={d_in}")
    return Operand(ptr.contiguous(), cols.contiguous(), values.contiguous(), d_in)


def product(x: Tensor, operand: Operand, base: Tensor | None = None, dtype: torch.dtype | None = None) -> Tensor:
    """base + x @ corrections.T, in one launch.

    Shapes:  x [M, d_in]; base [M, d_out] float32 or None for 0; returns [M, d_out] in `dtype`, that of x unless named.
    Units:   those of the layer's output; sums in float32.
    Raises:  ValueError if x has not d_in columns or base is not [M, d_out] float32.
    Source:  SpQR, Sec. 4 (dense and sparse product).
    Differs: deterministic.
    """
    M, d_out = len(x), len(operand.ptr) - 1
    if x.shape[1] != operand.d_in:
        raise ValueError(f"x has {x.shape[1]} columns; the weight has {operand.d_in}")
    if base is not None and (tuple(base.shape) != (M, d_out) or base.dtype != torch.float32):
        raise ValueError(f"base is {base.dtype} {list(base.shape)}; the sum needs float32 {[M, d_out]}")
    y = torch.empty(M, d_out, dtype=dtype or x.dtype, device=x.device)
    tokens = min(TOKENS, triton.next_power_of_2(M))
    _product[(triton.cdiv(d_out, ROWS), triton.cdiv(M, tokens))](
        x.contiguous(), operand.ptr, operand.cols, operand.values, y if base is None else base.contiguous(), y, M, d_out,
        operand.d_in, BASE=base is not None, ROWS=ROWS, SPAN=SPAN, TOKENS=tokens, num_warps=4)
    return y


@triton.jit
def _product(X, PTR, COLS, VALUES, BASE_Y, Y, M, d_out, d_in,
             BASE: tl.constexpr, ROWS: tl.constexpr, SPAN: tl.constexpr, TOKENS: tl.constexpr):
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    token = tl.program_id(1) * TOKENS + tl.arange(0, TOKENS)
    ours = row < d_out
    begin = tl.load(PTR + row, mask=ours, other=0)
    end = tl.load(PTR + row + 1, mask=ours, other=0)
    acc = tl.zeros((ROWS, SPAN, TOKENS), tl.float32)
    for step in range(0, tl.max(end - begin), SPAN):
        e = begin[:, None] + step + tl.arange(0, SPAN)[None, :]
        there = e < end[:, None]
        column = tl.load(COLS + e, mask=there, other=0).to(tl.int32)
        value = tl.load(VALUES + e, mask=there, other=0.0).to(tl.float32)
        here = there[:, :, None] & (token < M)[None, None, :]
        x = tl.load(X + token[None, None, :] * d_in + column[:, :, None], mask=here, other=0.0).to(tl.float32)
        acc += value[:, :, None] * x
    y = tl.sum(acc, 1)  # [ROWS, TOKENS]
    at = token[None, :].to(tl.int64) * d_out + row[:, None]
    here = ours[:, None] & (token < M)[None, :]
    if BASE:
        y += tl.load(BASE_Y + at, mask=here, other=0.0)
    tl.store(Y + at, y.to(Y.dtype.element_ty), mask=here)
