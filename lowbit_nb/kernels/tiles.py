"""How a product is cut into programs: measured on an H200 for the shapes in tiles.json, a rule elsewhere.

`tune` measures and writes the table.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path

WIDTHS = {0: 2048, 1: 2048, 2: 1024, 3: 2048, 4: 512, 8: 256}  # bits (0: mixed) -> columns of a slice
SHAPES = ((4096, 4096), (4096, 11008), (14336, 4096), (8192, 28672))
PROGRAMS = 132 * 3  # programs that an H200 holds at once
TABLE = Path(__file__).parent / "tiles.json"
# rows, warps, programs in units of PROGRAMS, stages, registers
CUTS = {
    "tensorcore": ((64, 4, 1, 3, None), (64, 4, 2 / 3, 3, None), (64, 4, 1, 4, None), (64, 4, 4 / 3, 3, None),
                   (64, 4, 5 / 3, 2, 80), (64, 2, 1, 3, None), (32, 2, 4 / 3, 3, None), (16, 1, 1, 4, None),
                   (128, 4, 2 / 3, 3, None)),
    "halves": ((32, 4, 1, 3, None), (32, 4, 1, 5, None), (32, 4, 1 / 2, 5, None), (32, 4, 2, 2, None), (64, 4, 1, 3, None),
               (16, 2, 1, 4, None), (8, 1, 3 / 4, 4, None), (8, 1, 3 / 8, 6, None))}


@dataclass(frozen=True)
class Plan:
    """rows of a tile; shares: programs that the rows are dealt to; stages: tiles under way; warps of a program.

    registers: most that a thread may take, or None.  lane: the kernel, `tensorcore` or `halves` (one row of x).

    Source: this project. Differs: no difference.
    """

    rows: int
    shares: int
    stages: int
    warps: int
    registers: int | None = None
    lane: str = "tensorcore"


@cache
def table() -> dict[tuple[int, int, int, int], Plan]:
    """The measured cuts, by bits, rows and columns of the weight, and rows of x.

    Shapes:  a dict.
    Units:   none.
    Raises:  nothing.
    Source:  this project.
    Differs: no difference.
    """
    return {tuple(row["for"]): Plan(*row["plan"]) for row in json.loads(TABLE.read_text())}


def plan(bits: int, d_out: int, d_in: int, batch: int) -> Plan:
    """The cut for a shape: the measured one, or one wave of programs.

    Shapes:  ints; bits 0 stands for a mixed weight.
    Units:   none.
    Raises:  nothing.
    Source:  measured (`tune`); the rule is this project's.
    Differs: batches of one and two share a plan, and so do all larger ones.
    """
    return table().get((bits, d_out, d_in, 1 if batch <= 2 else 8)) or candidates(bits, d_out, d_in)[0]


def candidates(bits: int, d_out: int, d_in: int, lane: str = "tensorcore") -> list[Plan]:
    """Cuts worth measuring; the first is the default.

    Shapes:  ints in, a list out.
    Units:   none.
    Raises:  nothing.
    Source:  this project.
    Differs: no difference.
    """
    n_slices, out = -(-d_in // WIDTHS[bits]), []
    for rows, warps, waves, stages, registers in CUTS[lane]:
        n_tiles = -(-d_out // rows)
        shares = max(1, min(n_tiles, int(PROGRAMS * waves * 64 / rows) // n_slices))
        stages -= bits == 3  # three tiles of words a step: fewer fit into shared memory
        out.append(Plan(rows, shares, stages if n_tiles > shares else 1, warps, registers, lane))
    return list(dict.fromkeys(out))
