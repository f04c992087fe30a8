"""PTQ1.61 of one LLaMA-2-7B-shaped block on a GPU: 20 epochs over 128 windows of 2048 tokens, seconds by phase, peak memory.

    python data/benchmarks/ptq161_block.py --out data/benchmarks/ptq161_block_h200.json
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import time
from pathlib import Path

import torch
from block_step import SHAPES, one_block

import lowbit_nb as lb
from lowbit_nb.reconstruct import Budget
from lowbit_nb.streams import Streams


def measured(a: argparse.Namespace, factored: bool) -> dict:
    """One block from its start to its stored weights."""
    epoch = a.windows // a.batch
    method = lb.PTQ161(budget=Budget(a.epochs, epoch, a.batch), factored=factored)
    block, X = one_block(a.shape, a.windows, a.length)
    streams = Streams.start(X, method.streams)
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    start = time.perf_counter()
    result = method.quantize_block(block, streams)
    torch.cuda.synchronize()
    seconds, phases = time.perf_counter() - start, result.trace["phases"]
    bits = sum((w.bits() for w in result.weights.values()), start=type(next(iter(result.weights.values())).bits())((), 0))
    return {"factored": factored, "seconds": seconds, "phases": phases, "steps": a.epochs * epoch,
            "step_ms": 1e3 * phases["learn scales"] / (a.epochs * epoch), "peak_gb": torch.cuda.max_memory_allocated() / 1e9,
            "bits_per_weight": bits.per_weight, "loss": [result.trace["start"], result.trace["end"]]}


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    p.add_argument("--out", required=True, type=Path)
    p.add_argument("--shape", default="llama-2-7b", choices=SHAPES)
    p.add_argument("--epochs", type=int, default=20)
    p.add_argument("--windows", type=int, default=128)
    p.add_argument("--length", type=int, default=2048)
    p.add_argument("--batch", type=int, default=4)
    a = p.parse_args()
    print(lb.setup())
    table = {"what": f"PTQ1.61 of one {a.shape} block, {a.epochs} epochs of {a.windows} x {a.length} tokens",
             "device": torch.cuda.get_device_name(), "torch": torch.__version__, "python": platform.python_version(),
             "command": "python " + " ".join(sys.argv), "rows": []}
    for factored in (True, False):
        table["rows"].append(measured(a, factored))
        print(table["rows"][-1], flush=True)
        a.out.write_text(json.dumps(table, indent=1) + "\n")


if __name__ == "__main__":
    main()
