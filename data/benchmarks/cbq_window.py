"""CBQ of one window of two LLaMA-2-7B-shaped blocks on a GPU: seconds by phase, peak memory, size of the optimiser's state.

    python data/benchmarks/cbq_window.py --out data/benchmarks/cbq_window_h200.json

Rank 5 and a variable for every weight, in one run.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import time
from pathlib import Path

import torch
from block_step import SHAPES, blocks_of

import lowbit_nb as lb
from lowbit_nb.reconstruct import Budget
from lowbit_nb.streams import Streams


def state_bytes(method: lb.CBQ, shapes: list[torch.Size]) -> int:
    """What Adam keeps for the rounding variables: two float32 numbers each."""
    ranks = [method.rank * sum(shape) if method.rank else shape.numel() for shape in shapes]
    return 8 * sum(ranks)


def measured(a: argparse.Namespace, rank: int | None) -> dict:
    """One window from its start to the stored weights of both blocks."""
    steps = a.windows // a.batch
    method = lb.CBQ(lb.Grid(2, group=64), rank=rank, held=0.0, budget=Budget(a.epochs, steps, a.batch))
    blocks, X = blocks_of(a.shape, a.windows, a.length, 2)
    streams = Streams.start(X, method.streams)
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    start = time.perf_counter()
    results, _ = method.quantize_window(blocks, 2, streams, {})
    torch.cuda.synchronize()
    seconds, trace = time.perf_counter() - start, results[0].trace
    shapes = [block.weight(name).shape for block in blocks for name in block.linears]
    return {"rank": rank, "seconds": seconds, "phases": trace["phases"], "steps": a.epochs * steps,
            "peak_gb": torch.cuda.max_memory_allocated() / 1e9, "optimiser_bytes": state_bytes(method, shapes),
            "loss": [trace["start"], trace["end"]]}


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    p.add_argument("--out", required=True, type=Path)
    p.add_argument("--shape", default="llama-2-7b", choices=SHAPES)
    p.add_argument("--epochs", type=int, default=3)
    p.add_argument("--windows", type=int, default=128)
    p.add_argument("--length", type=int, default=2048)
    p.add_argument("--batch", type=int, default=4)
    a = p.parse_args()
    print(lb.setup())
    table = {"what": f"CBQ, one window of two {a.shape} blocks, {a.epochs} epochs of {a.windows} x {a.length} tokens",
             "device": torch.cuda.get_device_name(), "torch": torch.__version__, "python": platform.python_version(),
             "command": "python " + " ".join(sys.argv), "rows": []}
    for rank in (5, None):
        table["rows"].append(measured(a, rank))
        print(table["rows"][-1], flush=True)
        a.out.write_text(json.dumps(table, indent=1) + "\n")


if __name__ == "__main__":
    main()
