"""Stored forms: a quantized weight *is* its integers, scales and maps.

Evaluation, saving, pictures and kernels all start from a stored form; nothing ever reads a scale back out of dequantized
floats.  Every form answers the same six questions, so the rest of the kit need not know which one it holds:

    dequantize()   the weight it stands for           bits()    its itemised size
    matvec()       its product, from its parts        pack()    the tensors that go to disk
    meta()         the settings needed to read them   unpack()  the form, from those two
"""

from __future__ import annotations

import hashlib
from dataclasses import asdict, dataclass
from typing import ClassVar, Protocol

import torch
from torch import Tensor

from lowbit_nb import bits as budget
from lowbit_nb import grid as grids
from lowbit_nb import packing
from lowbit_nb.grid import Grid


class StoredWeight(Protocol):
    """What every stored form offers.

    Source: this project. Differs: no difference.
    """

    form: ClassVar[str]

    @property
    def shape(self) -> tuple[int, int]: ...
    def dequantize(self, dtype: torch.dtype = torch.float32) -> Tensor: ...
    def bits(self) -> budget.BitBudget: ...
    def matvec(self, x: Tensor) -> Tensor: ...
    def pack(self) -> dict[str, Tensor]: ...
    def meta(self) -> dict: ...


FORMS: dict[str, type] = {}


def readable(form: type) -> type:
    """Make a stored form known to `unpack`, by its own name.

    Shapes:  a class.
    Units:   none.
    Raises:  nothing.
    Source:  this project.
    Differs: no difference.
    """
    FORMS[form.form] = form
    return form


