"""x @ W_hat.T from packed words on integer tensor cores, the same bits every time.

    y[m, o] = sum over scales g of s[o, g] (q_g . x_g - z[o, g] sum of x_g)

Codes become bytes in registers (`unpacking`), numbers of x two or three bytes each (`digits`); their products and sums within a
scale are exact integers, whatever the order.  A small kernel makes the bytes.  In the large one a program keeps one slice of
columns and walks down a share of the rows, its words arriving ahead of it; it asks for the first of them before it waits for
the bytes.  All bytes of all rows of x lie side by side in the tensor core's columns, so that a weight is unpacked once.  What
the slices gave is added up in order, by the last program of a share or in a launch of its own (`launching`).
"""

from __future__ import annotations

from dataclasses import dataclass
from math import gcd, prod

import torch
import triton
from torch import Tensor

from lowbit_nb.kernels import shares, slices, tiles
from lowbit_nb.kernels.launching import beside, cut, finish, room

WIDTHS = {bits: columns for bits, columns in tiles.WIDTHS.items() if bits}  # bits -> columns of a slice
ROWS = 16  # most rows of x in a call


@dataclass(frozen=True)
class Operand:
    """A weight as the kernel reads it.

    words  [d_out, n_words] int32, full slices only        s, z  [n_slices, words of scales, d_out]: four float16 in an int64
    (two in an int32, one), or float32 where float16 is not exact; z None: the middle code        seg  columns of a scale

    Source: this project. Differs: scales are repeated for every slice that they reach over.
    """

    words: Tensor
    s: Tensor
    z: Tensor | None
    bits: int
    shape: tuple[int, int]
    seg: int

    @property
    def n_slices(self) -> int:
        return slices.count(self.shape[1], self.bits)

    @property
    def nbytes(self) -> int:
        """Bytes that a product reads of the weight."""
        return sum(t.numel() * t.element_size() for t in (self.words, self.s, self.z) if t is not None)


def fits(d_out: int, d_in: int, bits: int, group: int | None) -> bool:
    """Whether this kernel takes a weight.

    Shapes:  ints; group None or d_in: a scale a row.
    Units:   none.
    Raises:  nothing.
    Source:  this project.
    Differs: no difference.
    """
    return bits in WIDTHS and slices.fits(d_out, d_in, group)


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
        raise ValueError(f"no tensor-core product for {d_out} x {d_in}, bits={bits}, group={group}: use 1, 2, 3, 4 or 8 bits "
                         "and a group that is a multiple of 64 and divides d_in, or one scale a row")
    seg = WIDTHS[bits] if group == d_in else gcd(group, WIDTHS[bits])
    half = all(t is None or torch.equal(t.to(torch.float16).float(), t.float()) for t in (s, z))

    def scales(t: Tensor | None) -> Tensor | None:
        return None if t is None else together(slices.spread(t, bits, d_in, group, seg), half)

    return Operand(slices.full(words, bits, d_in), scales(s), scales(z), bits, (d_out, d_in), seg)


def together(t: Tensor, half: bool) -> Tensor:
    """Scales as the kernel reads them: up to four float16 of a slice in a word, or float32.

    Shapes:  t [n_slices, scales of a slice, d_out] float32; returns [n_slices, n_words, d_out].
    Units:   none.
    Raises:  nothing.
    Source:  this project.
    Differs: no difference.
    """
    if not half:
        return t.contiguous()
    each = min(4, t.shape[1])
    t = t.to(torch.float16).unflatten(1, (-1, each)).transpose(2, 3).contiguous()
    return t.view({1: torch.float16, 2: torch.int32, 4: torch.int64}[each])[..., 0].contiguous()


