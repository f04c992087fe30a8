"""A linear layer that keeps its weight as the packed tensors of a stored form and multiplies from them.

Few rows of inputs (up to MAX_ROWS: tokens that are being written) meet the packed words.  For more rows (a prompt) the weight
is taken out once, in the inputs' type, and the library multiplies.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from lowbit_nb.packed import operands
from lowbit_nb.packed.operands import Operand
from lowbit_nb.stored import StoredWeight

MAX_ROWS = 16


class PackedLinear(nn.Module):
    """y = x @ W_hat.T + bias, from packed tensors.

    Its buffers are the tensors of `pack()` under the name `packed`, byte for byte; `bias` is an ordinary parameter or None.
    What a kernel needs beside them is made at the first product on a device, and is neither in `state_dict()` nor copied.
    It is for inference: with gradients wanted, the weight is taken out and the library multiplies.

    Source: this project. Differs: layers of AWQ, GPTQ and their relatives know one form each.
    """

    def __init__(self, tensors: dict[str, Tensor], meta: dict, bias: Tensor | None = None) -> None:
        super().__init__()
        self.out_features, self.in_features = operands.shape(meta)
        if bias is not None and tuple(bias.shape) != (self.out_features,):
            raise ValueError(f"bias has shape {list(bias.shape)}; the weight has d_out={self.out_features} rows")
        self.packed = nn.Module()
        for name, t in tensors.items():
            _hold(self.packed, name, t)
        self.meta, self._names = meta, tuple(tensors)
        self.bias = None if bias is None else nn.Parameter(bias.detach(), requires_grad=False)
        self._operand: Operand | None = None
        self._shared: tuple[object, int] | None = None  # a `fused.Fused`, and which part of it this layer is

    @classmethod
    def of(cls, stored: StoredWeight, bias: Tensor | None = None) -> PackedLinear:
        """The layer of a stored weight.

        Shapes:  bias [d_out] or None.
        Units:   none.
        Raises:  ValueError if the bias does not fit.
        Source:  this project.
        Differs: no difference.
        """
        return cls(stored.pack(), stored.meta(), bias)

    @property
    def tensors(self) -> dict[str, Tensor]:
        """The packed tensors, by the names that they have on disk."""
        return {name: self.packed.get_buffer(name) for name in self._names}

    @property
    def operand(self) -> Operand:
        """What it multiplies with, made at the first use on a device."""
        if self._operand is None:
            self._operand = operands.operand(self.tensors, self.meta)
        return self._operand

    @property
    def bytes(self) -> int:
        """Bytes of the packed tensors: those of the stored form's `bits()`."""
        return sum(t.numel() * t.element_size() for t in self.tensors.values())

    def dequantize(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """The weight, taken out. [d_out, d_in]"""
        return self.operand.dequantize().to(dtype)

    def forward(self, x: Tensor) -> Tensor:
        """The layer's output, in the type of x.

        Shapes:  x [..., d_in]; returns [..., d_out].
        Units:   those of the layer's output.
        Raises:  ValueError if x has not d_in columns or is not of floats.
        Source:  this project.
        Differs: no difference.
        """
        if x.shape[-1] != self.in_features or not x.is_floating_point():
            raise ValueError(f"x has shape {list(x.shape)} and type {x.dtype}; "
                             f"the layer takes [..., {self.in_features}] floats")
        if self._shared is not None and packed_rows(x):
            fused, i = self._shared
            y = fused.part(i, x)
        else:
            y = product(self.operand, x)
        return y if self.bias is None else y + self.bias.to(y.dtype)

    def exchange(self, old: Tensor, new: Tensor) -> None:
        """Keep a buffer's numbers somewhere else from now on: `new` in the place of `old`.

        Shapes:  two tensors of one shape, type and content.
        Units:   none.
        Raises:  nothing.
        Source:  this project.
        Differs: no difference.
        """
        for name, t in self.tensors.items():
            if t is old:
                _hold(self.packed, name, new)
        self._operand = None

    def extra_repr(self) -> str:
        """Sizes, form and bits a weight, for `print`."""
        per_weight = 8 * self.bytes / (self.in_features * self.out_features)
        return (f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}, "
                f"form={self.meta['form']}, {per_weight:.3f} bits a weight")

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> PackedLinear:
        """Move, but never change the type of what is packed: `model.half()` is about activations."""
        before = self.tensors
        super()._apply(fn, recurse)
        for name, t in self.tensors.items():
            if t.dtype != before[name].dtype:
                _hold(self.packed, name, before[name].to(t.device))
        self._operand = self._shared = None
        return self

    def _load_from_state_dict(self, *args: object, **kwargs: object) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        self._operand = self._shared = None

    def __getstate__(self) -> dict:
        return super().__getstate__() | {"_operand": None, "_shared": None}


def product(operand: Operand, x: Tensor) -> Tensor:
    """x @ W_hat.T by the packed words for few rows, by the weight taken out for many; in the type of x.

    Shapes:  x [..., d_in]; returns [..., d_out].
    Units:   those of the layer's output.
    Raises:  nothing.
    Source:  this project.
    Differs: no difference.
    """
    if not packed_rows(x):
        return nn.functional.linear(x, operand.dequantize().to(x.dtype))
    rows = x.reshape(-1, x.shape[-1])
    return operand.product(rows, x.dtype).to(x.dtype).reshape(*x.shape[:-1], -1)


def packed_rows(x: Tensor) -> bool:
    """Whether inputs are few enough for packed words, and of a type and use that lanes know.

    Shapes:  x [..., d_in].
    Units:   none.
    Raises:  nothing.
    Source:  this project.
    Differs: no difference.
    """
    few = 0 < x.numel() <= MAX_ROWS * x.shape[-1]
    return few and x.dtype != torch.float64 and not (x.requires_grad and torch.is_grad_enabled())


def _hold(module: nn.Module, name: str, t: Tensor) -> None:
    """Register a buffer whose name may have dots: each is a module of its own, so `state_dict` has the name on disk."""
    *path, last = name.split(".")
    for part in path:
        if not hasattr(module, part):
            module.add_module(part, nn.Module())
        module = getattr(module, part)
    module.register_buffer(last, t)
