"""Packed matrix-vector products on a CPU, lane by lane, against float32 and bfloat16 in the same run, as JSON.

    pip install numba
    OMP_NUM_THREADS=1 python data/benchmarks/packed_cpu.py --out data/benchmarks/packed_cpu.json

One thread, one row of inputs, groups of 128.  Every round times each candidate once, in turn, on the next of several copies of
its weight.  Times are those that the processor spent on the thread, so that other work on the machine is not counted (it still
takes bandwidth); a candidate's time is its best, its ratio that of the bests, and the median of the ratios inside rounds stands
beside it.  A warm time is the best of one copy used again and again: packed words then stay in a cache, float32 does not fit.
Errors are relative to the product in float64.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from lowbit_nb import packed, packing
from lowbit_nb.packed import choice, cpu_native
from lowbit_nb.packed.planar import Planar

GROUP, COPIES, LANES = 128, 4, ("native", "numba", "compile")


def weight(bits: int, size: int, generator: torch.Generator) -> Planar:
    """A random packed weight."""
    q = torch.randint(0, 2**bits, (size, size), generator=generator)
    s, z = (torch.rand(size, size // GROUP, generator=generator).half() for _ in range(2))
    return Planar(packing.pack(q, bits), bits, s, z * (2**bits - 1), GROUP, size)


def copies(planar: Planar) -> list[Planar]:
    """The same weight in several places, so that one is not simply cached."""
    return [Planar(planar.words.clone(), planar.bits, planar.s, planar.z, GROUP, planar.d_in) for _ in range(COPIES)]


def candidate(lane: str, made: list[Planar], x: Tensor) -> Callable[[int], Tensor]:
    """The product by one lane, on copy i."""
    def run(i: int) -> Tensor:
        with packed.only(lane):
            return choice.product(x, made[i % COPIES])
    return run


def late_unpacking(made: list[Planar], x: Tensor) -> Callable[[int], Tensor]:
    """What one would write first: unpack, dequantize, multiply, and let torch.compile fuse it."""
    size, per_word = made[0].d_in, 32 // made[0].bits

    @torch.compile
    def run(words: Tensor, s: Tensor, z: Tensor, x: Tensor) -> Tensor:
        shifts = torch.arange(0, 32, made[0].bits, dtype=torch.int32)[:, None]
        q = (words.reshape(size, -1, 1, packing.PLANE) >> shifts) & (2 ** made[0].bits - 1)
        W = (q.reshape(size, -1, GROUP) - z[..., None]) * s[..., None]
        return (W.reshape(size, per_word * words.shape[1]) * x).sum(1)

    return lambda i: run(made[i % COPIES].words, made[i % COPIES].s.float(), made[i % COPIES].z.float(), x[0])


def clock(candidates: dict[str, Callable[[int], Tensor]], rounds: int) -> dict[str, list[float]]:
    """Milliseconds of processor time of every candidate in every round."""
    times: dict[str, list[float]] = {name: [] for name in candidates}
    for i in range(rounds):
        for name, run in candidates.items():
            start = time.thread_time()
            run(i)
            times[name].append(1e3 * (time.thread_time() - start))
    return times


def measure(bits: int, size: int, rounds: int, generator: torch.Generator) -> list[dict]:
    """One row a candidate of one width."""
    made = copies(weight(bits, size, generator))
    x, W_hat = torch.randn(1, size, generator=generator), made[0].dequantize()
    plain = [W_hat.clone() for _ in range(COPIES)]
    short, x_short = [W.bfloat16() for W in plain], x.bfloat16()
    candidates = {"float32": lambda i: (plain[i % COPIES] @ x[0])[None],
                  "bfloat16": lambda i: (short[i % COPIES] @ x_short[0])[None]}
    candidates |= {lane: candidate(lane, made, x) for lane in LANES if choice.lanes()[lane].startswith("ready")}
    if bits == 2:
        candidates["compile, late unpacking"] = late_unpacking(made, x)
    wanted, first = x.double() @ W_hat.double().T, {}
    for name, run in candidates.items():
        start = time.perf_counter()
        y = run(0)
        first[name] = {"first_seconds": round(time.perf_counter() - start, 2),
                       "error": float(f"{float((y - wanted).norm() / wanted.norm()):.1e}")}
    clock(candidates, 2)
    times = clock(candidates, rounds)
    best = {name: min(t) for name, t in times.items()}
    size_of = {"float32": 4 * size * size, "bfloat16": 2 * size * size}
    packed_bytes = made[0].words.numel() * 4 + 4 * made[0].s.numel()
    warm = {name: min(clock({name: lambda i, run=run: run(0)}, rounds // 2)[name]) for name, run in candidates.items()}
    by_rounds = {name: statistics.median(a / b for a, b in zip(times["float32"], t, strict=True)) for name, t in times.items()}
    return [{"bits": bits, "lane": name, "ms": round(best[name], 3), "median_ms": round(statistics.median(times[name]), 3),
             "vs_float32": round(best["float32"] / best[name], 2), "vs_float32_by_rounds": round(by_rounds[name], 2),
             "vs_bfloat16": round(best["bfloat16"] / best[name], 2), "warm_ms": round(warm[name], 3),
             "warm_vs_float32": round(warm["float32"] / warm[name], 2),
             "GB_per_s": round(size_of.get(name, packed_bytes) / best[name] / 1e6, 1)} | first[name] for name in candidates]


def machine() -> dict:
    """What ran it."""
    info = Path("/proc/cpuinfo")
    said = info.read_text(encoding="utf-8") if info.is_file() else ""
    model = next((line.split(":")[1].strip() for line in said.splitlines() if "model name" in line), platform.processor())
    flags = [flag for flag in ("avx2", "avx512f", "avx512_vnni", "amx_tile") if flag in said]
    return {"cpu": model, "flags": flags, "threads": torch.get_num_threads(), "torch": torch.__version__,
            "python": platform.python_version(), "native": cpu_native.way()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=4096)
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--bits", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(0)
    rows = [row for bits in args.bits for row in measure(bits, args.size, args.rounds, generator)]
    for row in rows:
        print(row, flush=True)
    command = f"OMP_NUM_THREADS=1 python data/benchmarks/packed_cpu.py --size {args.size} --rounds {args.rounds}"
    found = {"command": command, "machine": machine(), "shape": [args.size] * 2, "group": GROUP, "batch": 1, "rows": rows}
    if args.out:
        args.out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