@dataclass(frozen=True)
class Bytes:
    """Rows of x as the bytes that one weight meets (see `digits`), written by the kernel before its product.

    Scratch: good until the next product on the device begins.

    Source: this project. Differs: sums within a scale may be added in another order than `product` adds them itself.
    """

    digits: Tensor
    sums: Tensor
    steps: Tensor
    shape: tuple[int, int]
    dtype: torch.dtype

    @classmethod
    def room(cls, weight: Operand, rows: int, like: Tensor, name: str = "a") -> Bytes:
        """Room for them; `like` has the type of x."""
        count = triton.next_power_of_2(weight.n_slices * WIDTHS[weight.bits] * prod(beside(rows, like.dtype).values()))
        kinds = {"digits": (count, torch.int8), "sums": (count // 64, torch.float32), "steps": (count // 256, torch.float32)}
        made = (room(like.device, f"{what} {name}", *kind) for what, kind in kinds.items())
        return cls(*made, (rows, weight.shape[1]), like.dtype)

    @property
    def device(self) -> torch.device:
        return self.digits.device

    @property
    def pointers(self) -> tuple[Tensor, Tensor, Tensor]:
        return self.digits, self.sums, self.steps

    def __len__(self) -> int:
        return self.shape[0]


def product(x: Tensor | Bytes, weight: Operand, asm: bool = True, plan: tiles.Plan | None = None) -> Tensor:
    """x @ W_hat.T.

    Shapes:  x [M, d_in] float16, bfloat16 or float32, or its bytes, 1 <= M <= 16; returns [M, d_out] in x's type.
    Units:   those of the layer's output.
    Raises:  ValueError for another shape.
    Source:  this project.
    Differs: asm=False takes the unpacking's twin; plan cuts the work in another way than `tiles` would.
    """
    _check(x, weight.shape[1])
    y = torch.empty(len(x), weight.shape[0], dtype=x.dtype, device=x.device)
    plan = plan or tiles.plan(weight.bits, *weight.shape, len(x))
    parts = plan.parts if 2 * weight.seg <= WIDTHS[weight.bits] else 1  # one scale cannot be halved
    n_slots = weight.n_slices * parts
    dealt = cut(x, y, plan, n_slots, len(weight.words), asm)
    made, scratch = x if isinstance(x, Bytes) else _prepare(x, x, weight, weight, x, x, dealt["PDL"])[0], dealt.pop("ROOM")
    shares.product[(dealt["GRID"], n_slots)](y, *_pointers(weight, made), *scratch, **_sizes(weight, ""), PARTS=parts, **dealt)
    return finish(y, scratch, n_slots, dealt)


@dataclass(frozen=True)
class MixedOperand:
    """Two weights that share the inputs of one layer: salient channels and all others; columns says whose column is whose.

    Source: PTQ1.61. Differs: no difference.
    """

    high: Operand
    low: Operand
    high_columns: Tensor
    low_columns: Tensor
    factors: Tensor

    @property
    def nbytes(self) -> int:
        """Bytes that a product reads of the weight."""
        return self.high.nbytes + self.low.nbytes


def mixed_operand(salient: Tensor, high: Operand, low: Operand, factors: Tensor | None = None) -> MixedOperand:
    """Both parts of a mixed weight, salient channels first.

    Shapes:  salient [d_in] bool; high takes its salient channels in order, low the others; factors [channels of low] or None.
    Units:   factors multiply the inputs of low.
    Raises:  ValueError if the parts do not fit the mask.
    Source:  PTQ1.61.
    Differs: no difference.
    """
    columns = [mask.nonzero()[:, 0].to(torch.int32) for mask in (salient, ~salient)]
    sizes = high.shape[1], low.shape[1]
    if (len(columns[0]), len(columns[1])) != sizes or high.shape[0] != low.shape[0]:
        raise ValueError(f"the mask has {len(columns[0])} salient of {len(salient)} channels; the parts are {high.shape} and "
                         f"{low.shape}")
    factors = torch.ones(sizes[1], device=salient.device) if factors is None else factors.float()
    return MixedOperand(high, low, *columns, factors)


def mixed_product(x: Tensor, weight: MixedOperand, asm: bool = True, plan: tiles.Plan | None = None) -> Tensor:
    """x @ W_hat.T of a mixed weight, both parts in one launch.

    Shapes:  x [M, d_in], 1 <= M <= 16; returns [M, d_out] in x's type.
    Units:   those of the layer's output.
    Raises:  ValueError for another shape.
    Source:  PTQ1.61.
    Differs: the order of the channels is part of making x's bytes.
    """
    high, low = weight.high, weight.low
    _check(x, high.shape[1] + low.shape[1])
    y = x.new_empty(len(x), high.shape[0])
    n_slices = high.n_slices + low.n_slices
    dealt = cut(x, y, plan or tiles.plan(0, high.shape[0], x.shape[1], len(x), n_slices), n_slices, len(high.words), asm)
    made = _prepare(x, weight.high_columns, high, low, weight.low_columns, weight.factors, dealt["PDL"])
    scratch = dealt.pop("ROOM")
    shares.mixed[(dealt["GRID"], n_slices)](y, *_pointers(high, made[0]), *_pointers(low, made[1]), *scratch,
                                          **_sizes(high, ""), **_sizes(low, "2"), **dealt)
    return finish(y, scratch, n_slices, dealt)


def _check(x: Tensor | Bytes, d_in: int) -> None:
    if len(x.shape) != 2 or not 1 <= len(x) <= ROWS or x.shape[1] != d_in or not (isinstance(x, Bytes) or x.stride(1) == 1):
        raise ValueError(f"x is {list(x.shape)}; give 1 to {ROWS} rows of {d_in} numbers, side by side in memory")


def _prepare(x: Tensor, columns: Tensor, first: Operand, second: Operand, columns2: Tensor, factors: Tensor,
             early: bool) -> tuple[Bytes, Bytes]:
    """The bytes of x for one weight, or for the two of a mixed one."""
    both = first is not second
    made = Bytes.room(first, len(x), x), Bytes.room(second, len(x), x, "b" if both else "a")
    n_slices = first.n_slices + (second.n_slices if both else 0)
    shares.prepare[(n_slices, len(x))](
        x, columns, columns2, factors, *made[0].pointers, first.shape[1], *made[1].pointers, second.shape[1], x.stride(0),
        FIRST=first.n_slices, BITS=first.bits, SEG=first.seg, BITS2=second.bits, SEG2=second.seg, MIXED=both,
        **beside(len(x), x.dtype), PDL=early, num_warps=4, **({"launch_pdl": True} if early else {}))
    return made


def _pointers(w: Operand, made: Bytes) -> tuple:
    return w.words, w.s, w.s if w.z is None else w.z, *made.pointers, w.words.stride(0)


def _sizes(w: Operand, which: str) -> dict:
    sizes = {"BITS": w.bits, "SEG": w.seg, "HALF": w.s.dtype != torch.float32, "ZERO": w.z is not None, "SLICES": w.n_slices}
    return {name + which: value for name, value in sizes.items()}
