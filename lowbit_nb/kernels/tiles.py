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
FUSED = ((6144, 4096), (28672, 4096), (4096, 14336))  # query, key, value; gate, up; down of an 8B model
PROGRAMS = 132 * 3  # programs that an H200 holds at once
TABLE = Path(__file__).parent / "tiles.json"
# rows, warps, programs in units of PROGRAMS, stages, registers, apart, parts
CUTS = {
    1: ((64, 4, 1, 3, None, None, 1), (64, 4, 1, 3, None, True, 1), (64, 4, 1, 3, None, False, 1),
        (64, 4, 5 / 3, 2, 80, True, 1), (64, 4, 1, 4, None, True, 1), (32, 2, 4 / 3, 3, None, False, 1),
        (32, 2, 4 / 3, 3, None, True, 1), (32, 2, 1, 4, None, True, 1), (32, 2, 2, 2, 80, True, 1)),
    8: ((64, 4, 1, 3, None, True, 1), (64, 4, 4 / 3, 2, 128, True, 1), (64, 4, 4 / 3, 3, 128, True, 1),
        (64, 4, 2 / 3, 4, None, True, 1), (32, 2, 4 / 3, 3, None, True, 1), (32, 2, 1, 4, None, True, 1),
        (64, 2, 1, 3, None, True, 1), (64, 4, 1, 3, None, True, 2)),
    16: ((64, 4, 2 / 3, 3, None, True, 1), (64, 4, 1, 3, 168, True, 1), (64, 4, 4 / 3, 2, 128, True, 1),
         (32, 2, 1, 3, None, True, 1), (64, 4, 2 / 3, 3, None, True, 2)),
    "halves": ((32, 4, 2, 2, None, False, 1),)}
LAST = 8192  # partial sums that the last program of a share adds sooner than a launch of its own would; apart None: this rule
BATCHES = (1, 8, 16)  # rows of x that plans are measured for


@dataclass(frozen=True)
class Plan:
    """rows of a tile; shares: programs that the rows are dealt to; stages: tiles under way; warps of a program.

    registers: most that a thread may take, or None.  lane: the kernel, `tensorcore` or `halves` (one row of x).
    apart: partial sums are added up in a launch of their own, not by the last program of a share.
    parts: 2: a program takes half the planes of a slice, which halves the registers that it needs.

    Source: this project. Differs: no difference.
    """

    rows: int
    shares: int
    stages: int
    warps: int
    registers: int | None = None
    lane: str = "tensorcore"
    apart: bool = False
    parts: int = 1


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


def plan(bits: int, d_out: int, d_in: int, batch: int, n_slices: int | None = None) -> Plan:
    """The cut for a shape: the measured one, or one wave of programs.

    Shapes:  ints; bits 0 stands for a mixed weight, whose slices are both parts'.
    Units:   none.
    Raises:  nothing.
    Source:  measured (`tune`); the rule is this project's.
    Differs: batches of one and two share a plan, those of up to eight, and all larger ones.
    """
    like = 1 if batch <= 2 else 8 if batch <= 8 else 16
    return table().get((bits, d_out, d_in, like)) or candidates(bits, d_out, d_in, like, n_slices)[0]


def candidates(bits: int, d_out: int, d_in: int, batch: int | str, n_slices: int | None = None) -> list[Plan]:
    """Cuts worth measuring; the first is the default.

    Shapes:  ints in, a list out; batch 1, 8, 16, or "halves" for the other kernel's.
    Units:   none.
    Raises:  nothing.
    Source:  this project.
    Differs: no difference.
    """
    n_slices, lane, out = n_slices or -(-d_in // WIDTHS[bits]), "halves" if batch == "halves" else "tensorcore", []
    for rows, warps, waves, stages, registers, apart, parts in CUTS[batch]:
        if parts > 1 and not bits:
            continue  # a mixed weight's parts are the two weights
        n_tiles = -(-d_out // rows)
        shares = max(1, min(n_tiles, int(PROGRAMS * waves * 64 / rows) // (n_slices * parts)))
        if apart is None:
            apart = n_slices * parts * d_out > LAST * shares
        stages -= bits == 3  # three tiles of words a step: fewer fit into shared memory
        out.append(Plan(rows, shares, stages if n_tiles > shares else 1, warps, registers, lane, apart, parts))
    return list(dict.fromkeys(out))
