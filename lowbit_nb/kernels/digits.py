"""Numbers as signed bytes: x = step * (d0 + 256 d1 + 65536 d2), one step a slice of columns.

A tensor core multiplies signed bytes exactly and adds them up in 32-bit integers, which come out the same in every order.
Three bytes hold 23 bits of the largest number in a slice, as exact as float32 sums are; two hold 15, finer than the eleven of
float16 and the eight of bfloat16.
"""

from __future__ import annotations

import triton
import triton.language as tl

# what the largest number becomes: 127 * (1 + 256) is the most that two bytes hold, 127 * (1 + 256 + 65536) three
TOP2, TOP3 = tl.constexpr(32600.0), tl.constexpr(8300000.0)


@triton.constexpr_function
def _raised(bits):
    """Planes j and j + cycle stand equally high: the cycle, and the step from one to the next."""
    return (2, 2) if bits == 3 else (1, 0) if bits == 8 else (4 // bits, bits)


@triton.jit
def write(x, columns, factors, digits, sums, steps, t, m, d_in, x_row, BITS: tl.constexpr, E: tl.constexpr, NG: tl.constexpr,
          C: tl.constexpr, R: tl.constexpr, GATHER: tl.constexpr, FACTORS: tl.constexpr):
    """Slice t of row m of x, as bytes that the planes of a weight meet, and the step.

    digits  [slices, E, R C, 64] int8: byte d of row m is column C m + d; C = 2 bytes, or 4 of which the last is 0
    sums    [slices, NG, R] float32: of x over a scale's columns, in steps
    steps   [slices, R] float32
    GATHER  column c of the weight meets x[columns[c]]        FACTORS  and is multiplied by factors[c]

    Shapes:  x [rows, d_in], t and m say which slice and row; R rows of x have room.
    Units:   a step is real units of x.
    Raises:  nothing.
    Source:  this project; digits in place of the float16 pairs of other low-bit kernels.
    Differs: no difference.
    """
    w = tl.arange(0, 64)[None, :]
    plane = tl.arange(0, E)[:, None]
    column = (t * E + plane) * 64 + w
    inside = column < d_in
    at = tl.load(columns + column, mask=inside, other=0) if GATHER else column
    v = tl.load(x + m * x_row + at, mask=inside, other=0.0).to(tl.float32)
    if FACTORS:
        v = v * tl.load(factors + column, mask=inside, other=0.0).to(tl.float32)
    total = tl.sum(tl.reshape(v, (NG, E // NG * 64)), 1)
    top = tl.max(tl.abs(v)) + 0.0 * tl.sum(total)  # not a number if one of them is not
    step = tl.where(top == 0, 1.0, top / (TOP2 if C == 2 else TOP3))
    each = 1.0 / step
    tl.store(sums + (t * NG + tl.arange(0, NG)) * R + m, total * each)
    CYCLE: tl.constexpr = _raised(BITS)[0]
    UP: tl.constexpr = _raised(BITS)[1]
    low = 1.0 / (1 << (UP * (plane % CYCLE))).to(tl.float32)  # as much lower as the plane's codes stand too high
    whole = tl.floor(v * (each * low) + 0.5).to(tl.int32)
    bytes = (whole + 0x808080) ^ 0x808080  # byte d of this is digit d, signed; byte 3 is 0
    for d in tl.static_range(C):
        tl.store(digits + ((t * E + plane) * (R * C) + C * m + d) * 64 + w, (bytes >> (8 * d)).to(tl.int8))
    tl.store(steps + t * R + m, step)
