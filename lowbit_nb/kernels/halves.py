"""One row of x times packed words, in pairs of half-precision numbers: no tensor cores, no launch beside its own.

A 32-bit word holds E codes.  Code j and code j + E / 2 stand at the same places of its two halves, so one `lop3` cuts both out
and makes half-precision numbers of them, 1024 + code * 2**p; one multiply-add takes the 1024 and the middle code away again,
exactly; one more multiplies by x.  A program keeps the inputs of one slice of columns in registers and walks down a share of
the rows.  Sums within a scale are in half precision, everything behind it in float32.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import gcd

import torch
import triton
import triton.language as tl
from torch import Tensor

from lowbit_nb.kernels import launching, shares, slices, tiles

BITS = (1, 2, 4, 8)
X_TOP, S_TOP = 8.0, 16.0  # sizes that inputs and scales are brought to, by powers of two, so that no half overflows


def _half(value: float) -> str:
    """A pair of equal halves, as PTX writes it."""
    bits = int(torch.tensor(value, dtype=torch.float16).view(torch.int16)) & 0xFFFF
    return f"{bits * 0x10001:#010x}"


def assembly(bits: int, scales: int) -> tuple[str, str]:
    """PTX and its constraints: a word, its pairs of inputs and pairs of scales in, the word's share of a row out.

    Shapes:  scales: pairs of scales a word; two strings.
    Units:   none.
    Raises:  nothing.
    Source:  this project; the number 1024 + code is that of Kim and others, 2022 (FasterTransformer).
    Differs: codes are not in the order that their words are unpacked in.
    """
    pairs = 16 // bits
    x, s = [f"${2 + j}" for j in range(pairs)], [f"${2 + pairs + g}" for g in range(scales)]
    code = [".reg .b32 t,u,a,d,c,m;", ".reg .b16 lo,hi;", ".reg .f32 e,f;"]
    for j in range(pairs):
        at = bits * j
        shift = 8 if at >= 8 else 0
        code += ["shr.b32 u,$1,8;"] if at == 8 else []
        p = at - shift
        word, mask = "u" if shift else "$1", ((2**bits - 1) << p) * 0x10001
        code += [f"lop3.b32 t,{word},{mask:#010x},0x64006400,0xea;", f"mov.b32 m,{_half(2.0**-p)};",
                 f"mov.b32 c,{_half(-(2.0 ** (10 - p) + 2 ** (bits - 1)))};", "fma.rn.f16x2 t,t,m,c;"]
        each = pairs // scales
        code += [f"mul.rn.f16x2 a,t,{x[j]};" if j % each == 0 else f"fma.rn.f16x2 a,t,{x[j]},a;"]
        if j % each == each - 1:
            code += [f"mul.rn.f16x2 d,a,{s[j // each]};" if j < each else f"fma.rn.f16x2 d,a,{s[j // each]},d;"]
    code += ["mov.b32 {lo,hi},d;", "cvt.f32.f16 e,lo;", "cvt.f32.f16 f,hi;", "add.f32 $0,e,f;"]
    return "{" + " ".join(code) + "}", "=f," + ",".join(["r"] * (1 + pairs + scales))


_CODE = {f"{bits} {scales}": assembly(bits, scales) for bits in BITS for scales in (1, 2, 4, 8, 16) if scales <= 16 // bits}


@triton.constexpr_function
def _ptx(bits, scales):
    return _CODE[f"{bits} {scales}"][0]


@triton.constexpr_function
def _constraints(bits, scales):
    return _CODE[f"{bits} {scales}"][1]


@dataclass(frozen=True)
class Operand:
    """A weight as the kernel reads it.

    words  [d_out, n_words] int32, full slices only        s  [n_slices, pairs of scales, d_out] int32: two float16 in each
    sz     [n_slices, scales, d_out] float16, s (z - middle code), or None: all zero points are the middle code
    unit   s holds scales times this

    Source: this project. Differs: scales are repeated for every slice that they reach over.
    """

    words: Tensor
    s: Tensor
    sz: Tensor | None
    bits: int
    shape: tuple[int, int]
    seg: int
    unit: float

    @property
    def n_slices(self) -> int:
        return slices.count(self.shape[1], self.bits)

    @property
    def nbytes(self) -> int:
        """Bytes that a product reads of the weight."""
        return sum(t.numel() * t.element_size() for t in (self.words, self.s, self.sz) if t is not None)


def fits(d_out: int, d_in: int, bits: int, group: int | None) -> bool:
    """Whether this kernel takes a weight.

    Shapes:  ints; group None or d_in: a scale a row.
    Units:   none.
    Raises:  nothing.
    Source:  this project.
    Differs: no difference.
    """
    return bits in BITS and slices.fits(d_out, d_in, group)


def operand(words: Tensor, bits: int, d_in: int, s: Tensor, z: Tensor | None, group: int | None) -> Operand:
    """A packed weight made ready.

    Shapes:  words [d_out, n_words(d_in, bits)] int32 of `packing.pack`; s [d_out, n_groups]; z the same, or None.
    Units:   s is real units per step, z is in steps.
    Raises:  ValueError if `fits` says no.
    Source:  this project.
    Differs: words are copied only where a row ends in a narrower slice, or rows are not a multiple of 64.
    """
    d_out, group = len(words), group or d_in
    if not fits(d_out, d_in, bits, group):
        raise ValueError(f"no half-precision product for {d_out} x {d_in}, bits={bits}, group={group}: use 1, 2, 4 or 8 bits "
                         "and a group that is a multiple of 64 and divides d_in, or one scale a row")
    half = tiles.WIDTHS[bits] // 2
    seg = half if group == d_in else gcd(group, half)
    unit = 2.0 ** (4 - int(torch.frexp(s.abs().max().float())[1]))  # the largest scale becomes 8 to 16

    def spread(t: Tensor) -> Tensor:
        return slices.spread(t, bits, d_in, group, seg).to(torch.float16)

    both = torch.stack(spread(s * unit).chunk(2, 1), -1).contiguous().view(torch.int32)[..., 0].contiguous()
    sz = None if z is None else spread(s.float() * (z.float() - 2 ** (bits - 1))).contiguous()
    return Operand(slices.full(words, bits, d_in), both, sz, bits, (d_out, d_in), seg, unit)


def product(x: Tensor, weight: Operand, asm: bool = True, plan: tiles.Plan | None = None) -> Tensor:
    """x @ W_hat.T for one row of x.

    Shapes:  x [1, d_in] float16, bfloat16 or float32; returns [1, d_out] in x's type.
    Units:   those of the layer's output.
    Raises:  ValueError for another shape.
    Source:  this project.
    Differs: asm=False takes a twin in float32; plan cuts the work in another way than `tiles` would.
    """
    if x.ndim != 2 or len(x) != 1 or x.shape[1] != weight.shape[1] or x.stride(1) != 1:
        raise ValueError(f"x is {list(x.shape)}; give one row of {weight.shape[1]} numbers, side by side in memory")
    y, rows = x.new_empty(1, weight.shape[0]), len(weight.words)
    plan = plan or tiles.plan(weight.bits, *weight.shape, 1)
    cut = launching.cut(x, y, plan, weight.n_slices, rows, asm)
    scales = weight.s.shape[1]
    _product[(cut["GRID"], weight.n_slices)](
        x, y, weight.words, weight.s, weight.s if weight.sz is None else weight.sz, weight.words.stride(0), *cut["ROOM"],
        weight.shape[1], 1 / weight.unit, BITS=weight.bits, SCALES=scales, SEG=weight.seg, ZERO=weight.sz is not None,
        SLICES=weight.n_slices, X_TOP=X_TOP, **{name: cut[name] for name in ("BN", "TILES", "GRID", "RB", "NS", "ASM")},
        num_warps=plan.warps, maxnreg=plan.registers)
    return y


@triton.jit
def _pair(x, at, d_in, PAIRS: tl.constexpr, scale):
    """Inputs of a plane and of the one half a word away, as two halves in an int32."""
    low = tl.load(x + at, mask=at < d_in, other=0.0).to(tl.float32) * scale
    high = tl.load(x + at + PAIRS * 64, mask=at + PAIRS * 64 < d_in, other=0.0).to(tl.float32) * scale
    bits = low.to(tl.float16).to(tl.int16, bitcast=True).to(tl.int32) & 0xFFFF
    return (bits | (high.to(tl.float16).to(tl.int16, bitcast=True).to(tl.int32) << 16))[None, :]


@triton.jit
def _half_of(pair, HIGH: tl.constexpr):
    return ((pair >> (16 if HIGH else 0)) & 0xFFFF).to(tl.int16).to(tl.float16, bitcast=True).to(tl.float32)


@triton.jit
def _twin(q, xs, ss, BITS: tl.constexpr, SCALES: tl.constexpr):
    """What the assembly computes, in float32."""
    PAIRS: tl.constexpr = 16 // BITS
    MIDDLE: tl.constexpr = 1 << (BITS - 1)
    total = tl.zeros(q.shape, tl.float32)
    for j in tl.static_range(PAIRS):
        low = ((q >> (BITS * j)) & ((1 << BITS) - 1)) - MIDDLE
        high = ((q >> (BITS * j + 16)) & ((1 << BITS) - 1)) - MIDDLE
        s = ss[j * SCALES // PAIRS]
        total += low.to(tl.float32) * _half_of(xs[j], False) * _half_of(s, False)
        total += high.to(tl.float32) * _half_of(xs[j], True) * _half_of(s, True)
    return total


@triton.jit
def _product(x, y, q, s, sz, q_row, partial, tickets, n_rows, d_out, d_in, unit, BITS: tl.constexpr, SCALES: tl.constexpr,
             SEG: tl.constexpr, ZERO: tl.constexpr, SLICES: tl.constexpr, X_TOP: tl.constexpr, BN: tl.constexpr,
             TILES: tl.constexpr, GRID: tl.constexpr, RB: tl.constexpr, NS: tl.constexpr, ASM: tl.constexpr):
    PAIRS: tl.constexpr = 16 // BITS
    WIDE: tl.constexpr = PAIRS * 128
    first = tl.program_id(0) * TILES // GRID
    last = (tl.program_id(0) + 1) * TILES // GRID
    t = tl.program_id(1)
    w = tl.arange(0, 64)
    all_x = t * WIDE + tl.arange(0, WIDE)
    top = tl.max(tl.abs(tl.load(x + all_x, mask=all_x < d_in, other=0.0).to(tl.float32)), 0)
    scale = tl.where(top > 0, X_TOP * tl.exp2(-tl.ceil(tl.log2(tl.where(top > 0, top, 1.0)))), 1.0)
    xs = ()
    for j in tl.static_range(PAIRS):
        xs = xs + (_pair(x, t * WIDE + j * 64 + w, d_in, PAIRS, scale),)
    if ZERO:
        g = tl.arange(0, WIDE // SEG)
        at = t * WIDE + g[:, None] * SEG + tl.arange(0, SEG)[None, :]
        sums = tl.sum(tl.load(x + at, mask=at < d_in, other=0.0).to(tl.float32), 1)
    for r in tl.range(0, RB, num_stages=NS):
        live = first + r < last
        rows = (first + r) * BN + tl.arange(0, BN)
        words = tl.load(q + rows[:, None] * q_row + t * 64 + w[None, :], mask=live, other=0, eviction_policy="evict_first")
        ss = ()
        for i in tl.static_range(SCALES):
            ss = ss + (tl.load(s + (t * SCALES + i) * n_rows + rows, mask=live, other=0)[:, None],)
        if ASM:
            p = tl.inline_asm_elementwise(_ptx(BITS, SCALES), _constraints(BITS, SCALES), (words,) + xs + ss, dtype=tl.float32,
                                          is_pure=True, pack=1)
        else:
            p = _twin(words, xs, ss, BITS, SCALES)
        part = tl.sum(p, 1) * (unit / scale)
        if ZERO:
            part -= tl.sum(tl.load(sz + (t * (WIDE // SEG) + g[None, :]) * n_rows + rows[:, None], mask=live,
                                   other=0.0).to(tl.float32) * sums[None, :], 1)
        tl.store(partial + t * n_rows + rows, part, mask=live)
    shares._add(y, partial, tickets, n_rows, d_out, first, last, SLICES, 1, BN, RB)
