"""Feedback methods on a whole LLaMA-2-7B-shaped model with random weights: seconds by phase, block by block, and peak memory.

    python data/benchmarks/whole_7b.py --out data/benchmarks/whole_7b_h200.json

Random weights say nothing about quality; what takes time is the same.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import time
from collections import Counter
from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM

import lowbit_nb as lb
from lowbit_nb.windows import Windows

METHODS = {
    "GPTQ": lb.GPTQ(lb.Grid(2, group=128)),
    "GPTQ, static groups": lb.GPTQ(lb.Grid(2, group=128), groups="static"),
    "OAC+GPTQ, single pass": lb.OAC(lb.GPTQ(lb.Grid(2, group=128)), sequential=False, batch=2),
    "OAC+GPTQ, tokens form, single pass": lb.OAC(lb.GPTQ(lb.Grid(2, group=128)), sequential=False, form="tokens", batch=2),
    "SpQR": lb.SpQR(),
}
SHAPES = {
    "LLaMA-2-7B": dict(hidden_size=4096, intermediate_size=11008, num_hidden_layers=32, num_attention_heads=32,
                       num_key_value_heads=32, vocab_size=32000),
    "tiny": dict(hidden_size=256, intermediate_size=768, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2,
                 vocab_size=1000),
}


def random_model(shape: str, device: str) -> lb.Subject:
    """That many layers of random weights, with columns and rows of different sizes as in trained models."""
    config = LlamaConfig(max_position_embeddings=4096, **SHAPES[shape])
    torch.set_default_dtype(torch.bfloat16)
    with torch.device(device):
        model = LlamaForCausalLM(config).eval().requires_grad_(False)
    torch.set_default_dtype(torch.float32)
    g = torch.Generator(device).manual_seed(0)
    for linear in (m for m in model.model.layers.modules() if isinstance(m, torch.nn.Linear)):
        W = linear.weight
        columns = torch.empty(W.shape[1], device=device).log_normal_(0, 0.4, generator=g)
        W.copy_(torch.randn(W.shape, device=device, generator=g) * 0.02 * columns)
    return lb.Subject(model, None, f"{shape} shapes, random weights")


def measure(subject: lb.Subject, name: str, windows: Windows, batch: int) -> dict:
    """One whole run, as a user would start it."""
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    start = time.perf_counter()
    run = lb.quantize(subject, METHODS[name], windows, progress=False, batch=batch)
    torch.cuda.synchronize()
    seconds = time.perf_counter() - start
    phases = sum((Counter(block["phases"]) for block in run.trace), Counter())
    return {"method": name, "seconds": round(seconds, 1), "layers": len(run.weights),
            "phases": {phase: round(s, 1) for phase, s in phases.items()},
            "block_seconds": [round(block["seconds"], 2) for block in run.trace],
            "peak_GB": round(max(block["peak_bytes"] for block in run.trace) / 1e9, 1),
            "bits_per_weight": run.bits().per_weight}


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    p.add_argument("--out", required=True, type=Path)
    p.add_argument("--shape", default="LLaMA-2-7B", choices=SHAPES)
    p.add_argument("--n", type=int, default=128)
    p.add_argument("--length", type=int, default=2048)
    p.add_argument("--batch", type=int, default=8)
    p.add_argument("--methods", nargs="+", default=list(METHODS), choices=METHODS)
    a = p.parse_args()
    print(lb.setup())
    start = time.perf_counter()
    subject = random_model(a.shape, "cuda")
    ids = torch.randint(subject.model.config.vocab_size, (a.n, a.length), generator=torch.Generator().manual_seed(0))
    print(f"{subject} made in {time.perf_counter() - start:.1f} s", flush=True)
    table = {"what": f"every linear layer of a {a.shape}-shaped model, {a.n} x {a.length} tokens",
             "device": torch.cuda.get_device_name(), "torch": torch.__version__, "python": platform.python_version(),
             "command": "python " + " ".join(sys.argv), "rows": []}
    for name in a.methods:
        table["rows"].append(measure(subject, name, Windows(ids, "random tokens"), a.batch))
        print({k: v for k, v in table["rows"][-1].items() if k != "block_seconds"}, flush=True)
        a.out.write_text(json.dumps(table, indent=1) + "\n")


if __name__ == "__main__":
    main()
