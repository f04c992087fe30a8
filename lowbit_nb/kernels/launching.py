"""What products of packed words share around their launches: scratch, how work is dealt, how partial sums are added up.

Scratch belongs to the device: products may follow each other on a stream, not run on two streams at once.  Call a product once
before capturing it in a graph, so that its scratch is there.
"""

from __future__ import annotations

from functools import cache

import torch
import triton
from torch import Tensor

from lowbit_nb.kernels import shares, tiles

ADDED = 128  # outputs that a program of the last launch adds up


@cache
def room(device: torch.device, name: str, count: int, dtype: torch.dtype) -> Tensor:
    """Scratch that all products of a device use, one after the other; never given back, since a captured graph may know it.

    Shapes:  count numbers; returns [count], zeros at first.
    Units:   none.
    Raises:  nothing.
    Source:  this project.
    Differs: no difference.
    """
    return torch.zeros(count, dtype=dtype, device=device)


@cache
def early(device: torch.device) -> bool:
    """Whether a kernel may start while the one before it ends (programmatic dependent launch).

    Shapes:  a device.
    Units:   none.
    Raises:  nothing.
    Source:  NVIDIA, compute capability 9.0.
    Differs: no difference.
    """
    return device.type == "cuda" and torch.cuda.get_device_capability(device) >= (9, 0)


def beside(rows: int, dtype: torch.dtype) -> dict[str, int]:
    """How rows of x lie in the tensor core's columns: C bytes each (two for half precision), room for R rows.

    Shapes:  rows of x, and their type.
    Units:   columns.
    Raises:  nothing.
    Source:  this project.
    Differs: no difference.
    """
    each = 4 if dtype == torch.float32 else 2
    return {"C": each, "R": max(8 // each, triton.next_power_of_2(rows))}


def cut(x: Tensor, y: Tensor, plan: tiles.Plan, n_slices: int, rows: int, asm: bool) -> dict:
    """What a plan means for a launch: room for partial sums and tickets, and the kernel's constants.

    Shapes:  x [M, d_in]; y [M, d_out]; rows of the padded weight.
    Units:   none.
    Raises:  nothing.
    Source:  this project.
    Differs: no difference.
    """
    n_tiles = rows // plan.rows
    grid = max(1, min(n_tiles, plan.shares))
    partial = room(x.device, "partial", triton.next_power_of_2(n_slices * rows * len(x)), torch.float32)
    tickets = room(x.device, "tickets", max(1024, triton.next_power_of_2(grid)), torch.int32)
    made = {"ROOM": (partial, tickets, rows, y.shape[1]), "M": len(x), **beside(len(x), x.dtype), "BN": plan.rows,
            "TILES": n_tiles, "GRID": grid, "RB": -(-n_tiles // grid), "NS": plan.stages, "APART": plan.apart, "ASM": asm,
            "PDL": early(x.device), "num_warps": plan.warps, "maxnreg": plan.registers}
    return made | ({"launch_pdl": True} if made["PDL"] else {})


def finish(y: Tensor, scratch: tuple, n_slices: int, dealt: dict) -> Tensor:
    """Add the partial sums in a launch of their own, if the programs have not.

    Shapes:  y [M, d_out]; scratch and dealt as `cut` makes them; returns y.
    Units:   those of the layer's output.
    Raises:  nothing.
    Source:  this project.
    Differs: no difference.
    """
    if dealt["APART"]:
        shares.finish[(triton.cdiv(y.shape[1], ADDED), len(y))](
            y, scratch[0], *scratch[2:], SLOTS=n_slices, M=len(y), ROWS=ADDED, PDL=dealt["PDL"], num_warps=ADDED // 32,
            **({"launch_pdl": True} if dealt["PDL"] else {}))
    return y
