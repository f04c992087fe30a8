"""The plain kernel: a product with packed affine codes of any width, any group, any shape.

    y[m, o] = sum_c s[o, c // group] * (q[o, c] - z[o, c // group]) * x[m, c]

A program takes a few rows from the first column to the last, 64 columns at a time, and nobody else writes those rows: no
atomics, so the same bits every time.  It says how packed codes are read, and what every faster kernel is held against.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

ROWS = 4  # rows a program takes
TOKENS = 4  # rows of x that share an unpacked weight


class Operand(NamedTuple):
    """Packed codes and their rulers, ready for `product`; see there.

    Source: this project. Differs: no difference.
    """

    words: Tensor
    bits: int
    s: Tensor
    z: Tensor | None
    group: int
    d_in: int


def operand(words: Tensor, bits: int, s: Tensor, z: Tensor | None, group: int, d_in: int) -> Operand:
    """Look once whether the tensors fit one another, and lay them out contiguously.

    Shapes:  as `product`.
    Units:   as `product`.
    Raises:  ValueError if words, rulers, group and d_in do not fit one another.
    Source:  this project.
    Differs: no difference.
    """
    if not 1 <= bits <= 8 or group < 1 or d_in < 1:
        raise ValueError(f"bits={bits}, group={group}, d_in={d_in}: bits go from 1 to 8, a group and a row need a column")
    d_out, n_groups = len(words), -(-d_in // group)
    wanted = sum(-(-d_in * width // 32) for width in (1, 2, 4, 8) if bits & width)
    if words.shape[1] != wanted or words.dtype != torch.int32:
        raise ValueError(f"{words.shape[1]} words of {words.dtype} a row; d_in={d_in} codes of {bits} bits are {wanted} of "
                         "int32, as `packing.pack` lays them")
    for name, t in (("s", s), ("z", z)):
        if t is not None and tuple(t.shape) != (d_out, n_groups):
            raise ValueError(f"{name} has shape {list(t.shape)}; {d_out} rows in groups of {group} need {[d_out, n_groups]}")
    return Operand(words.contiguous(), bits, s.contiguous(), None if z is None else z.contiguous(), group, d_in)


def product(x: Tensor, words: Tensor, bits: int, s: Tensor, z: Tensor | None, group: int, d_in: int,
            dtype: torch.dtype | None = None) -> Tensor:
    """x @ W_hat.T with W_hat = s * (q - z), from packed codes.

    Shapes:  x [M, d_in]; words [d_out, n_words] int32; s, z [d_out, n_groups] of any type, z None for 2**(bits - 1);
             returns [M, d_out] in `dtype`, that of x unless named.
    Units:   those of the layer's output; sums in float32.
    Raises:  ValueError if x has not d_in columns.
    Source:  this project; compare GPTQ's packed matrix-vector kernel.
    Differs: every width from 1 to 8, deterministic.
    """
    M, d_out = len(x), len(words)
    if x.shape[1] != d_in:
        raise ValueError(f"x has {x.shape[1]} columns; the weight has {d_in}")
    y = torch.empty(M, d_out, dtype=dtype or x.dtype, device=x.device)
    tokens = min(TOKENS, triton.next_power_of_2(M))
    _product[(triton.cdiv(d_out, ROWS), triton.cdiv(M, tokens))](
        x.contiguous(), words, s, z, y, M, d_out, d_in, words.stride(0), s.shape[1],
        BITS=bits, GROUP=group, ROWS=ROWS, TOKENS=tokens, num_warps=2)
    return y


@triton.constexpr_function
def widest(bits):
    """Columns of a whole slice of the narrowest part of a width, and so of whole slices of all its parts.

    Shapes:  an int in, an int out.
    Units:   columns.
    Raises:  nothing.
    Source:  planar words, this project.
    Differs: no difference.
    """
    return 2048 // (bits & -bits)


@triton.jit
def _product(X, W, S, Z, Y, M, d_out, d_in, n_words, n_groups,
             BITS: tl.constexpr, GROUP: tl.constexpr, ROWS: tl.constexpr, TOKENS: tl.constexpr):
    first_row, first_token = tl.program_id(0) * ROWS, tl.program_id(1) * TOKENS
    lane = tl.arange(0, 64)
    acc = (tl.zeros((64,), tl.float32),) * (ROWS * TOKENS)
    STEP: tl.constexpr = widest(BITS)
    whole = d_in // STEP * STEP
    for first in range(0, whole, STEP):
        words, rulers = (lane,) * (4 * ROWS), (lane,) * (2 * ROWS)
        for j in tl.static_range(STEP // 64):  # plane after plane: a word is read once and shifted for each
            w, read, ruled = (), (), ()
            for r in tl.static_range(ROWS):
                row = tl.minimum(first_row + r, d_out - 1).to(tl.int64)
                q, now = plane(W + row * n_words, first, d_in, lane, j, words, 4 * r, BITS, STEP)
                if j * 64 % GROUP == 0 or GROUP % 64 != 0:
                    s, z = _rulers(S, Z, row * n_groups, first + j * 64 + lane, lane < 64, BITS, GROUP)
                else:
                    s, z = rulers[2 * r], rulers[2 * r + 1]
                w, read, ruled = w + ((q.to(tl.float32) - z) * s,), read + now, ruled + (s, z)
            words, rulers = read, ruled
            acc = _add(acc, w, X, first + j * 64 + lane, lane < 64, first_token, M, d_in, ROWS, TOKENS)
    for first in range(whole, d_in, 64):  # narrower slices at the end of a row
        w = ()
        inside = first + lane < d_in
        for r in tl.static_range(ROWS):
            row = tl.minimum(first_row + r, d_out - 1).to(tl.int64)
            q = codes(W + row * n_words, first, d_in, lane, BITS)
            s, z = _rulers(S, Z, row * n_groups, first + lane, inside, BITS, GROUP)
            w = w + ((q.to(tl.float32) - z) * s,)
        acc = _add(acc, w, X, first + lane, inside, first_token, M, d_in, ROWS, TOKENS)
    for r in tl.static_range(ROWS):
        for m in tl.static_range(TOKENS):
            at = (first_token + m).to(tl.int64) * d_out + first_row + r
            y = tl.sum(acc[r * TOKENS + m], 0)
            tl.store(Y + at, y.to(Y.dtype.element_ty), mask=(first_row + r < d_out) & (first_token + m < M))


@triton.jit
def _rulers(S, Z, line, column, inside, BITS: tl.constexpr, GROUP: tl.constexpr):
    at = line + column // GROUP
    s = tl.load(S + at, mask=inside, other=0.0).to(tl.float32)
    z = s * 0 + (1 << (BITS - 1)) if Z is None else tl.load(Z + at, mask=inside, other=0).to(tl.float32)
    return s, z


@triton.jit
def _add(acc, w, X, column, inside, first_token, M, d_in, ROWS: tl.constexpr, TOKENS: tl.constexpr):
    """acc + w * x, a column a lane, for a few rows of the weight and a few of x."""
    x, added = (), ()
    for m in tl.static_range(TOKENS):
        token = tl.minimum(first_token + m, M - 1).to(tl.int64)
        x = x + (tl.load(X + token * d_in + column, mask=inside, other=0.0).to(tl.float32),)
    for r in tl.static_range(ROWS):
        for m in tl.static_range(TOKENS):
            added = added + (acc[r * TOKENS + m] + w[r] * x[m],)
    return added


@triton.jit
def plane(W, first, n, lane, j: tl.constexpr, words, at: tl.constexpr, BITS: tl.constexpr, STEP: tl.constexpr):
    """The codes of columns first + 64 j + lane in whole slices, and the words they were taken from.

    W      where a row of n codes begins            first  a multiple of STEP, whole slices of every part
    words  words[at : at + 4]: those of the parts of 8, 4, 2 and 1 bits that plane j - 1 was taken from
    lane   0 .. 63; lanes from 64 on are those of the next STEP columns

    Shapes:  lane [n]; returns int32 [n] and four words [n].
    Units:   codes.
    Raises:  nothing.
    Source:  planar words, this project.
    Differs: a word is read once for all planes of its slice.
    """
    q = tl.zeros(lane.shape, tl.int32)
    w8, w4, w2, w1 = words[at], words[at + 1], words[at + 2], words[at + 3]
    if BITS & 8:
        w8 = _word(W, first, lane, j, w8, 8, STEP)
        q |= _field(w8, j, 8)
        W += tl.cdiv(n, 4)
    if BITS & 4:
        w4 = _word(W, first, lane, j, w4, 4, STEP)
        q |= _field(w4, j, 4)
        W += tl.cdiv(n, 8)
    if BITS & 2:
        w2 = _word(W, first, lane, j, w2, 2, STEP)
        q |= _field(w2, j, 2) << (BITS & 4)
        W += tl.cdiv(n, 16)
    if BITS & 1:
        w1 = _word(W, first, lane, j, w1, 1, STEP)
        q |= _field(w1, j, 1) << (BITS & 6)
    return q, (w8, w4, w2, w1)


@triton.jit
def _word(W, first, lane, j: tl.constexpr, before, WIDTH: tl.constexpr, STEP: tl.constexpr):
    """The words of plane j: read at the first plane of a slice, kept for the others."""
    E: tl.constexpr = 32 // WIDTH
    if j % E == 0:
        at = first // E + lane // 64 * (STEP // E) + j // E * 64 + lane % 64
        return tl.load(W + at, eviction_policy="evict_first")
    else:
        return before


@triton.jit
def _field(word, j: tl.constexpr, WIDTH: tl.constexpr):
    return (word >> (WIDTH * (j % (32 // WIDTH)))) & ((1 << WIDTH) - 1)


@triton.jit
def codes(W, first, n, lane, BITS: tl.constexpr):
    """The codes of columns first + lane anywhere in a row of n; first is a multiple of how many lanes there are, at most 256.

    Parts of 8, 4, 2 and 1 bits follow one another in a row, low bits first.

    Shapes:  lane [n]; returns int32 [n], 0 behind the last column.
    Units:   codes.
    Raises:  nothing.
    Source:  planar words, this project.
    Differs: a word is read again for every plane.
    """
    q = tl.zeros(lane.shape, tl.int32)
    if BITS & 8:
        q |= _part(W, first, n, lane, 8)
        W += tl.cdiv(n, 4)
    if BITS & 4:
        q |= _part(W, first, n, lane, 4)
        W += tl.cdiv(n, 8)
    if BITS & 2:
        q |= _part(W, first, n, lane, 2) << (BITS & 4)
        W += tl.cdiv(n, 16)
    if BITS & 1:
        q |= _part(W, first, n, lane, 1) << (BITS & 6)
    return q


@triton.jit
def _part(W, first, n, lane, WIDTH: tl.constexpr):
    """Field j of word w of slice t is column t * E * 64 + j * plane + w; planes are 64 words, in the last slice fewer."""
    E: tl.constexpr = 32 // WIDTH
    t = first // (E * 64)
    column = first - t * (E * 64) + lane  # in its slice
    rest = n - t * (E * 64)
    plane = tl.minimum(tl.cdiv(rest, E), 64)
    word = tl.load(W + t * 64 + column % plane, mask=column < rest, other=0)
    return (word >> (tl.minimum(column // plane, E - 1) * WIDTH)) & ((1 << WIDTH) - 1)
