"""Affine grids whose steps and zero points are themselves stored in a few bits.

Small groups follow the weights closely but pay 32 bits a group for a float16 step and zero point.  Put those on grids of
their own, a few bits each, shared by `rows` consecutive output rows of one column group:

    s = s_lo + s_step * s_code        z = z_lo + z_step * z_code        W_hat = s * (q - z)
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import ClassVar

import torch
from torch import Tensor

from lowbit_nb import bits as budget
from lowbit_nb import packing, stored
from lowbit_nb.grid import Grid


@dataclass(frozen=True)
class Second:
    """The grid of steps and zero points: bits of each, and how many rows share one.

    Source: SpQR, Sec. 4.2 (3 bits, 16 rows). Differs: no difference.
    """

    scale_bits: int = 3
    zero_bits: int = 3
    rows: int = 16

    def __post_init__(self) -> None:
        if not (1 <= self.scale_bits <= 8 and 1 <= self.zero_bits <= 8 and self.rows >= 1):
            raise ValueError(f"{self}: steps and zero points need 1 to 8 bits each and at least one row")


@dataclass(frozen=True)
class Coded:
    """Real numbers in a few bits: lo + step * code, one (lo, step) for every `rows` numbers of a column.

    Shapes: code [d_out, n_groups] uint8; lo, step [d_out // rows, n_groups] float16.

    Source: SpQR, Sec. 4.2.
    Differs: keeps the smallest number itself, not a zero point, so that numbers far from zero lose nothing.
    """

    code: Tensor
    lo: Tensor
    step: Tensor

    @classmethod
    def of(cls, x: Tensor, bits: int, rows: int) -> Coded:
        """The nearest codes, on grids from the smallest to the largest number.

        Shapes:  x [d_out, n_groups]; rows divides d_out.
        Units:   those of x.
        Raises:  ValueError if rows does not divide d_out, or a number does not fit float16.
        Source:  SpQR code (second level).
        Differs: lo and step are rounded to float16 before codes are chosen.
        """
        if len(x) % rows:
            raise ValueError(f"d_out={len(x)} is not a multiple of the {rows} rows that share a second-level grid")
        x_g = x.float().reshape(-1, rows, x.shape[1])
        lo = x_g.amin(1).to(torch.float16)
        step = ((x_g.amax(1) - lo.float()) / (2**bits - 1)).clamp(min=0).to(torch.float16)
        if not (torch.isfinite(lo).all() and torch.isfinite(step).all()):
            raise ValueError("a step or zero point does not fit float16; use larger groups or another grid")
        at = (x_g - lo.float()[:, None]) / torch.where(step > 0, step, 1).float()[:, None]
        return cls(at.round().clamp(0, 2**bits - 1).to(torch.uint8).reshape(x.shape), lo, step)

    def value(self) -> Tensor:
        """lo + step * code, in float32. [d_out, n_groups]"""
        rows = len(self.code) // len(self.lo)
        return self.lo.float().repeat_interleave(rows, 0) + self.step.float().repeat_interleave(rows, 0) * self.code.float()


@stored.readable
@dataclass(frozen=True)
class BilevelWeight:
    """Codes on affine grids with coded steps and zero points.

    q  [d_out, d_in] uint8      scale, zero  `Coded` [d_out, n_groups]      perm  as in `AffineWeight`

    Source: SpQR, Sec. 4.2. Differs: no difference.
    """

    q: Tensor
    scale: Coded
    zero: Coded
    grid: Grid
    second: Second
    perm: Tensor | None = None
    form: ClassVar[str] = "bilevel"

    @property
    def shape(self) -> tuple[int, int]:
        return tuple(self.q.shape)

    def dequantize(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """W_hat = s * (q - z), in the weight's own column order.

        Shapes:  returns [d_out, d_in].
        Units:   those of the weight.
        Raises:  nothing.
        Source:  SpQR, Sec. 4.2.
        Differs: computed in float32, then cast.
        """
        q_g = self.q.reshape(len(self.q), self.scale.code.shape[1], -1).float()
        W_hat = ((q_g - self.zero.value()[..., None]) * self.scale.value()[..., None]).reshape(self.q.shape)
        if self.perm is not None:
            W_hat = torch.empty_like(W_hat).index_copy_(1, self.perm.long(), W_hat)
        return W_hat.to(dtype)

    def matvec(self, x: Tensor) -> Tensor:
        """W_hat @ x, from codes, steps and zero points.

        Shapes:  x [d_in]; returns [d_out] float32.
        Units:   those of the layer's output.
        Raises:  nothing.
        Source:  as `AffineWeight.matvec`.
        Differs: no difference.
        """
        x = x.float() if self.perm is None else x.float()[self.perm.long()]
        return stored.grouped_matvec(self.q, self.scale.value(), self.zero.value(), x)

    def pack(self) -> dict[str, Tensor]:
        """The tensors that go to disk.

        Shapes:  codes [d_out, n_words]; scale_codes, zero_codes [1, n_words]; four float16 [d_out // rows, n_groups]; perm.
        Units:   packed codes; second-level numbers.
        Raises:  nothing.
        Source:  planar words, see `packing`; SpQR keeps a group in one 64-bit word.
        Differs: any bits and group sizes, nothing unused.
        """
        out = {"codes": packing.pack(self.q, self.grid.bits)}
        for name, part, bits in (("scale", self.scale, self.second.scale_bits), ("zero", self.zero, self.second.zero_bits)):
            words = packing.pack(part.code.reshape(1, -1), bits)
            out |= {f"{name}_codes": words, f"{name}_lo": part.lo, f"{name}_step": part.step}
        if self.perm is not None:
            out["perm"] = self.perm.to(torch.int16 if len(self.perm) < 2**15 else torch.int32)
        return {name: t.contiguous() for name, t in out.items()}

    def meta(self) -> dict:
        return {"form": self.form, "d_out": self.shape[0], "d_in": self.shape[1], "grid": asdict(self.grid),
                "second": asdict(self.second)}

    @classmethod
    def unpack(cls, tensors: dict[str, Tensor], meta: dict) -> BilevelWeight:
        """The form from its tensors; the exact inverse of `pack`.

        Shapes:  as `pack`.
        Units:   as `pack`.
        Raises:  ValueError if a tensor is missing or does not fit the recorded sizes.
        Source:  this project.
        Differs: no difference.
        """
        grid, second, d_out, d_in = Grid(**meta["grid"]), Second(**meta["second"]), meta["d_out"], meta["d_in"]
        n = grid.n_groups(d_in)
        parts = {}
        for name, bits in (("scale", second.scale_bits), ("zero", second.zero_bits)):
            lo, step, codes = (tensors.get(f"{name}_{part}") for part in ("lo", "step", "codes"))
            shape = (d_out // second.rows, n)
            words = (1, packing.n_words(d_out * n, bits))
            found = [None if t is None else tuple(t.shape) for t in (lo, step, codes)]
            if found != [shape, shape, words]:
                raise ValueError(f"the {name}s of a bilevel weight are missing or not {list(shape)}; "
                                 "the file is truncated or edited")
            parts[name] = Coded(packing.unpack(codes, bits, d_out * n).reshape(d_out, n), lo, step)
        if "codes" not in tensors or len(tensors["codes"]) != d_out:
            raise ValueError(f"the codes of a bilevel weight are missing or not of {d_out} rows; "
                             "the file is truncated or edited")
        perm = tensors["perm"].to(torch.int64) if "perm" in tensors else None
        return cls(packing.unpack(tensors["codes"], grid.bits, d_in), parts["scale"], parts["zero"], grid, second, perm)

    def bits(self) -> budget.BitBudget:
        """The itemised size; equal to the bytes of `pack()`.

        Shapes:  one line an item.
        Units:   bits.
        Raises:  nothing.
        Source:  SpQR: b + (b_s + b_z) / g + 64 / (g * rows).
        Differs: padding and permutation are counted.
        """
        n, m = self.scale.code.numel(), self.scale.lo.numel()
        counts = {"codes": (self.q.numel(), self.grid.bits), "scale_codes": (n, self.second.scale_bits),
                  "zero_codes": (n, self.second.zero_bits), "perm": (self.shape[1], 16 if self.shape[1] < 2**15 else 32)}
        items = tuple(budget.item(name.replace("_", " "), t, *counts.get(name, (m, 16))) for name, t in self.pack().items())
        return budget.BitBudget(items, self.q.numel())
