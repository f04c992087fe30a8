"""The product that every kernel is held against: take the weight out of its packed tensors, multiply, forget it.

Nothing is kept between calls and nothing is clever.  It reads what `pack()` wrote, tensors and settings, and no more.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lowbit_nb import bilevel, sparse, stored  # noqa: F401  forms that may be packed
from lowbit_nb.codebooks import across, vector  # noqa: F401
from lowbit_nb.onebit import binary, mixed, partial, signweight  # noqa: F401


def dequantize(tensors: dict[str, Tensor], meta: dict, dtype: torch.dtype = torch.float32) -> Tensor:
    """The weight that packed tensors stand for.

    Shapes:  tensors and settings as a stored form's `pack()` and `meta()`; returns [d_out, d_in].
    Units:   real units of the weight.
    Raises:  ValueError if tensors and settings do not fit one another, or the form is unknown.
    Source:  this project.
    Differs: no difference.
    """
    return stored.unpack(tensors, meta).dequantize(dtype)


def product(x: Tensor, tensors: dict[str, Tensor], meta: dict) -> Tensor:
    """x @ W_hat.T, with W_hat made for this one call, in the type of x.

    Shapes:  x [..., d_in]; returns [..., d_out].
    Units:   those of the layer's output.
    Raises:  ValueError as `dequantize`.
    Source:  this project.
    Differs: no difference.

    >>> from lowbit_nb import Grid
    >>> w = stored.AffineWeight.nearest(torch.tensor([[1.0, -2.0, 0.0]]), Grid(2))
    >>> product(torch.tensor([1.0, 1.0, 5.0]), w.pack(), w.meta()).tolist()
    [-1.0]
    """
    return torch.nn.functional.linear(x, dequantize(tensors, meta, x.dtype))
