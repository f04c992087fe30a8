"""The GPU's lanes: kernels of the room `kernels`, taken where Triton and a GPU are and the kernel takes the weight."""

from __future__ import annotations

import importlib
from functools import cache
from types import ModuleType

import torch
from torch import Tensor

from lowbit_nb.packed.planar import Planar


@cache
def kernel(name: str) -> ModuleType | None:
    """A module of `kernels`, or None if it cannot be used here.

    Shapes:  a name.
    Units:   none.
    Raises:  nothing.
    Source:  this project.
    Differs: no difference.
    """
    try:
        return importlib.import_module(f"lowbit_nb.kernels.{name}")
    except ImportError:
        return None


@cache
def why_not() -> str | None:
    """Why Triton's kernels cannot run here, or None if they can.

    Shapes:  returns a sentence or None.
    Units:   none.
    Raises:  nothing.
    Source:  this project.
    Differs: no difference.
    """
    if not torch.cuda.is_available():
        return "there is no GPU"
    return None if kernel("general") else "Triton is not installed (pip install triton)"


@cache
def why_not_tensorcore() -> str | None:
    """Why the tensor-core kernel cannot run here, or None if it can.

    Shapes:  returns a sentence or None.
    Units:   none.
    Raises:  nothing.
    Source:  this project.
    Differs: no difference.
    """
    if why_not():
        return why_not()
    if torch.cuda.get_device_capability() < (8, 0):
        return "the GPU is older than compute capability 8.0"
    return None if kernel("tensorcore") else "the kernel is not there"


def fits_tensorcore(planar: Planar, dtype: torch.dtype) -> bool:
    """Whether the tensor-core kernel takes a weight: its shape, width and group.

    Shapes:  a planar operand, and the type of the inputs.
    Units:   none.
    Raises:  nothing.
    Source:  `kernels.tensorcore`.
    Differs: no difference.
    """
    return why_not_tensorcore() is None and kernel("tensorcore").fits(*planar.shape, planar.bits, planar.group)


def tensorcore(x: Tensor, planar: Planar, dtype: torch.dtype) -> Tensor:
    """x @ W_hat.T on tensor cores.

    Shapes:  x [n, d_in]; returns [n, d_out] in `dtype`.
    Units:   those of the layer's output.
    Raises:  as the kernel.
    Source:  `kernels.tensorcore`.
    Differs: no difference.
    """
    if _takes_halves(len(x), planar, dtype):
        return kernel("halves").product(x.to(dtype), _prepared(planar, "halves"))
    return kernel("tensorcore").product(x.to(dtype), _prepared(planar, "tensorcore"))  # it answers in the type of x


def tensorcore_operand(n: int, planar: Planar, dtype: torch.dtype) -> object | None:
    """What that kernel takes, or None if n rows are not for it.

    Shapes:  n rows of x; returns a `kernels.tensorcore.Operand`.
    Units:   none.
    Raises:  nothing.
    Source:  this project.
    Differs: no difference.
    """
    most = kernel("tensorcore").ROWS
    return None if n > most or _takes_halves(n, planar, dtype) else _prepared(planar, "tensorcore")


def _takes_halves(n: int, planar: Planar, dtype: torch.dtype) -> bool:
    """One row of half-precision inputs, where that kernel was measured to be the faster one."""
    plan = kernel("tiles").plan(planar.bits, *planar.shape, n)
    return n == 1 and dtype in (torch.float16, torch.bfloat16) and plan.lane == "halves"


def mixed(salient: Tensor, high: Planar, low: Planar, factors: Tensor | None) -> object:
    """Both parts of a mixed weight made ready for one launch.

    Shapes:  salient [d_in] bool; factors [columns of low] or None.
    Units:   none.
    Raises:  as the kernel.
    Source:  `kernels.tensorcore`.
    Differs: no difference.
    """
    return kernel("tensorcore").mixed_operand(salient, _prepared(high, "tensorcore"), _prepared(low, "tensorcore"), factors)


def _prepared(planar: Planar, name: str) -> object:
    made = planar.prepared.get(name)
    if made is None:
        made = planar.prepared[name] = kernel(name).operand(
            planar.words, planar.bits, planar.d_in, planar.s, planar.z, planar.group)
    return made


def general(x: Tensor, planar: Planar, dtype: torch.dtype) -> Tensor:
    """x @ W_hat.T, any width, group and shape.

    Shapes:  x [n, d_in]; returns [n, d_out] in `dtype`.
    Units:   those of the layer's output.
    Raises:  as the kernel.
    Source:  `kernels.general`.
    Differs: no difference.
    """
    made = planar.prepared.get("general")
    if made is None:
        made = planar.prepared["general"] = kernel("general").operand(
            planar.words, planar.bits, planar.s, planar.z, planar.group, planar.d_in)
    return kernel("general").product(x, *made, dtype=dtype)