@readable
@dataclass(frozen=True)
class AffineWeight:
    """Codes on affine grids: W_hat = s * (q - z), one (s, z) a row and group.

    q     [d_out, d_in] uint8 codes, 0 .. 2**bits - 1
    s     [d_out, n_groups] in grid.scale_dtype
    z     [d_out, n_groups] uint8 (integer), the scale type (real), or None (symmetric)
    perm  None, or [d_in]: column c of q is column perm[c] of the weight (act-order with dynamic groups)

    Source: the GPTQ file layout, made explicit. Differs: bits, group, order and range rule travel with the tensors.
    """

    q: Tensor
    s: Tensor
    z: Tensor | None
    grid: Grid
    perm: Tensor | None = None
    form: ClassVar[str] = "affine"

    @classmethod
    def of(cls, q: Tensor, s: Tensor, z: Tensor, grid: Grid, perm: Tensor | None = None) -> AffineWeight:
        """The stored form of codes, steps and zero points, each in the type it has on disk.

        Shapes:  q [d_out, d_in]; s, z [d_out, n_groups]; perm [d_in] or None.
        Units:   s is real units per integer step, z is in integer steps.
        Raises:  ValueError if s is not finite or not representable in grid.scale_dtype.
        Source:  this project.
        Differs: no difference.
        """
        dtype = grids.SCALE_DTYPES[grid.scale_dtype]
        if not torch.isfinite(s).all() or not torch.equal(s.to(dtype).float(), s.float()):
            raise ValueError(f"s is not finite or not representable in {grid.scale_dtype}; round s before choosing codes "
                             "(grid.fit does), or use scale_dtype='float32'")
        stored_z = {"none": None, "integer": z.to(torch.uint8), "real": z.to(dtype)}[grid.stored_zero]
        return cls(q.to(torch.uint8), s.to(dtype), stored_z, grid, perm)

    @classmethod
    def nearest(cls, W: Tensor, grid: Grid, clip: str = "minmax", weight: Tensor | None = None) -> AffineWeight:
        """Round to nearest: fit the rulers, take each weight's nearest mark.

        Shapes:  W [d_out, d_in]; weight [d_in] or None.
        Units:   those of the weight.
        Raises:  ValueError as `grid.fit`.
        Source:  the round-to-nearest baseline of GPTQ and LLM.int8().
        Differs: no difference.
        """
        s, z = grids.fit(W, grid, clip, weight)
        return cls.of(grids.quantize(W.float(), s, z, grid), s, z, grid)

    @property
    def shape(self) -> tuple[int, int]:
        return tuple(self.q.shape)

    @property
    def zero(self) -> Tensor:
        """z as float32, whatever its stored form. [d_out, n_groups]"""
        return torch.full_like(self.s, self.grid.levels // 2, dtype=torch.float32) if self.z is None else self.z.float()

    def dequantize(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """W_hat = s * (q - z), in the weight's own column order.

        Shapes:  returns [d_out, d_in].
        Units:   real units of the weight.
        Raises:  nothing.
        Source:  GPTQ, Sec. 2.
        Differs: computed in float32, where it is exact, then cast.
        """
        W_hat = grids.dequantize(self.q, self.s, self.zero, self.grid)
        if self.perm is not None:
            W_hat = torch.empty_like(W_hat).index_copy_(1, self.perm.long(), W_hat)
        return W_hat.to(dtype)

    def pack(self) -> dict[str, Tensor]:
        """The tensors that go to disk.

        Shapes:  codes [d_out, n_words] int32; scales [d_out, n_groups]; zeros [1, n_words] int32 or [d_out, n_groups];
                 perm [d_in] int16 (int32 from d_in = 32768 on).
        Units:   packed codes; real units per step.
        Raises:  nothing.
        Source:  planar words, see `packing`.
        Differs: integer zero points are packed as densely as codes, over the whole matrix.
        """
        out = {"codes": packing.pack(self.q, self.grid.bits), "scales": self.s}
        if self.grid.stored_zero == "integer":
            out["zeros"] = packing.pack(self.z.reshape(1, -1), self.grid.bits)
        elif self.grid.stored_zero == "real":
            out["zeros"] = self.z
        if self.perm is not None:
            out["perm"] = self.perm.to(torch.int16 if len(self.perm) < 2**15 else torch.int32)
        return {name: t.contiguous() for name, t in out.items()}

    def meta(self) -> dict:
        """The settings a reader needs beside the tensors, as plain JSON values.

        Shapes:  a dict of strings and numbers.
        Units:   none.
        Raises:  nothing.
        Source:  this project.
        Differs: no difference.
        """
        return {"form": self.form, "d_out": self.shape[0], "d_in": self.shape[1], "grid": asdict(self.grid)}

    @classmethod
    def unpack(cls, tensors: dict[str, Tensor], meta: dict) -> AffineWeight:
        """The stored form from its tensors on disk; the exact inverse of `pack`.

        Shapes:  as `pack`.
        Units:   as `pack`.
        Raises:  ValueError if a tensor is missing or does not fit the recorded sizes.
        Source:  this project.
        Differs: no difference.
        """
        grid, d_out, d_in = Grid(**meta["grid"]), meta["d_out"], meta["d_in"]
        wanted = {"codes", "scales"} | (set() if grid.stored_zero == "none" else {"zeros"})
        if missing := wanted - set(tensors):
            raise ValueError(f"the file lacks {', '.join(sorted(missing))} of an affine weight; it is truncated or edited")
        z = tensors.get("zeros")
        if grid.stored_zero == "integer":
            z = packing.unpack(z, grid.bits, d_out * grid.n_groups(d_in)).reshape(d_out, -1)
        for name, shape in {"codes": (d_out, packing.n_words(d_in, grid.bits)), "scales": (d_out, grid.n_groups(d_in))}.items():
            if tuple(tensors[name].shape) != shape:
                raise ValueError(f"{name} have shape {list(tensors[name].shape)}; {list(shape)} is recorded")
        if grid.stored_zero == "real" and z.shape != tensors["scales"].shape:
            raise ValueError(f"zeros have shape {list(z.shape)}; {list(tensors['scales'].shape)} is recorded")
        perm = tensors["perm"].to(torch.int64) if "perm" in tensors else None
        return cls(packing.unpack(tensors["codes"], grid.bits, d_in), tensors["scales"], z, grid, perm)

    def matvec(self, x: Tensor) -> Tensor:
        """W_hat @ x without W_hat: a group's codes meet x first, then its step and zero point.

        Shapes:  x [d_in]; returns [d_out] float32.
        Units:   those of the layer's output.
        Raises:  nothing.
        Source:  the order of work in low-bit kernels: sum_g s_g (q_g . x_g - z_g sum x_g).
        Differs: no difference.
        """
        x = x.float() if self.perm is None else x.float()[self.perm.long()]
        return grouped_matvec(self.q, self.s.float(), self.zero, x)

    def bits(self) -> budget.BitBudget:
        """The itemised size; equal to the bytes of `pack()`.

        Shapes:  one line an item.
        Units:   bits.
        Raises:  nothing.
        Source:  this project; without padding and permutation it is GPTQ's b + (16 + b) / g.
        Differs: padding and permutation are counted.
        """
        scale_bits = 8 * self.s.element_size()
        zero_bits = self.grid.bits if self.grid.stored_zero == "integer" else scale_bits
        counts = {"codes": (self.q.numel(), self.grid.bits), "scales": (self.s.numel(), scale_bits),
                  "zeros": (self.s.numel(), zero_bits), "perm": (self.shape[1], 16 if self.shape[1] < 2**15 else 32)}
        items = tuple(budget.item(name, t, *counts[name]) for name, t in self.pack().items())
        return budget.BitBudget(items, self.q.numel())


def grouped_matvec(q: Tensor, s: Tensor, z: Tensor, x: Tensor) -> Tensor:
    """sum over groups of s_g (q_g . x_g - z_g sum x_g).

    Shapes:  q [d_out, d_in]; s, z [d_out, n_groups]; x [d_in] in the order of the codes; returns [d_out].
    Units:   those of the layer's output.
    Raises:  nothing.
    Source:  this project.
    Differs: no difference.
    """
    x_g = x.reshape(s.shape[1], -1)
    dots = torch.einsum("ogc,gc->og", q.reshape(len(q), *x_g.shape).to(x.dtype), x_g)
    return (s * (dots - z * x_g.sum(1))).sum(1)


def unpack(tensors: dict[str, Tensor], meta: dict) -> StoredWeight:
    """The stored form that `meta` names, from its tensors.

    Shapes:  as the form's own `pack`.
    Units:   as the form's own `pack`.
    Raises:  ValueError for a form this version does not know.
    Source:  this project.
    Differs: no difference.
    """
    if meta.get("form") not in FORMS:
        raise ValueError(f"stored form {meta.get('form')!r} is unknown; this version reads {', '.join(FORMS)}")
    return FORMS[meta["form"]].unpack(tensors, meta)


def checksum(weight: StoredWeight) -> str:
    """sha256 of the dequantized float32 bytes: equal on every machine if and only if the weight is.

    Shapes:  64 hexadecimal digits.
    Units:   none.
    Raises:  nothing.
    Source:  this project.
    Differs: no difference.
    """
    return hashlib.sha256(weight.dequantize().contiguous().cpu().numpy().tobytes()).hexdigest()
