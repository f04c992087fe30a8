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


@triton.constexpr_function
def planes(bits):
    """Planes of a slice, 64 columns each; bits 0: of numbers that no weight meets.

    Shapes:  ints.
    Units:   planes.
    Raises:  nothing.
    Source:  this project.
    Differs: no difference.
    """
    return 32 if bits == 3 else 16 if bits == 0 else 32 // bits


@triton.jit
def columns(t, E: tl.constexpr):
    """The columns of slice t, a row a plane.

    Shapes:  returns [E, 64].
    Units:   columns.
    Raises:  nothing.
    Source:  this project.
    Differs: no difference.
    """
    return (t * E + tl.arange(0, E)[:, None]) * 64 + tl.arange(0, 64)[None, :]


@triton.jit
def read(x, order, factors, t, d_in, E: tl.constexpr, GATHER: tl.constexpr, FACTORS: tl.constexpr):
    """Slice t of a row of x.

    GATHER  column c of the weight meets x[order[c]]        FACTORS  and is multiplied by factors[c]

    Shapes:  x [d_in]; returns [E, 64] float32, a row a plane, 0 from column d_in on.
    Units:   real units of x.
    Raises:  nothing.
    Source:  this project.
    Differs: no difference.
    """
    column = columns(t, E)
    inside = column < d_in
    at = tl.load(order + column, mask=inside, other=0) if GATHER else column
    v = tl.load(x + at, mask=inside, other=0.0).to(tl.float32)
    return v * tl.load(factors + column, mask=inside, other=0.0).to(tl.float32) if FACTORS else v


@triton.jit
def write(v, digits, sums, steps, t, m, BITS: tl.constexpr, E: tl.constexpr, NG: tl.constexpr, C: tl.constexpr,
          R: tl.constexpr):
    """Slice t of row m of x, as bytes that the planes of a weight meet, and the step.

    digits  [slices, E, R C, 64] int8: byte d of row m is column C m + d; C = 2 bytes, or 4 of which the last is 0
    sums    [slices, NG, R] float32: of x over a scale's columns, in steps
    steps   [slices, R] float32

    Shapes:  v [E, 64] float32 as `read` gives it; R rows of x have room.
    Units:   a step is real units of x.
    Raises:  nothing.
    Source:  this project; digits in place of the float16 pairs of other low-bit kernels.
    Differs: no difference.
    """
    w = tl.arange(0, 64)[None, :]
    plane = tl.arange(0, E)[:, None]
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
