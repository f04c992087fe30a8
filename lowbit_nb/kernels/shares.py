"""What one program of the packed product does: one slice of columns, a share of the rows (see `tensorcore`)."""

from __future__ import annotations

import triton
import triton.language as tl

from lowbit_nb.kernels import digits
from lowbit_nb.kernels.unpacking import ask, unpack, unpack3


@triton.jit
def _words(q, rows, t, q_row, live, BITS: tl.constexpr, SLICES: tl.constexpr, ASM: tl.constexpr):
    """The planes of a tile: slice t of some rows."""
    w = tl.arange(0, 64)
    at = q + rows[:, None] * q_row + w[None, :]
    if BITS == 3:
        low = tl.load(at + t * 128, mask=live, other=0, eviction_policy="evict_first")
        next = tl.load(at + t * 128 + 64, mask=live, other=0, eviction_policy="evict_first")
        high = tl.load(at + SLICES * 128 + t * 64, mask=live, other=0, eviction_policy="evict_first")
        return unpack3(low, next, high, ASM)
    else:
        return unpack(tl.load(at + t * 64, mask=live, other=0, eviction_policy="evict_first"), BITS, ASM)


@triton.jit
def _scales(s, t, rows, n_rows, live, NW: tl.constexpr):
    words = ()
    for i in tl.static_range(NW):
        words = words + (tl.load(s + (t * NW + i) * n_rows + rows, mask=live, other=0),)
    return words


