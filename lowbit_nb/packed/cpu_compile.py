"""The CPU's lane through torch.compile: plain torch, in the one formulation that its compiler turns into one loop over words.

    for every plane j:   a += ((words >> j * width) & mask).float() * x[plane j]

Written as an unpacked tensor that is then multiplied, the same product takes about fifty times as long: planes must be
unrolled in Python, with words as the innermost axis.
"""

from __future__ import annotations

import os
import shutil
import types
import warnings
from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor

from lowbit_nb.packed import cpu
from lowbit_nb.packed.planar import Planar

_failed: list[str] = []  # what the compiler said when it could not


def why_not() -> str | None:
    """Why the lane cannot run here, or None if it can.

    Shapes:  returns a sentence or None.
    Units:   none.
    Raises:  nothing.
    Source:  this project.
    Differs: no difference.
    """
    known = filter(None, (os.environ.get("CXX"), "g++", "clang++"))
    missing = None if any(map(shutil.which, known)) else "torch.compile needs a C++ compiler (install g++ or clang++)"
    return missing or (f"torch.compile failed: {_failed[0]}" if _failed else None)


def product(x: Tensor, planar: Planar) -> Tensor:
    """x @ W_hat.T.

    Shapes:  x [n, d_in]; returns [n, d_out] float32.
    Units:   those of the layer's output.
    Raises:  nothing: where the compiler fails, a warning says so once, and the weight is taken out from then on.
    Source:  this project.
    Differs: no difference.
    """
    try:
        return cpu.product(x, planar, _add)
    except Exception as error:
        _failed.append(f"{type(error).__name__}: {str(error).strip().splitlines()[0][:160]}")
        warnings.warn(f"{why_not()}; packed products take the weight out instead", RuntimeWarning, stacklevel=2)
        return torch.nn.functional.linear(x.float(), planar.dequantize())


def _add(segment: cpu.Segment, x: Tensor, y: Tensor) -> None:
    run = compiled(segment.width, segment.plane, segment.together)
    for x_m, y_m in zip(x[:, segment.first : segment.first + segment.columns], y, strict=True):
        y_m += run(segment.words, x_m, segment.s)


@cache
def compiled(width: int, plane: int, together: int) -> Callable:
    """The compiled function of one kind of segment, for any number of rows and slices.

    Shapes:  a function of words [d_out, slices * plane], x [slices * E * plane] and s [d_out, n_scales]; returns [d_out].
    Units:   those of the layer's output.
    Raises:  nothing.
    Source:  this project.
    Differs: no difference.
    """
    return torch.compile(_own_code(formula(width, plane, together)), dynamic=True)


def formula(width: int, plane: int, together: int) -> Callable:
    """The product of one kind of segment in plain torch, as `compiled` gives it to the compiler.

    Shapes:  as `compiled`.
    Units:   those of the layer's output.
    Raises:  nothing.
    Source:  this project.
    Differs: no difference.
    """
    fields, mask = 32 // width, 2**width - 1

    def run(words: Tensor, x: Tensor, s: Tensor) -> Tensor:
        slices = words.shape[1] // plane
        Q = words.reshape(len(words), slices, plane)
        X, S = x.reshape(slices, fields, plane), s.reshape(len(words), slices, fields // together, 1)
        total = 0.0
        for i in range(fields // together):
            dot = 0.0
            for j in range(i * together, (i + 1) * together):
                dot = dot + ((Q >> (j * width)) & mask).to(torch.float32) * X[:, j]
            total = total + dot * S[:, :, i]
        return total.sum((1, 2))

    return run


def _own_code(f: Callable) -> Callable:
    """The same function with a code object of its own: the compiler counts how often one code object was compiled."""
    return types.FunctionType(f.__code__.replace(), f.__globals__, f.__name__, f.__defaults__, f.__closure__)
