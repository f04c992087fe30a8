"""What one program of the packed product does: one slice of columns, a share of the rows (see `tensorcore`)."""

from __future__ import annotations

import triton
import triton.language as tl

from lowbit_nb.kernels import digits
from lowbit_nb.kernels.unpacking import ask, unpack

DEEP = tl.constexpr(32)  # partial sums under way at once


@triton.jit
def _words(q, rows, t, q_row, live, BITS: tl.constexpr, SLICES: tl.constexpr):
    """The tiles of slice t of some rows: for the first planes, for the others, and the high bits of three."""
    at = q + rows[:, None] * q_row + tl.arange(0, 64)[None, :]
    if BITS == 3:
        low = tl.load(at + t * 128, mask=live, other=0, eviction_policy="evict_first")
        next = tl.load(at + t * 128 + 64, mask=live, other=0, eviction_policy="evict_first")
        high = tl.load(at + SLICES * 128 + t * 64, mask=live, other=0, eviction_policy="evict_first")
        return low, next, high
    else:
        low = tl.load(at + t * 64, mask=live, other=0, eviction_policy="evict_first")
        return low, low, low


@triton.jit
def _scales(s, t, rows, n_rows, live, NW: tl.constexpr, FROM: tl.constexpr, N: tl.constexpr):
    """Words FROM .. FROM + N - 1 of the NW that hold a slice's scales."""
    words = ()
    for i in tl.static_range(N):
        words = words + (tl.load(s + (t * NW + FROM + i) * n_rows + rows, mask=live, other=0),)
    return words


