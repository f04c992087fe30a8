"""The stored form of vector quantization: codebooks, and for every short piece of a column the number of its vector.

    W_hat[r v + i, j] = s_j (C[idx[r, j], i] + C_res[idx_res[r, j], i]) + m_j

Indices are kept column by column, so the order in which columns were rounded leaves no trace: all that a reader needs is the
label of each column's part, and that only if there is more than one part.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import reduce
from operator import add, or_
from typing import ClassVar

import torch
from torch import Tensor

from lowbit_nb import bits as budget
from lowbit_nb import packing, stored
from lowbit_nb.codebooks.codebook import OUTLIERS, Stage, index_bits


@stored.readable
@dataclass(frozen=True)
class VectorWeight:
    """A weight made of codebook vectors.

    main, residual, outlier   stages; residual has main's columns; None where there is none
    s, m    [d_in] float16 scale and bias of columns, or None (1 and 0)
    label   [d_in] uint8: 0 for outlier columns, g + 1 for group g; None if all columns are in one group

    Source: VPTQ, Sec. 3; layout of its code. Differs: labels in place of a permutation: 1 bit a column instead of 16 where
    there are outliers, ceil(log2(groups + 1)) where there are groups.
    """

    d_out: int
    main: Stage
    residual: Stage | None = None
    outlier: Stage | None = None
    s: Tensor | None = None
    m: Tensor | None = None
    label: Tensor | None = None
    form: ClassVar[str] = "vector"

    def __post_init__(self) -> None:
        if (self.label is None) != (self.outlier is None and len(self.main.C) == 1):
            raise ValueError("columns need labels if and only if there are outlier columns or several groups")
        for name, _, stage in self.stages():
            numbers = [t for t in (stage.C, self.s, self.m) if t is not None]
            if any(t.dtype != torch.float16 or not torch.isfinite(t).all() for t in numbers):
                raise ValueError(f"{name} codebooks, scales and biases must be finite float16 numbers; "
                                 "normalise the weight (norm='std') if it does not fit")

    @property
    def shape(self) -> tuple[int, int]:
        return self.d_out, self.main.idx.shape[1] + (self.outlier.idx.shape[1] if self.outlier else 0)

    def stages(self) -> Iterator[tuple[str, Tensor, Stage]]:
        """Every stage with its name and the columns it covers."""
        inliers = torch.arange(self.shape[1], device=self.main.C.device) if self.label is None else self.label.nonzero()[:, 0]
        yield "main", inliers, self.main
        if self.residual:
            yield "residual", inliers, self.residual
        if self.outlier:
            yield "outlier", (self.label == OUTLIERS).nonzero()[:, 0], self.outlier

    def group(self, columns: Tensor) -> Tensor:
        """Which of a stage's codebooks a column uses."""
        return torch.zeros_like(columns) if self.label is None else (self.label[columns].long() - 1).clamp(min=0)

    def uses(self, columns: Tensor, stage: Stage) -> Tensor:
        """Which of a stage's n_groups * k vectors each piece uses, column after column. [n * R] int64"""
        return (self.group(columns) * stage.C.shape[1] + stage.idx.long()).T.reshape(-1)

    def normalised(self) -> Tensor:
        """W_hat before scale and bias. [d_out, d_in] float32"""
        out = torch.zeros(self.shape, device=self.main.C.device)
        for _, columns, stage in self.stages():
            out[:, columns] += stage.value(self.group(columns), self.d_out)
        return out

    def dequantize(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """W_hat = s * (C[idx] + C_res[idx_res]) + m, in the weight's own column order.

        Shapes:  returns [d_out, d_in].
        Units:   those of the weight.
        Raises:  nothing.
        Source:  VPTQ code (layers/vqlinear.py: dequant).
        Differs: computed in float32, then cast.
        """
        W_hat = self.normalised()
        W_hat = W_hat if self.s is None else W_hat * self.s.float()
        return (W_hat if self.m is None else W_hat + self.m.float()).to(dtype)

    def matvec(self, x: Tensor) -> Tensor:
        """W_hat @ x from the parts: scales meet x first, then every piece adds its vector times one number.

        Shapes:  x [d_in]; returns [d_out] float32.
        Units:   those of the layer's output.
        Raises:  nothing.
        Source:  VPTQ code (csrc: gemv); sum_j m_j x_j is one number for all rows.
        Differs: no difference.
        """
        x = x.float()
        x_s = x if self.s is None else x * self.s.float()
        y = x.new_zeros(self.d_out) if self.m is None else (self.m.float() @ x).expand(self.d_out).clone()
        for _, columns, stage in self.stages():
            picked = stage.C.float()[self.group(columns), stage.idx.long()]
            y += torch.einsum("rnv,n->rv", picked, x_s[columns]).reshape(-1)[: self.d_out]
        return y

    def pack(self) -> dict[str, Tensor]:
        """The tensors that go to disk.

        Shapes:  as `Stage.pack`, residual_ and outlier_ in front where there are such stages; scale, bias [d_in] float16;
                 label [1, n_words] int32.
        Units:   packed indices and labels; real numbers.
        Raises:  nothing.
        Source:  planar words, see `packing`.
        Differs: see the class.
        """
        out = reduce(or_, (stage.pack(_prefix(name)) for name, _, stage in self.stages()))
        out |= {name: t.contiguous() for name, t in (("scale", self.s), ("bias", self.m)) if t is not None}
        if self.label is not None:
            out["label"] = packing.pack(self.label[None], index_bits(len(self.main.C) + 1))
        return out

    def meta(self) -> dict:
        return {"form": self.form, "d_out": self.d_out, "d_in": self.shape[1], "scale": self.s is not None,
                "bias": self.m is not None,
                **{f"{name}_shape": list(stage.C.shape) for name, _, stage in self.stages()}}

    @classmethod
    def unpack(cls, tensors: dict[str, Tensor], meta: dict) -> VectorWeight:
        """The form from its tensors; the exact inverse of `pack`.

        Shapes:  as `pack`.
        Units:   as `pack`.
        Raises:  ValueError if a tensor is missing or does not fit the recorded sizes.
        Source:  this project.
        Differs: no difference.
        """
        d_out, d_in, groups = meta["d_out"], meta["d_in"], meta["main_shape"][0]
        label, stages = None, {}
        if groups > 1 or "outlier_shape" in meta:
            words, width = tensors.get("label"), index_bits(groups + 1)
            if words is None or tuple(words.shape) != (1, packing.n_words(d_in, width)):
                raise ValueError(f"the labels of {d_in} columns are missing or not as many; the file is truncated or edited")
            label = packing.unpack(words, width, d_in)[0]
        n_out = 0 if label is None else int((label == OUTLIERS).sum())
        for name, n in (("main", d_in - n_out), ("residual", d_in - n_out), ("outlier", n_out)):
            if shape := meta.get(f"{name}_shape"):
                stages[name] = Stage.unpack(tensors, _prefix(name), tuple(shape), -(-d_out // shape[2]), n)
        for name in ("scale", "bias"):
            if (name in tensors) != meta[name] or (meta[name] and tuple(tensors[name].shape) != (d_in,)):
                raise ValueError(f"{name} is missing or not of {d_in} columns; the file is truncated or edited")
        return cls(d_out, s=tensors.get("scale"), m=tensors.get("bias"), label=label, **stages)

    def bits(self) -> budget.BitBudget:
        """The itemised size; equal to the bytes of `pack()`.

        Shapes:  one line an item.
        Units:   bits.
        Raises:  nothing.
        Source:  VPTQ, App. C.2, with log2(k0) / v0 for outliers (the paper prints log2(k0 / v0)).
        Differs: codebooks, scales, biases, labels and padding are counted.
        """
        packed = self.pack()
        sizes = reduce(add, (stage.bits(_prefix(name), packed) for name, _, stage in self.stages()))
        label = index_bits(len(self.main.C) + 1)
        rest = tuple(budget.item(line, packed[name], self.shape[1], each)
                     for name, line, each in (("scale", "scales", 16), ("bias", "biases", 16), ("label", "labels", label))
                     if name in packed)
        return budget.BitBudget(sizes.items + rest, self.shape[0] * self.shape[1])


def _prefix(name: str) -> str:
    """What the tensors of a stage begin with on disk."""
    return "" if name == "main" else f"{name}_"
