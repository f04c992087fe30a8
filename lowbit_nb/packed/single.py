"""Corrections at single places, in compressed rows: added to a product, or to the weight itself."""

from __future__ import annotations

import torch
from torch import Tensor

from lowbit_nb.packed import gpu


class Single:
    """Numbers at single places.

    ptr  [d_out + 1] int32      cols  [n] rising in each row      values  [n], added to a product
    instead  None: the values are added to the weight too; or [n], what the weight is there

    Source: the compressed rows of `CorrectedWeight`. Differs: no difference.
    """

    def __init__(self, ptr: Tensor, cols: Tensor, values: Tensor, d_in: int, instead: Tensor | None = None) -> None:
        self.ptr, self.cols, self.values, self.d_in, self.instead = ptr, cols, values, d_in, instead
        self.prepared: object | None = None  # what the GPU's kernel made of it

    @property
    def rows(self) -> Tensor:
        """The row of every number. [n] int64"""
        numbers = torch.arange(len(self.ptr) - 1, device=self.ptr.device)
        return torch.repeat_interleave(numbers, self.ptr.diff().long(), output_size=len(self.cols))

    def add_product(self, x: Tensor, y: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
        """y plus the product of the corrections.

        Shapes:  x [n, d_in]; y [n, d_out] float32; returns [n, d_out] in float32 or `dtype`.
        Units:   those of the layer's output.
        Raises:  nothing.
        Source:  SpQR, Sec. 4.
        Differs: no difference.
        """
        if not len(self.cols):
            return y
        kernel = gpu.kernel("sparse") if x.is_cuda and gpu.why_not() is None else None
        if kernel is None:
            return y.index_add(1, self.rows, self.values.float() * x.float().index_select(1, self.cols.int()))
        if self.prepared is None:
            self.prepared = kernel.operand(self.ptr, self.cols, self.values, self.d_in)
        return kernel.product(x, self.prepared, base=y, dtype=dtype)

    def place(self, W: Tensor) -> Tensor:
        """The weight with every number in its place.

        Shapes:  W [d_out, d_in] float32, overwritten; returns it.
        Units:   those of the weight.
        Raises:  nothing.
        Source:  this project.
        Differs: no difference.
        """
        values = self.values if self.instead is None else self.instead
        return W.index_put_((self.rows, self.cols.long()), values.float(), accumulate=self.instead is None)