@triton.jit
def _scale(words, G: tl.constexpr, EACH: tl.constexpr):
    """Scale g of the [BN] rows, as float32."""
    if EACH == 1:
        return words[G].to(tl.float32)
    else:
        return (words[G // EACH] >> (16 * (G % EACH))).to(tl.int16).to(tl.float16, bitcast=True).to(tl.float32)


@triton.jit
def _ask_first(q, t, first, q_row, TILE: tl.constexpr, BN: tl.constexpr, NS: tl.constexpr):
    """Have the words of the first tiles brought near."""
    for r in tl.static_range(NS - 1):
        rows = (first + r) * BN + tl.arange(0, BN)
        ask(q + rows[:, None] * q_row + t * TILE + tl.arange(0, TILE // 32)[None, :] * 32)


@triton.jit
def _inputs(bytes, sums, steps, t, E: tl.constexpr, NG: tl.constexpr, PART: tl.constexpr, PARTS: tl.constexpr, C: tl.constexpr,
            R: tl.constexpr):
    """What stays with a program: bytes of x for its planes, their step and their sums, one for each pair of bytes."""
    bytes += (t * PARTS + PART) * (E // PARTS) * (R * C) * 64
    sums += (t * PARTS + PART) * (NG // PARTS) * R
    n = tl.arange(0, R * C)
    w = tl.arange(0, 64)
    pair = tl.arange(0, R * C // 2)
    row = pair // (C // 2)
    low = pair % (C // 2) == 0
    tile, total = (), ()
    for j in tl.static_range(E // PARTS):
        tile = tile + (tl.load(bytes + (j * (R * C) + n[None, :]) * 64 + w[:, None]),)
    for g in tl.static_range(NG // PARTS):
        total = total + (tl.load(sums + g * R + row, mask=low, other=0.0),)
    return tile, total, tl.load(steps + t * R + row) * tl.where(low, 1.0, 65536.0)


@triton.jit
def _sum(planes, tile, g: tl.constexpr, PLANES: tl.constexpr, BN: tl.constexpr, N: tl.constexpr):
    """Products of scale g, for pairs of bytes: the lower and 256 times the upper."""
    a = tl.zeros((BN, N), tl.int32)
    for j in tl.static_range(PLANES):
        a = tl.dot(planes[g * PLANES + j], tile[g * PLANES + j], a, out_dtype=tl.int32)
    lower, upper = tl.split(tl.reshape(a, (BN, N // 2, 2)))
    return (lower + (upper << 8)).to(tl.float32)


@triton.jit
def _share(q, s, z, bytes, sums, steps, q_row, partial, n_rows, t, slot, first, last, BITS: tl.constexpr, SEG: tl.constexpr,
           HALF: tl.constexpr, ZERO: tl.constexpr, SLICES: tl.constexpr, PART: tl.constexpr, PARTS: tl.constexpr,
           M: tl.constexpr, C: tl.constexpr, R: tl.constexpr, BN: tl.constexpr, RB: tl.constexpr, NS: tl.constexpr,
           ASM: tl.constexpr, PDL: tl.constexpr):
    """Slice t of the rows of tiles first .. last - 1, or half its planes, into row `slot` of the partial sums."""
    E: tl.constexpr = digits.planes(BITS)
    NG: tl.constexpr = E * 64 // SEG
    EACH: tl.constexpr = (4 if NG >= 4 else NG) if HALF else 1
    HERE: tl.constexpr = NG // PARTS  # scales of this program, and words that hold them
    FROM: tl.constexpr = PART * HERE // EACH
    NW: tl.constexpr = 1 if HERE < EACH else HERE // EACH
    SKIP: tl.constexpr = PART * HERE - FROM * EACH  # scales in the first word that are the other program's
    if ASM:  # the first words come while the bytes of x are made
        _ask_first(q, t, first, q_row, 128 if BITS == 3 else 64, BN, NS)
    if PDL:
        tl.extra.cuda.gdc_wait()
        tl.extra.cuda.gdc_launch_dependents()
    tile, total, step = _inputs(bytes, sums, steps, t, E, NG, PART, PARTS, C, R)
    m = tl.arange(0, R)
    for r in tl.range(0, RB, num_stages=NS):
        live = first + r < last
        rows = (first + r) * BN + tl.arange(0, BN)
        low, next, high = _words(q, rows, t, q_row, live, BITS, SLICES)
        sw = _scales(s, t, rows, n_rows, live, NG // EACH, FROM, NW)
        zw = _scales(z, t, rows, n_rows, live, NG // EACH, FROM, NW if ZERO else 0)
        acc = tl.zeros((BN, R * C // 2), tl.float32)
        planes = unpack(next if PART else low, high, BITS, PART, ASM)
        for g in tl.static_range(HERE):
            if PARTS == 1 and g == NG // 2:  # the other half of the planes, when the first is done with
                planes = planes + unpack(next, high, BITS, 1, ASM)
            v = _sum(planes, tile, g, E // NG, BN, R * C)
            if ZERO:
                v -= (_scale(zw, SKIP + g, EACH) - (128.0 if BITS == 8 else 0.0))[:, None] * total[g][None, :]
            elif BITS != 8:
                v -= (total[g] * (1 << (BITS - 1)))[None, :]
            acc += _scale(sw, SKIP + g, EACH)[:, None] * v
        acc = acc * step[None, :]
        if C == 4:
            acc = tl.sum(tl.reshape(acc, (BN, R, 2)), 2)
        tl.store(partial + (slot * M + m[None, :]) * n_rows + rows[:, None], acc, mask=live & (m < M)[None, :])


@triton.jit
def _add(y, partial, tickets, n_rows, d_out, first, last, SLOTS: tl.constexpr, M: tl.constexpr, BN: tl.constexpr,
         RB: tl.constexpr):
    """The last program of a share adds the partial sums of all slices, in order."""
    MANY: tl.constexpr = triton.next_power_of_2(M)
    AT_ONCE: tl.constexpr = min(triton.next_power_of_2(RB * BN), 1024 // MANY)
    tl.debug_barrier()
    ticket = tickets + tl.program_id(0)
    if tl.atomic_add(ticket, 1, sem="acq_rel") == SLOTS - 1:
        m = tl.arange(0, MANY)[:, None]
        for some in range(0, RB * BN, AT_ONCE):
            rows = first * BN + some + tl.arange(0, AT_ONCE)[None, :]
            mine = (rows < last * BN) & (m < M)
            total = tl.zeros((MANY, AT_ONCE), tl.float32)
            for slot in tl.range(0, SLOTS, loop_unroll_factor=min(SLOTS, DEEP)):
                total += tl.load(partial + (slot * M + m) * n_rows + rows, mask=mine, other=0.0, cache_modifier=".cg")
            tl.store(y + m * d_out + rows, total.to(y.dtype.element_ty), mask=mine & (rows < d_out))
        tl.store(ticket, 0)


@triton.jit
def finish(y, partial, n_rows, d_out, SLOTS: tl.constexpr, M: tl.constexpr, ROWS: tl.constexpr, PDL: tl.constexpr):
    """The same sums in a launch of their own: where shares are large, all programs add sooner than the last one would.

    Shapes:  y [M, d_out]; partial [SLOTS, M, n_rows] float32.
    Units:   those of the layer's output.
    Raises:  nothing.
    Source:  this project.
    Differs: no difference.
    """
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    m = tl.program_id(1)
    if PDL:
        tl.extra.cuda.gdc_launch_dependents()
        tl.extra.cuda.gdc_wait()
    total = tl.zeros((ROWS,), tl.float32)
    for slot in tl.range(0, SLOTS, loop_unroll_factor=min(SLOTS, DEEP)):
        total += tl.load(partial + (slot * M + m) * n_rows + rows, mask=rows < d_out, other=0.0, cache_modifier=".cg")
    tl.store(y + m * d_out + rows, total.to(y.dtype.element_ty), mask=rows < d_out)


@triton.jit
def prepare(x, columns, columns2, factors2, bytes, sums, steps, d_in, bytes2, sums2, steps2, d_in2, x_row, FIRST: tl.constexpr,
            BITS: tl.constexpr, SEG: tl.constexpr, BITS2: tl.constexpr, SEG2: tl.constexpr, C: tl.constexpr,
            R: tl.constexpr, MIXED: tl.constexpr, PDL: tl.constexpr):
    """The bytes of a slice of one row of x, for one weight or for the two of a mixed one.

    Shapes:  as `digits.write`.
    Units:   as `digits.write`.
    Raises:  nothing.
    Source:  this project.
    Differs: no difference.
    """
    t = tl.program_id(0)
    m = tl.program_id(1)
    E: tl.constexpr = digits.planes(BITS)
    E2: tl.constexpr = digits.planes(BITS2)
    if PDL:  # the product may start and ask for its words; what it reads of this it waits for
        tl.extra.cuda.gdc_launch_dependents()
        tl.extra.cuda.gdc_wait()
    x += m * x_row
    if MIXED:
        if t < FIRST:
            digits.write(digits.read(x, columns, factors2, t, d_in, E, True, False), bytes, sums, steps, t, m, BITS, E,
                         E * 64 // SEG, C, R)
        else:
            t -= FIRST
            digits.write(digits.read(x, columns2, factors2, t, d_in2, E2, True, True), bytes2, sums2, steps2, t, m, BITS2, E2,
                         E2 * 64 // SEG2, C, R)
    else:
        digits.write(digits.read(x, columns, factors2, t, d_in, E, False, False), bytes, sums, steps, t, m, BITS, E,
                     E * 64 // SEG, C, R)


@triton.jit
def product(y, q, s, z, bytes, sums, steps, q_row, partial, tickets, n_rows, d_out, BITS: tl.constexpr, SEG: tl.constexpr,
            HALF: tl.constexpr, ZERO: tl.constexpr, SLICES: tl.constexpr, PARTS: tl.constexpr, M: tl.constexpr,
            C: tl.constexpr, R: tl.constexpr, BN: tl.constexpr, TILES: tl.constexpr, RB: tl.constexpr, GRID: tl.constexpr,
            NS: tl.constexpr, APART: tl.constexpr, ASM: tl.constexpr, PDL: tl.constexpr):
    """One weight: see `tensorcore.product`.

    Shapes:  as `tensorcore.product`.
    Units:   those of the layer's output.
    Raises:  nothing.
    Source:  this project.
    Differs: no difference.
    """
    first = tl.program_id(0) * TILES // GRID
    last = (tl.program_id(0) + 1) * TILES // GRID
    slot = tl.program_id(1)
    if PARTS == 1 or slot % 2 == 0:
        _share(q, s, z, bytes, sums, steps, q_row, partial, n_rows, slot // PARTS, slot, first, last, BITS, SEG, HALF, ZERO,
               SLICES, 0, PARTS, M, C, R, BN, RB, NS, ASM, PDL)
    else:
        _share(q, s, z, bytes, sums, steps, q_row, partial, n_rows, slot // PARTS, slot, first, last, BITS, SEG, HALF, ZERO,
               SLICES, 1, PARTS, M, C, R, BN, RB, NS, ASM, PDL)
    if not APART:
        _add(y, partial, tickets, n_rows, d_out, first, last, SLICES * PARTS, M, BN, RB)


@triton.jit
def mixed(y, q, s, z, bytes, sums, steps, q_row, q2, s2, z2, bytes2, sums2, steps2, q_row2, partial, tickets, n_rows, d_out,
          BITS: tl.constexpr, SEG: tl.constexpr, HALF: tl.constexpr, ZERO: tl.constexpr, SLICES: tl.constexpr,
          BITS2: tl.constexpr, SEG2: tl.constexpr, HALF2: tl.constexpr, ZERO2: tl.constexpr, SLICES2: tl.constexpr,
          M: tl.constexpr, C: tl.constexpr, R: tl.constexpr, BN: tl.constexpr, TILES: tl.constexpr, RB: tl.constexpr,
          GRID: tl.constexpr, NS: tl.constexpr, APART: tl.constexpr, ASM: tl.constexpr, PDL: tl.constexpr):
    """Two weights that share the inputs, the salient channels' slices first: see `tensorcore.mixed_product`.

    Shapes:  as `tensorcore.mixed_product`.
    Units:   those of the layer's output.
    Raises:  nothing.
    Source:  PTQ1.61.
    Differs: no difference.
    """
    first = tl.program_id(0) * TILES // GRID
    last = (tl.program_id(0) + 1) * TILES // GRID
    slot = tl.program_id(1)
    if slot < SLICES:
        _share(q, s, z, bytes, sums, steps, q_row, partial, n_rows, slot, slot, first, last, BITS, SEG, HALF, ZERO, SLICES, 0,
               1, M, C, R, BN, RB, NS, ASM, PDL)
    else:
        _share(q2, s2, z2, bytes2, sums2, steps2, q_row2, partial, n_rows, slot - SLICES, slot, first, last, BITS2, SEG2, HALF2,
               ZERO2, SLICES2, 0, 1, M, C, R, BN, RB, NS, ASM, PDL)
    if not APART:
        _add(y, partial, tickets, n_rows, d_out, first, last, SLICES + SLICES2, M, BN, RB)
