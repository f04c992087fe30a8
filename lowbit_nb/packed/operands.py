"""What a packed layer multiplies with: every stored form from the tensors of its `pack()`, as a few kinds of parts.

    affine, bilevel   planar words, in another column order if there is one        sign      one plane, column factors
    mixed             two operands, each with its own columns                      corrected an operand and single places
    partial           one plane and single places                                 binary, vector, across: see `planes`, `books`

Making an operand may look at numbers (where is a mask set?); using it may not, so a product is the same work every time.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

from lowbit_nb import packing
from lowbit_nb.bilevel import BilevelWeight, Coded, Second
from lowbit_nb.grid import Grid
from lowbit_nb.onebit.signweight import SignWeight
from lowbit_nb.packed import books, choice, gpu, planes
from lowbit_nb.packed.planar import Planar
from lowbit_nb.packed.single import Single
from lowbit_nb.stored import AffineWeight


class Operand(Protocol):
    """A weight that can multiply few rows from its parts, or be taken out for many.

    Source: this project. Differs: no difference.
    """

    def product(self, x: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
        """x [n, d_in] of any float type -> [n, d_out], in float32 or, where a kernel can write it, in `dtype`."""

    def dequantize(self) -> Tensor:
        """[d_out, d_in] float32, the same numbers as the stored form's own."""


