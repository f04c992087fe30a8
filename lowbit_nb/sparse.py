"""A stored form and the weights that did not fit it: corrections at single places, in compressed rows.

    W_hat = base + corrections

The sparse values are what is *added*.  Codes that replace a dense value need to know what it was; corrections do not, so a
kernel may do the dense and the sparse product in either order.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from lowbit_nb import bits as budget
from lowbit_nb import stored
from lowbit_nb.stored import StoredWeight


@stored.readable
@dataclass(frozen=True)
class CorrectedWeight:
    """A stored weight and corrections to single entries of it.

    ptr     [d_out + 1] int32: the corrections of row i are ptr[i] .. ptr[i + 1]
    cols    [n] int16 (int32 from d_in = 32768 on), rising in each row        values  [n] float16

    Source: the outliers of SpQR, Sec. 4 (CSR). Differs: corrections, not replacements: the reference's file loader replaces
    and its kernel adds, which differ by what the dense code stands for.
    """

    base: StoredWeight
    ptr: Tensor
    cols: Tensor
    values: Tensor
    form: ClassVar[str] = "corrected"

    @classmethod
    def of(cls, base: StoredWeight, corrections: Tensor) -> CorrectedWeight:
        """The form with the corrections that are not zero once rounded to float16.

        Shapes:  corrections [d_out, d_in], mostly zero.
        Units:   those of the weight.
        Raises:  ValueError if a correction does not fit float16.
        Source:  this project.
        Differs: no difference.
        """
        values = corrections.to(torch.float16)
        if not torch.isfinite(values).all():
            raise ValueError(f"a correction of {float(corrections.abs().max()):.3g} does not fit float16")
        rows, cols = values.nonzero(as_tuple=True)
        ptr = torch.zeros(len(values) + 1, dtype=torch.int32, device=values.device)
        ptr[1:] = torch.bincount(rows, minlength=len(values)).cumsum(0)
        return cls(base, ptr, cols.to(torch.int16 if values.shape[1] < 2**15 else torch.int32), values[rows, cols])

    @property
    def shape(self) -> tuple[int, int]:
        return self.base.shape

    @property
    def rows(self) -> Tensor:
        """The row of every correction. [n] int64"""
        return torch.repeat_interleave(torch.arange(self.shape[0], device=self.ptr.device), self.ptr.diff().long())

    def dequantize(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """base + corrections.

        Shapes:  returns [d_out, d_in].
        Units:   those of the weight.
        Raises:  nothing.
        Source:  SpQR, Sec. 4.
        Differs: added in float32, then cast.
        """
        W_hat = self.base.dequantize()
        W_hat[self.rows, self.cols.long()] += self.values.float()
        return W_hat.to(dtype)

    def matvec(self, x: Tensor) -> Tensor:
        """W_hat @ x from the parts: the base's product, and one gather and scatter for the corrections.

        Shapes:  x [d_in]; returns [d_out] float32.
        Units:   those of the layer's output.
        Raises:  nothing.
        Source:  SpQR, Sec. 4 (dense and sparse product).
        Differs: no difference.
        """
        sparse = self.values.float() * x.float()[self.cols.long()]
        return self.base.matvec(x).index_add_(0, self.rows, sparse)

    def pack(self) -> dict[str, Tensor]:
        """The tensors that go to disk: the base's, and the compressed rows.

        Shapes:  `base.*` as the base's own; outlier_ptr, outlier_cols, outlier_values.
        Units:   those of the parts.
        Raises:  nothing.
        Source:  this project.
        Differs: no difference.
        """
        sparse = {"outlier_ptr": self.ptr, "outlier_cols": self.cols, "outlier_values": self.values}
        return {f"base.{name}": t for name, t in self.base.pack().items()} | {n: t.contiguous() for n, t in sparse.items()}

    def meta(self) -> dict:
        return {"form": self.form, "base": self.base.meta()}

    @classmethod
    def unpack(cls, tensors: dict[str, Tensor], meta: dict) -> CorrectedWeight:
        """The form from its tensors; the exact inverse of `pack`.

        Shapes:  as `pack`.
        Units:   as `pack`.
        Raises:  ValueError if rows, columns and values do not fit one another, or as the base's own `unpack`.
        Source:  this project.
        Differs: no difference.
        """
        base = stored.unpack({n.removeprefix("base."): t for n, t in tensors.items() if n.startswith("base.")}, meta["base"])
        ptr, cols, values = (tensors.get(f"outlier_{name}") for name in ("ptr", "cols", "values"))
        whole = all(t is not None for t in (ptr, cols, values))
        fit = whole and len(ptr) == base.shape[0] + 1 and int(ptr[-1]) == len(cols) == len(values)
        if not fit or int(ptr[0]) or bool((ptr.diff() < 0).any()) or bool(((cols < 0) | (cols >= base.shape[1])).any()):
            raise ValueError("the compressed rows of the corrections are missing or do not fit one another; "
                             "the file is truncated or edited")
        return cls(base, ptr, cols, values)

    def bits(self) -> budget.BitBudget:
        """The itemised size; equal to the bytes of `pack()`.

        Shapes:  one line an item.
        Units:   bits.
        Raises:  nothing.
        Source:  this project.
        Differs: SpQR's formula leaves the row pointers out.
        """
        width = 8 * self.cols.element_size()
        sparse = (budget.item("outlier rows", self.ptr, len(self.ptr), 32),
                  budget.item("outlier columns", self.cols, len(self.cols), width),
                  budget.item("outlier values", self.values, len(self.values), 16))
        return budget.BitBudget(self.base.bits().items + sparse, self.shape[0] * self.shape[1])
