"""Which ways of working out a packed product there are here, which are taken, and why the others are not.

A lane says for itself whether it can run on this machine.  The first that can, in the order of the table, is taken.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import ModuleType

import torch
from torch import Tensor

from lowbit_nb.packed import cpu, cpu_compile, cpu_native, cpu_numba, gpu
from lowbit_nb.packed.planar import Planar


@dataclass(frozen=True)
class Lane:
    """A way to multiply planar words.

    device  "cpu", "cuda" or "any"       why_not  None if it can run on this machine, otherwise the reason
    fits    whether it can take a certain weight and type of inputs
    product (x [n, d_in], planar, type) -> [n, d_out], in that type or in float32

    Source: this project. Differs: no difference.
    """

    name: str
    device: str
    what: str
    why_not: Callable[[], str | None]
    fits: Callable[[Planar, torch.dtype], bool]
    product: Callable[[Tensor, Planar, torch.dtype], Tensor]


def _always(planar: Planar, dtype: torch.dtype) -> bool:
    return True


def _for_cpu(planar: Planar, dtype: torch.dtype) -> bool:
    return cpu.fits(planar)


def _on_cpu(lane: ModuleType) -> Callable[[Tensor, Planar, torch.dtype], Tensor]:
    return lambda x, planar, dtype: lane.product(x, planar)


def _unpacked(x: Tensor, planar: Planar, dtype: torch.dtype) -> Tensor:
    return torch.nn.functional.linear(x.float(), planar.dequantize())


TABLE = (
    Lane("tensorcore", "cuda", "Triton, tensor cores", gpu.why_not_tensorcore, gpu.fits_tensorcore, gpu.tensorcore),
    Lane("general", "cuda", "Triton, any width and group", gpu.why_not, _always, gpu.general),
    Lane("native", "cpu", "C, compiled for this processor", cpu_native.why_not, _for_cpu, _on_cpu(cpu_native)),
    Lane("numba", "cpu", "numba", cpu_numba.why_not, _for_cpu, _on_cpu(cpu_numba)),
    Lane("compile", "cpu", "torch.compile", cpu_compile.why_not, _for_cpu, _on_cpu(cpu_compile)),
    Lane("unpack", "any", "plain torch: take the weight out, multiply", lambda: None, _always, _unpacked),
)
_allowed: tuple[str, ...] | None = None


def choose(planar: Planar, dtype: torch.dtype = torch.float32) -> Lane:
    """The first lane that can take a weight.

    Shapes:  a planar operand, and the type of the inputs.
    Units:   none.
    Raises:  RuntimeError if only lanes are allowed that cannot (message says why).
    Source:  this project.
    Differs: no difference.
    """
    device = planar.words.device.type
    here = [lane for lane in TABLE if lane.device in (device, "any") and (_allowed is None or lane.name in _allowed)]
    for lane in here:
        if lane.fits(planar, dtype) and lane.why_not() is None:
            return lane
    reasons = "; ".join(f"{lane.name}: {lane.why_not() or 'does not take this weight'}" for lane in here)
    raise RuntimeError(f"no allowed lane can multiply {planar.bits}-bit words in groups of {planar.group} on {device} "
                       f"({reasons}); allow 'unpack', which always can")


def product(x: Tensor, planar: Planar, dtype: torch.dtype = torch.float32) -> Tensor:
    """x @ W_hat.T by the first lane that can, in float32 or, where a kernel can write it, in `dtype`.

    Shapes:  x [n, d_in] of any float type, few rows; returns [n, d_out].
    Units:   those of the layer's output.
    Raises:  RuntimeError as `choose`.
    Source:  this project.
    Differs: no difference.
    """
    return choose(planar, x.dtype).product(x, planar, dtype)


def lanes() -> dict[str, str]:
    """Every lane, and whether it can run here: "ready", or why not.

    Shapes:  one line a lane, in the order in which they are tried.
    Units:   none.
    Raises:  nothing.
    Source:  this project.
    Differs: no difference.

    >>> lanes()["unpack"]
    'ready: plain torch: take the weight out, multiply'
    """
    return {lane.name: f"not here: {reason}" if (reason := lane.why_not()) else f"ready: {lane.what}" for lane in TABLE}


@contextmanager
def only(*names: str) -> Iterator[None]:
    """Inside, only these lanes are taken.

    Shapes:  names of lanes.
    Units:   none.
    Raises:  ValueError for a name that is no lane.
    Source:  this project.
    Differs: no difference.
    """
    global _allowed
    known = [lane.name for lane in TABLE]
    if unknown := sorted(set(names) - set(known)):
        raise ValueError(f"{', '.join(unknown)}: no such lane; there are {', '.join(known)}")
    before, _allowed = _allowed, names
    try:
        yield
    finally:
        _allowed = before