@triton.jit
def _scale(words, G: tl.constexpr, EACH: tl.constexpr):
    """Scale g of the [BN] rows, as float32."""
    if EACH == 1:
        return words[G].to(tl.float32)
    else:
        return (words[G // EACH] >> (16 * (G % EACH))).to(tl.int16).to(tl.float16, bitcast=True).to(tl.float32)


@triton.jit
def _share(q, s, z, bytes, sums, steps, q_row, partial, n_rows, t, slot, first, last, BITS: tl.constexpr, SEG: tl.constexpr,
           HALF: tl.constexpr, ZERO: tl.constexpr, SLICES: tl.constexpr, M: tl.constexpr, BN: tl.constexpr, RB: tl.constexpr,
           NS: tl.constexpr, ASM: tl.constexpr, PDL: tl.constexpr):
    """Slice t of the rows of tiles first .. last - 1, into row `slot` of the partial sums."""
    E: tl.constexpr = 32 if BITS == 3 else 32 // BITS
    NG: tl.constexpr = E * 64 // SEG
    TILE: tl.constexpr = 128 if BITS == 3 else 64
    PLANES: tl.constexpr = E // NG
    EACH: tl.constexpr = (4 if NG >= 4 else NG) if HALF else 1
    P: tl.constexpr = 1 if M <= 2 else 3
    MANY: tl.constexpr = 2 if M <= 2 else 8
    n = tl.arange(0, 8)
    w = tl.arange(0, 64)
    row_of = n // 4 if P == 1 else n
    if ASM:  # the first words come while the bytes of x are made
        for r in tl.static_range(NS - 1):
            rows = (first + r) * BN + tl.arange(0, BN)
            ask(q + rows[:, None] * q_row + t * TILE + tl.arange(0, TILE // 32)[None, :] * 32)
    if PDL:
        tl.extra.cuda.gdc_wait()
        tl.extra.cuda.gdc_launch_dependents()
    step = tl.load(steps + t * MANY + row_of)
    tile = ()
    for j in tl.static_range(P * E):
        tile = tile + (tl.load(bytes + ((t * P * E + j) * 8 + n[None, :]) * 64 + w[:, None]),)
    total = ()
    for g in tl.static_range(NG):
        total = total + (tl.load(sums + (t * NG + g) * MANY + row_of, mask=(P == 3) | (n % 4 == 0), other=0.0),)
    if P == 1:
        step = step * tl.where(n % 4 == 0, 1.0, tl.where(n % 4 == 1, 256.0, tl.where(n % 4 == 2, 65536.0, 0.0)))
    for r in tl.range(0, RB, num_stages=NS):
        live = first + r < last
        rows = (first + r) * BN + tl.arange(0, BN)
        planes = _words(q, rows, t, q_row, live, BITS, SLICES, ASM)
        sw = _scales(s, t, rows, n_rows, live, NG // EACH)
        zw = _scales(z, t, rows, n_rows, live, NG // EACH if ZERO else 0)
        acc = tl.zeros((BN, 8), tl.float32)
        for g in tl.static_range(NG):
            a = tl.zeros((BN, 8), tl.int32)
            for j in tl.static_range(PLANES):
                a = tl.dot(planes[g * PLANES + j], tile[g * PLANES + j], a, out_dtype=tl.int32)
            if P == 3:
                b = tl.zeros((BN, 8), tl.int32)
                c = tl.zeros((BN, 8), tl.int32)
                for j in tl.static_range(PLANES):
                    b = tl.dot(planes[g * PLANES + j], tile[E + g * PLANES + j], b, out_dtype=tl.int32)
                    c = tl.dot(planes[g * PLANES + j], tile[2 * E + g * PLANES + j], c, out_dtype=tl.int32)
                v = (a + (b << 8)).to(tl.float32) + c.to(tl.float32) * 65536.0
            else:
                v = a.to(tl.float32)
            if ZERO:
                v -= (_scale(zw, g, EACH) - (128.0 if BITS == 8 else 0.0))[:, None] * total[g][None, :]
            elif BITS != 8:
                v -= (total[g] * (1 << (BITS - 1)))[None, :]
            acc += _scale(sw, g, EACH)[:, None] * v
        acc = acc * step[None, :]
        if P == 1:
            for m in tl.static_range(M):
                part = tl.sum(tl.where((row_of == m)[None, :], acc, 0.0), 1)
                tl.store(partial + (slot * M + m) * n_rows + rows, part, mask=live)
        else:
            tl.store(partial + (slot * M + n[None, :]) * n_rows + rows[:, None], acc, mask=live & (n < M)[None, :])


@triton.jit
def _add(y, partial, tickets, n_rows, d_out, first, last, SLOTS: tl.constexpr, M: tl.constexpr, BN: tl.constexpr,
         RB: tl.constexpr):
    """The last program of a share adds the partial sums of all slices, in order."""
    tl.debug_barrier()
    ticket = tickets + tl.program_id(0)
    if tl.atomic_add(ticket, 1, sem="acq_rel") == SLOTS - 1:
        rows = first * BN + tl.arange(0, triton.next_power_of_2(RB * BN))
        mine = rows < last * BN
        for m in range(M):
            total = tl.zeros(rows.shape, tl.float32)
            for slot in tl.range(0, SLOTS, loop_unroll_factor=8):
                total += tl.load(partial + (slot * M + m) * n_rows + rows, mask=mine, other=0.0, cache_modifier=".cg")
            tl.store(y + m * d_out + rows, total.to(y.dtype.element_ty), mask=mine & (rows < d_out))
        tl.store(ticket, 0)


@triton.jit
def prepare(x, columns, columns2, factors2, bytes, sums, steps, d_in, bytes2, sums2, steps2, d_in2, x_row, FIRST: tl.constexpr,
            BITS: tl.constexpr, SEG: tl.constexpr, BITS2: tl.constexpr, SEG2: tl.constexpr, M: tl.constexpr,
            MIXED: tl.constexpr, PDL: tl.constexpr):
    """The bytes of a slice of one row of x, for one weight or for the two of a mixed one.

    Shapes:  as `digits.write`.
    Units:   as `digits.write`.
    Raises:  nothing.
    Source:  this project.
    Differs: no difference.
    """
    t = tl.program_id(0)
    m = tl.program_id(1)
    P: tl.constexpr = 1 if M <= 2 else 3
    MANY: tl.constexpr = 2 if M <= 2 else 8
    E: tl.constexpr = 32 if BITS == 3 else 32 // BITS
    E2: tl.constexpr = 32 if BITS2 == 3 else 32 // BITS2
    if PDL:  # the product may start and ask for its words; what it reads of this it waits for
        tl.extra.cuda.gdc_launch_dependents()
        tl.extra.cuda.gdc_wait()
    if MIXED:
        if t < FIRST:
            digits.write(x, columns, factors2, bytes, sums, steps, t, m, d_in, x_row, BITS, E, E * 64 // SEG, 8, P, MANY, True,
                         False)
        else:
            digits.write(x, columns2, factors2, bytes2, sums2, steps2, t - FIRST, m, d_in2, x_row, BITS2, E2, E2 * 64 // SEG2,
                         8, P, MANY, True, True)
    else:
        digits.write(x, columns, factors2, bytes, sums, steps, t, m, d_in, x_row, BITS, E, E * 64 // SEG, 8, P, MANY, False,
                     False)


@triton.jit
def product(y, q, s, z, bytes, sums, steps, q_row, partial, tickets, n_rows, d_out, BITS: tl.constexpr, SEG: tl.constexpr,
            HALF: tl.constexpr, ZERO: tl.constexpr, SLICES: tl.constexpr, M: tl.constexpr, BN: tl.constexpr,
            TILES: tl.constexpr, RB: tl.constexpr, GRID: tl.constexpr, NS: tl.constexpr, ASM: tl.constexpr, PDL: tl.constexpr):
    """One weight: see `tensorcore.product`.

    Shapes:  as `tensorcore.product`.
    Units:   those of the layer's output.
    Raises:  nothing.
    Source:  this project.
    Differs: no difference.
    """
    first = tl.program_id(0) * TILES // GRID
    last = (tl.program_id(0) + 1) * TILES // GRID
    t = tl.program_id(1)
    _share(q, s, z, bytes, sums, steps, q_row, partial, n_rows, t, t, first, last, BITS, SEG, HALF, ZERO, SLICES, M, BN, RB, NS,
           ASM, PDL)
    _add(y, partial, tickets, n_rows, d_out, first, last, SLICES, M, BN, RB)


@triton.jit
def mixed(y, q, s, z, bytes, sums, steps, q_row, q2, s2, z2, bytes2, sums2, steps2, q_row2, partial, tickets, n_rows, d_out,
          BITS: tl.constexpr, SEG: tl.constexpr, HALF: tl.constexpr, ZERO: tl.constexpr, SLICES: tl.constexpr,
          BITS2: tl.constexpr, SEG2: tl.constexpr, HALF2: tl.constexpr, ZERO2: tl.constexpr, SLICES2: tl.constexpr,
          M: tl.constexpr, BN: tl.constexpr, TILES: tl.constexpr, RB: tl.constexpr, GRID: tl.constexpr, NS: tl.constexpr,
          ASM: tl.constexpr, PDL: tl.constexpr):
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
        _share(q, s, z, bytes, sums, steps, q_row, partial, n_rows, slot, slot, first, last, BITS, SEG, HALF, ZERO, SLICES, M,
               BN, RB, NS, ASM, PDL)
    else:
        _share(q2, s2, z2, bytes2, sums2, steps2, q_row2, partial, n_rows, slot - SLICES, slot, first, last, BITS2, SEG2, HALF2,
               ZERO2, SLICES2, M, BN, RB, NS, ASM, PDL)
    _add(y, partial, tickets, n_rows, d_out, first, last, SLICES + SLICES2, M, BN, RB)
