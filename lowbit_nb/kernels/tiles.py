"""How a product is cut into programs: measured on an H200 for the shapes in tiles.json, a rule elsewhere.

On a GPU, `tune` measures and writes the table:

    python -m lowbit_nb.kernels.tiles
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import astuple, dataclass
from functools import cache
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from lowbit_nb.kernels import tensorcore

WIDTHS = {0: 2048, 1: 2048, 2: 1024, 3: 2048, 4: 512, 8: 256}  # bits (0: mixed) -> columns of a slice
SHAPES = ((4096, 4096), (4096, 11008), (14336, 4096), (8192, 28672))
PROGRAMS = 132 * 3  # programs that an H200 holds at once
ROTATE = 240 << 20  # bytes of weights to go round, four times the second-level cache of an H200
TABLE = Path(__file__).parent / "tiles.json"


@dataclass(frozen=True)
class Plan:
    """rows of a tile; shares: programs that the rows are dealt to; stages: tiles under way; warps of a program.

    registers: most that a thread may take, or None.

    Source: this project. Differs: no difference.
    """

    rows: int
    shares: int
    stages: int
    warps: int
    registers: int | None = None


@cache
def _table() -> dict[tuple[int, int, int, int], Plan]:
    return {tuple(row["for"]): Plan(*row["plan"]) for row in json.loads(TABLE.read_text())}


def plan(bits: int, d_out: int, d_in: int, batch: int) -> Plan:
    """The cut for a shape: the measured one, or one wave of programs.

    Shapes:  ints; bits 0 stands for a mixed weight.
    Units:   none.
    Raises:  nothing.
    Source:  measured (`tune`); the rule is this project's.
    Differs: batches of one and two share a plan, and so do all larger ones.
    """
    return _table().get((bits, d_out, d_in, 1 if batch <= 2 else 8)) or candidates(bits, d_out, d_in)[0]


def candidates(bits: int, d_out: int, d_in: int) -> list[Plan]:
    """Cuts worth measuring; the first is the default.

    Shapes:  ints in, a list out.
    Units:   none.
    Raises:  nothing.
    Source:  this project.
    Differs: no difference.
    """
    n_slices, n_tiles = -(-d_in // WIDTHS[bits]), -(-d_out // 64)
    out = []
    for programs, stages, registers in ((PROGRAMS, 3, None), (PROGRAMS, 4, None), (PROGRAMS * 2 // 3, 3, None),
                                        (PROGRAMS * 4 // 3, 3, 96), (PROGRAMS * 5 // 3, 3, 80), (PROGRAMS * 3, 2, None)):
        shares = max(1, min(n_tiles, programs // n_slices))
        stages -= bits == 3  # three tiles of words a step: fewer fit into shared memory
        out.append(Plan(64, shares, stages if n_tiles > shares else 1, 4, registers))
    return list(dict.fromkeys(out))


def replay_us(calls: list[Callable[[], Tensor]], repeats: int = 25) -> float:
    """Microseconds a call: median over replays of a captured graph of all calls.

    Shapes:  functions in, a number out.
    Units:   microseconds.
    Raises:  nothing.
    Source:  this project.
    Differs: no difference.
    """
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for call in calls:
            call()
    torch.cuda.current_stream().wait_stream(side)
    graph, times = torch.cuda.CUDAGraph(), []
    with torch.cuda.graph(graph):
        for call in calls * max(1, 16 // len(calls)):
            call()
    for i in range(repeats + 3):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        graph.replay()
        end.record()
        end.synchronize()
        times += [start.elapsed_time(end) * 1e3 / (len(calls) * max(1, 16 // len(calls)))] if i >= 3 else []
    return median(times)


def random_operand(bits: int, d_out: int, d_in: int, group: int, seed: int, device: str = "cuda") -> tensorcore.Operand:
    """A weight of random codes for measuring: scales in float16, no zero points.

    Shapes:  ints.
    Units:   none.
    Raises:  nothing.
    Source:  this project.
    Differs: no difference.
    """
    from lowbit_nb import packing
    from lowbit_nb.kernels import tensorcore

    g, wide = torch.Generator(device=device).manual_seed(seed), WIDTHS[bits]
    n_slices, rows = -(-d_in // wide), d_out + -d_out % tensorcore.BLOCK
    words = torch.empty(rows, packing.n_words(n_slices * wide, bits), dtype=torch.int32, device=device)
    words.random_(-(2**31), 2**31 - 1, generator=g)
    s = torch.rand(n_slices * wide // min(group, wide), rows, device=device, generator=g) / 64
    return tensorcore.Operand(words, tensorcore.together(s, n_slices, True), None, bits, (d_out, d_in), min(group, wide))


def tune(bits: tuple[int, ...] = (1, 2, 3, 4, 8), shapes: tuple[tuple[int, int], ...] = SHAPES, group: int = 128,
         batches: tuple[int, ...] = (1, 8), path: Path = TABLE) -> dict[tuple[int, int, int, int], tuple[float, Plan]]:
    """Measure every candidate on random weights and write the best of each shape into the table.

    Shapes:  shapes are (d_out, d_in); returns {(bits, d_out, d_in, batch): (microseconds, plan)}.
    Units:   microseconds.
    Raises:  nothing.
    Source:  this project.
    Differs: rows of the table for other shapes are kept.
    """
    from lowbit_nb.kernels import tensorcore

    best: dict[tuple[int, int, int, int], tuple[float, Plan]] = {}
    for width in bits:
        for d_out, d_in in shapes:
            weights = [random_operand(width, d_out, d_in, group, seed=0)]
            weights += [random_operand(width, d_out, d_in, group, seed=i)
                        for i in range(1, max(4, min(64, -(-ROTATE // weights[0].nbytes))))]
            for batch in batches:
                x = torch.randn(batch, d_in, device="cuda", dtype=torch.float16)
                for cut in candidates(width, d_out, d_in):
                    us = replay_us([lambda w=w, x=x, cut=cut: tensorcore.product(x, w, plan=cut) for w in weights])
                    best[width, d_out, d_in, batch] = min(best.get((width, d_out, d_in, batch), (us, cut)), (us, cut),
                                                          key=lambda pair: pair[0])
    known = _table() | {key: cut for key, (_, cut) in best.items()}
    lines = ",\n".join(json.dumps({"for": key, "plan": astuple(cut)}) for key, cut in sorted(known.items()))
    path.write_text(f"[\n{lines}\n]\n")
    _table.cache_clear()
    return best


if __name__ == "__main__":
    for key, (us, cut) in tune().items():
        print(*key, f"{us:.2f} us", cut)
