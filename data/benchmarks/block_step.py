"""One LLaMA-2-7B-shaped block on a GPU: TesseraQ at its paper's budget, seconds by phase and peak memory, and a naive step.

    python data/benchmarks/block_step.py --out data/benchmarks/block_step_h200.json

The naive step is the same arithmetic in plain autograd: float32 marks, an unfused Adam, nothing captured.  Both are timed in
this run, one after the other.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import time
from pathlib import Path

import torch
import transformers

import lowbit_nb as lb
from lowbit_nb.blocks import Block, catch
from lowbit_nb.methods.awq import AWQ
from lowbit_nb.objectives import mse
from lowbit_nb.reconstruct import BUDGETS
from lowbit_nb.record import Phases
from lowbit_nb.rounding import rectified_sigmoid
from lowbit_nb.streams import Streams
from lowbit_nb.transforms import current

SHAPES = {"llama-2-7b": dict(hidden_size=4096, intermediate_size=11008, num_attention_heads=32, num_key_value_heads=32),
          "llama-3-8b": dict(hidden_size=4096, intermediate_size=14336, num_attention_heads=32, num_key_value_heads=8),
          "tiny": dict(hidden_size=256, intermediate_size=768, num_attention_heads=4, num_key_value_heads=4)}


def one_block(shape: str, n: int, length: int) -> tuple[Block, torch.Tensor]:
    """The only block of `blocks_of`."""
    blocks, X = blocks_of(shape, n, length, 1)
    return blocks[0], X


def blocks_of(shape: str, n: int, length: int, count: int) -> tuple[list[Block], torch.Tensor]:
    """Random blocks of that shape in bfloat16, and random inputs with a few loud channels."""
    config = transformers.LlamaConfig(num_hidden_layers=count, vocab_size=1024, max_position_embeddings=length, **SHAPES[shape])
    torch.manual_seed(0)
    model = transformers.LlamaForCausalLM(config).to("cuda", torch.bfloat16).eval().requires_grad_(False)
    blocks, X = catch(model, torch.randint(1024, (n, length), device="cuda"))
    loud = torch.exp(torch.randn(X.shape[-1], device="cuda")).to(X.dtype)
    return blocks, X.normal_().mul_(loud)


def naive_seconds(block: Block, X: torch.Tensor, Y: torch.Tensor, grid: lb.Grid, steps: int, batch: int) -> float:
    """Seconds a step of the same arithmetic, written without care."""
    params, rulers = AWQ(grid, scaling=False).begin(block, X, None, Phases())
    layers = {}
    for name, (s, z) in rulers.items():
        t = current(block, params, name).unflatten(1, (-1, grid.group)) / s[..., None] + z[..., None]
        f = (t - t.floor()).clamp(1e-4, 1 - 1e-4)
        nu = -torch.log(1.2 / (f + 0.1) - 1)
        v = torch.zeros_like(s[..., None], requires_grad=True)
        layers[name] = [nu.requires_grad_(), v, t.floor(), s[..., None], z[..., None]]
    adam = torch.optim.Adam([t for layer in layers.values() for t in layer[:2]], lr=1e-3, foreach=False)

    def step(i: int) -> None:
        weights = {name: ((torch.clamp(b + rectified_sigmoid(nu), 0, grid.q_max) - z) * s * 2 * rectified_sigmoid(v)).flatten(1)
                   for name, (nu, v, b, s, z) in layers.items()}
        with torch.autocast("cuda", torch.bfloat16):
            loss = mse(block.forward(X[i * batch : (i + 1) * batch], weights), Y[i * batch : (i + 1) * batch])
        adam.zero_grad()
        loss.backward()
        adam.step()
        loss.item()

    for i in range(3):
        step(i)
    torch.cuda.synchronize()
    start = time.perf_counter()
    for i in range(steps):
        step(i % (len(X) // batch))
    torch.cuda.synchronize()
    return (time.perf_counter() - start) / steps


def measured(a: argparse.Namespace, name: str) -> dict:
    """TesseraQ of one block with one budget: seconds by phase, peak memory, losses."""
    grid, spent = lb.Grid(2, group=a.group), BUDGETS[name]
    block, X = one_block(a.shape, a.windows, a.length)
    method = lb.TesseraQ(AWQ(grid), budget=name)
    streams = Streams.start(X, method.streams)
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    start = time.perf_counter()
    result = method.quantize_block(block, streams)
    torch.cuda.synchronize()
    seconds, phases = time.perf_counter() - start, result.trace["phases"]
    return {"budget": name, "seconds": seconds, "phases": phases, "peak_gb": torch.cuda.max_memory_allocated() / 1e9,
            "step_ms": 1e3 * phases["reconstruct"] / (spent.rounds * spent.steps),
            "loss": [result.trace["start"], result.trace["end"]]}


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    p.add_argument("--out", required=True, type=Path)
    p.add_argument("--shape", default="llama-2-7b", choices=SHAPES)
    p.add_argument("--budgets", nargs="+", default=["fast", "fast", "paper"], choices=BUDGETS,
                   help="the first includes compiling, which later blocks share")
    p.add_argument("--windows", type=int, default=512)
    p.add_argument("--length", type=int, default=2048)
    p.add_argument("--group", type=int, default=128)
    p.add_argument("--naive", type=int, default=20, help="naive steps to time")
    a = p.parse_args()
    print(lb.setup())
    table = {"what": "TesseraQ of one block", "device": torch.cuda.get_device_name(), "torch": torch.__version__,
             "python": platform.python_version(), "command": "python " + " ".join(sys.argv), "shape": a.shape,
             "windows": a.windows, "length": a.length, "group": a.group}
    block, X = one_block(a.shape, 4 * BUDGETS["paper"].batch, a.length)
    table["naive_step_ms"] = 1e3 * naive_seconds(block, X, block.run(X), lb.Grid(2, group=a.group), a.naive, 4)
    print(f"naive step: {table['naive_step_ms']:.1f} ms")
    table["rows"] = []
    for name in a.budgets:
        row = measured(a, name)
        table["rows"].append(row | {"naive_over_ours": table["naive_step_ms"] / row["step_ms"]})
        print(table["rows"][-1], flush=True)
        a.out.write_text(json.dumps(table, indent=1) + "\n")


if __name__ == "__main__":
    main()
