"""Measure how products are cut on this GPU, and write the table that `tiles` reads.

    python -m lowbit_nb.kernels.tune --workers 8
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from dataclasses import astuple
from functools import partial
from itertools import groupby
from multiprocessing import get_context
from pathlib import Path
from statistics import median

import torch
from torch import Tensor

from lowbit_nb import packing
from lowbit_nb.kernels import halves, slices, tensorcore, tiles

ROTATE = 240 << 20  # bytes of weights to go round, four times the second-level cache of an H200


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
    g, wide = torch.Generator(device=device).manual_seed(seed), tiles.WIDTHS[bits]
    n_slices, rows = slices.count(d_in, bits), d_out + -d_out % slices.BLOCK
    words = torch.empty(rows, packing.n_words(n_slices * wide, bits), dtype=torch.int32, device=device)
    words.random_(-(2**31), 2**31 - 1, generator=g)
    s = torch.rand(n_slices, wide // min(group, wide), rows, device=device, generator=g) / 64
    return tensorcore.Operand(words, tensorcore.together(s, True), None, bits, (d_out, d_in), min(group, wide))


def tune(bits: tuple[int, ...] = (0, 1, 2, 3, 4, 8), shapes: tuple[tuple[int, int], ...] = tiles.SHAPES, group: int = 128,
         batches: tuple[int, ...] = tiles.BATCHES, path: Path = tiles.TABLE, workers: int = 1) -> dict:
    """Measure every candidate on random weights and write the best of each shape into the table.

    Shapes:  shapes are (d_out, d_in); returns {(bits, d_out, d_in, batch): (microseconds, plan)}; workers: processes that
             compile side by side beforehand.
    Units:   microseconds.
    Raises:  nothing; a cut that does not compile is left out.
    Source:  this project.
    Differs: rows of the table for other shapes are kept.
    """
    best: dict[tuple[int, int, int, int], tuple[float, tiles.Plan]] = {}
    with get_context("spawn").Pool(workers) as pool:
        for width in bits:  # the table is written after each width: what was measured is kept
            jobs = [(width, *shape, group, batch, cut) for shape in shapes for batch in batches
                    for cut in _candidates(width, *shape, group, batch)]
            works = zip(jobs, pool.map(_compiles, jobs, chunksize=1), strict=True)
            best |= _fastest([job for job, does in works if does], group)
            known = tiles.table() | {key: cut for key, (_, cut) in best.items()}
            lines = ",\n".join(json.dumps({"for": key, "plan": astuple(cut)}) for key, cut in sorted(known.items()))
            path.write_text(f"[\n{lines}\n]\n")
    tiles.table.cache_clear()
    return best


def _fastest(jobs: list[tuple], group: int) -> dict[tuple[int, int, int, int], tuple[float, tiles.Plan]]:
    """The cut that takes the least time for each shape and batch, and that time."""
    best: dict[tuple[int, int, int, int], tuple[float, tiles.Plan]] = {}
    for (width, d_out, d_in, lane), same in groupby(sorted(jobs, key=_together), key=_together):
        weights = _weights(width, d_out, d_in, group, lane)
        for *_, batch, cut in same:
            x = torch.randn(batch, d_in, device="cuda", dtype=torch.float16)
            us = replay_us([partial(_product, x, w, cut) for w in weights])
            key = width, d_out, d_in, batch
            best[key] = min(best.get(key, (us, cut)), (us, cut), key=lambda pair: pair[0])
    return best


def _together(job: tuple) -> tuple:
    return *job[:3], job[-1].lane


def _candidates(bits: int, d_out: int, d_in: int, group: int, batch: int) -> list[tiles.Plan]:
    both = -(-(d_in // 5) // tiles.WIDTHS[4]) - -(d_in - d_in // 5) // tiles.WIDTHS[1]  # slices of a mixed weight's two parts
    more = batch == 1 and bits and halves.fits(d_out, d_in, bits, group)
    return (tiles.candidates(bits, d_out, d_in, batch, None if bits else both)
            + (tiles.candidates(bits, d_out, d_in, "halves") if more else []))


def _product(x: Tensor, weight: object, cut: tiles.Plan) -> Tensor:
    if isinstance(weight, tensorcore.MixedOperand):
        return tensorcore.mixed_product(x, weight, plan=cut)
    return (halves if cut.lane == "halves" else tensorcore).product(x, weight, plan=cut)


def _weights(bits: int, d_out: int, d_in: int, group: int, lane: str, n: int | None = None) -> list:
    """Random weights, enough to go round."""
    made = [_weight(bits, d_out, d_in, group, lane, 0)]
    n = n or max(4, min(64, -(-ROTATE // made[0].nbytes)))
    return made + [_weight(bits, d_out, d_in, group, lane, seed) for seed in range(1, n)]


def _weight(bits: int, d_out: int, d_in: int, group: int, lane: str,
            seed: int) -> tensorcore.Operand | tensorcore.MixedOperand | halves.Operand:
    if not bits:  # a fifth of the channels in four bits, the others in one
        salient = torch.zeros(d_in, dtype=torch.bool, device="cuda")
        salient[torch.randperm(d_in, device="cuda")[: d_in // 5]] = True
        high, low = (random_operand(b, d_out, n, n, seed) for b, n in ((4, d_in // 5), (1, d_in - d_in // 5)))
        return tensorcore.mixed_operand(salient, high, low)
    made = random_operand(bits, d_out, d_in, group, seed)
    if lane == "tensorcore":
        return made
    wide, seg = tiles.WIDTHS[bits], min(group, tiles.WIDTHS[bits] // 2)
    s = torch.rand(made.n_slices, wide // seg // 2, len(made.words), 2, device="cuda").half().view(torch.int32)[..., 0]
    return halves.Operand(made.words, s.contiguous(), None, bits, (d_out, d_in), seg, 1.0)


def _compiles(job: tuple) -> bool:
    """Whether a candidate compiles and runs; what was compiled stays in Triton's folder."""
    bits, d_out, d_in, group, batch, cut = job
    try:
        x = torch.randn(batch, d_in, device="cuda", dtype=torch.float16)
        _product(x, *_weights(bits, d_out, d_in, group, cut.lane, 1), cut)
        torch.cuda.synchronize()
    except Exception as error:  # too much shared memory, say
        print(job, type(error).__name__, str(error)[:120], flush=True)
        return False
    return True


def main() -> None:
    """The command line.

    Shapes:  none.
    Units:   none.
    Raises:  nothing.
    Source:  this project.
    Differs: no difference.
    """
    p = argparse.ArgumentParser(description="Measure how products are cut, and write the table.")
    p.add_argument("--shapes", default=",".join(f"{o}x{i}" for o, i in tiles.SHAPES + tiles.FUSED))
    p.add_argument("--batches", type=int, nargs="+", default=tiles.BATCHES, help="rows of x")
    p.add_argument("--bits", default="0,1,2,3,4,8", help="0: a mixed weight")
    p.add_argument("--out", type=Path, default=tiles.TABLE)
    p.add_argument("--workers", type=int, default=4, help="processes that compile")
    a = p.parse_args()
    shapes = tuple(tuple(map(int, shape.split("x"))) for shape in a.shapes.split(","))
    bits, batches = tuple(map(int, a.bits.split(","))), tuple(a.batches)
    for key, (us, cut) in tune(bits, shapes, batches=batches, path=a.out, workers=a.workers).items():
        print(*key, f"{us:.2f} us", cut, flush=True)


if __name__ == "__main__":
    main()