class Affine:
    """Planar words whose columns may be in another order, and whose inputs may have factors.

    Source: this project. Differs: no difference.
    """

    def __init__(self, planar: Planar, value: Callable[[], Tensor], perm: Tensor | None = None,
                 factors: Tensor | None = None) -> None:
        self.planar, self.dequantize, self.perm, self.factors = planar, value, perm, factors

    def product(self, x: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
        """x [n, d_in] -> [n, d_out]."""
        x = x if self.perm is None else x.index_select(1, self.perm)
        x = x if self.factors is None else (x * self.factors).to(x.dtype)
        return choice.product(x, self.planar, dtype)

    def prepared(self, n: int, dtype: torch.dtype) -> object | None:
        """What the tensor-core kernel takes, if it is the one that multiplies n rows of that type as they come."""
        if self.perm is not None or self.factors is not None or choice.choose(self.planar, dtype).name != "tensorcore":
            return None
        return gpu.tensorcore_operand(n, self.planar, dtype)


class Mixed:
    """Two operands, each with its own columns.

    Source: this project. Differs: no difference.
    """

    def __init__(self, salient: Tensor, high: Operand, low: Operand) -> None:
        self.salient, self.high, self.low = salient, high, low
        self.columns = salient.nonzero()[:, 0], (~salient).nonzero()[:, 0]
        self.prepared: object | None = None  # both parts as one kernel takes them

    def product(self, x: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
        """x [n, d_in] -> [n, d_out]."""
        if not self._together(x.dtype):
            return (self.high.product(x.index_select(1, self.columns[0])) +
                    self.low.product(x.index_select(1, self.columns[1])))
        if self.prepared is None:
            self.prepared = gpu.mixed(self.salient, self.high.planar, self.low.planar, self.low.factors)
        return gpu.kernel("tensorcore").mixed_product(x.to(dtype), self.prepared)

    def _together(self, dtype: torch.dtype) -> bool:
        """Whether one kernel takes both parts."""
        plain = all(isinstance(part, Affine) and part.perm is None for part in (self.high, self.low))
        return plain and self.salient.is_cuda and self.high.factors is None and all(
            choice.choose(part.planar, dtype).name == "tensorcore" for part in (self.high, self.low))

    def dequantize(self) -> Tensor:
        """[d_out, d_in] float32."""
        parts = torch.cat([self.high.dequantize(), self.low.dequantize()], 1)
        return torch.empty_like(parts).index_copy_(1, torch.cat(self.columns), parts)


class Corrected:
    """An operand, and single places that it does not have right.

    Source: this project. Differs: no difference.
    """

    def __init__(self, base: Operand, single: Single) -> None:
        self.base, self.single = base, single

    def product(self, x: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
        """x [n, d_in] -> [n, d_out]."""
        return self.single.add_product(x, self.base.product(x), dtype)

    def dequantize(self) -> Tensor:
        """[d_out, d_in] float32."""
        return self.single.place(self.base.dequantize())


def operand(tensors: dict[str, Tensor], meta: dict) -> Operand:
    """The operand of any stored form.

    Shapes:  tensors as the form's `pack()`, on one device; meta as its `meta()`.
    Units:   none.
    Raises:  ValueError for a form that has no operand.
    Source:  this project.
    Differs: no difference.
    """
    if meta.get("form") not in FORMS:
        raise ValueError(f"stored form {meta.get('form')!r} has no packed product; there are {', '.join(FORMS)}")
    return FORMS[meta["form"]](tensors, meta)


def shape(meta: dict) -> tuple[int, int]:
    """(d_out, d_in) of a stored form, from its settings.

    Shapes:  meta as a form's `meta()`; returns two ints.
    Units:   none.
    Raises:  nothing.
    Source:  this project.
    Differs: no difference.
    """
    if meta["form"] == "corrected":
        return shape(meta["base"])
    return (shape(meta["high"])[0] if meta["form"] == "mixed" else meta["d_out"]), meta["d_in"]


def _affine(tensors: dict[str, Tensor], meta: dict) -> Operand:
    grid, d_in, z = Grid(**meta["grid"]), meta["d_in"], tensors.get("zeros")
    words, s = tensors["codes"], tensors["scales"]
    if grid.stored_zero == "integer":
        z = packing.unpack(z, grid.bits, s.numel()).reshape(s.shape)
    perm = tensors["perm"].long() if "perm" in tensors else None
    planar = Planar(words, grid.bits, s, z, grid.g(d_in), d_in)
    return Affine(planar, lambda: AffineWeight(packing.unpack(words, grid.bits, d_in), s, z, grid, perm).dequantize(), perm)


def _bilevel(tensors: dict[str, Tensor], meta: dict) -> Operand:
    grid, second, d_in = Grid(**meta["grid"]), Second(**meta["second"]), meta["d_in"]
    words, shape = tensors["codes"], (meta["d_out"], grid.n_groups(d_in))
    parts = []
    for name, bits in (("scale", second.scale_bits), ("zero", second.zero_bits)):
        code = packing.unpack(tensors[f"{name}_codes"], bits, shape[0] * shape[1]).reshape(shape)
        parts.append(Coded(code, tensors[f"{name}_lo"], tensors[f"{name}_step"]))
    perm = tensors["perm"].long() if "perm" in tensors else None
    planar = Planar(words, grid.bits, parts[0].value(), parts[1].value(), grid.g(d_in), d_in)

    def value() -> Tensor:
        return BilevelWeight(packing.unpack(words, grid.bits, d_in), *parts, grid, second, perm).dequantize()

    return Affine(planar, value, perm)


def _sign(tensors: dict[str, Tensor], meta: dict) -> Operand:
    words, a, mu, v, d_in = tensors["signs"], tensors["levels"], tensors["means"], tensors.get("factors"), meta["d_in"]
    planar = Planar.levels(words, mu.float() - a.float(), 2 * a.float(), d_in // meta["n_groups"], d_in)
    return Affine(planar, lambda: SignWeight(packing.unpack(words, 1, d_in).bool(), a, mu, v).dequantize(),
                  factors=None if v is None else v.float())


def _mixed(tensors: dict[str, Tensor], meta: dict) -> Operand:
    salient = packing.unpack(tensors["salient"], 1, meta["d_in"])[0].bool()
    return Mixed(salient, *(operand(_part(tensors, name), meta[name]) for name in ("high", "low")))


def _corrected(tensors: dict[str, Tensor], meta: dict) -> Operand:
    base = operand(_part(tensors, "base"), meta["base"])
    parts = (tensors[f"outlier_{name}"] for name in ("ptr", "cols", "values"))
    return Corrected(base, Single(*parts, d_in=shape(meta)[1]))


def _partial(tensors: dict[str, Tensor], meta: dict) -> Operand:
    """Every weight gets a sign, and those with a code a correction: the code's value less the sign's."""
    d_out, d_in, n, bits = (meta[name] for name in ("d_out", "d_in", "n_salient", "bits"))
    a, mu = tensors["levels"], tensors["means"]
    salient = packing.unpack(tensors["salient"], 1, d_in).bool()
    sign = torch.zeros_like(salient)
    sign[~salient] = packing.unpack(tensors["signs"], 1, d_out * d_in - n)[0].bool()
    words, group = packing.pack(sign.to(torch.uint8), 1), d_in // meta["n_groups"]
    rows, cols = salient.nonzero(as_tuple=True)
    z = packing.unpack(tensors["zeros"], bits, d_out)[0].float()
    value = (packing.unpack(tensors["codes"], bits, n)[0].float() - z[rows]) * tensors["scales"][rows, 0].float()
    low = mu.float() - a.float()
    ptr = torch.nn.functional.pad(salient.sum(1).cumsum(0), (1, 0)).to(torch.int32)
    short = cols.to(torch.int16 if d_in < 2**15 else torch.int32)
    single = Single(ptr, short, value - low[rows, cols // group], d_in=d_in, instead=value)
    signs = Affine(Planar.levels(words, low, 2 * a.float(), group, d_in),
                   lambda: SignWeight(packing.unpack(words, 1, d_in).bool(), a, mu).dequantize())
    return Corrected(signs, single)


def _part(tensors: dict[str, Tensor], name: str) -> dict[str, Tensor]:
    return {key.removeprefix(f"{name}."): t for key, t in tensors.items() if key.startswith(f"{name}.")}


FORMS: dict[str, Callable[[dict[str, Tensor], dict], Operand]] = {
    "affine": _affine, "bilevel": _bilevel, "sign": _sign, "mixed": _mixed, "corrected": _corrected, "partial": _partial,
    "binary": planes.operand, "vector": books.vector, "across": books.across,
}
