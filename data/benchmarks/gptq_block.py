"""GPTQ of one LLaMA-2-7B-shaped block: seconds by phase and peak memory, written as JSON.

    python data/benchmarks/gptq_block.py --out data/benchmarks/gptq_block_h200.json

Weights are random with a realistic spread (each input channel has its own scale, tails are heavy); inputs are random
hidden states with a few large channels.  Times do not depend on the values, errors do, so errors are not recorded.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import time
from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from lowbit_nb.blocks import catch
from lowbit_nb.grid import Grid
from lowbit_nb.methods import GPTQ, SpQR
from lowbit_nb.streams import Streams

SHAPES = {"LLaMA-2-7B": dict(hidden_size=4096, intermediate_size=11008, num_attention_heads=32, num_key_value_heads=32),
          "subject": dict(hidden_size=256, intermediate_size=768, num_attention_heads=4, num_key_value_heads=2)}


def model(shape: str, device: str, dtype: torch.dtype) -> LlamaForCausalLM:
    """One decoder block of that shape with random weights, behind a small vocabulary."""
    config = LlamaConfig(vocab_size=256, num_hidden_layers=1, max_position_embeddings=4096, **SHAPES[shape])
    with torch.device(device):
        out = LlamaForCausalLM(config).to(dtype).eval()
    g = torch.Generator(device).manual_seed(0)
    for linear in (m for m in out.model.layers.modules() if isinstance(m, torch.nn.Linear)):
        W = linear.weight.data
        channel = torch.empty(W.shape[1], device=device).log_normal_(0, 0.4, generator=g)
        tails = torch.empty(W.shape[0], 1, device=device).log_normal_(0, 0.2, generator=g)
        W.copy_(torch.randn(W.shape, device=device, generator=g) * 0.02 * channel * tails)
    return out


def hidden_states(n: int, length: int, d: int, device: str, dtype: torch.dtype) -> torch.Tensor:
    """[n, length, d] random inputs; one channel in 200 is ten times larger."""
    g = torch.Generator(device).manual_seed(1)
    X = torch.empty(n, length, d, device=device, dtype=dtype)
    scale = torch.ones(d, device=device).masked_fill_(torch.rand(d, device=device, generator=g) < 0.005, 10.0)
    for i in range(n):
        X[i] = torch.randn(length, d, device=device, generator=g) * scale
    return X


def measure(shape: str, method: GPTQ | SpQR, n: int, length: int, device: str) -> dict:
    """Quantize the block twice (the first time warms up) and keep the second."""
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    subject = model(shape, device, dtype)
    [block], _ = catch(subject, torch.zeros(1, length, dtype=torch.long, device=device), batch=8)
    X = hidden_states(n, length, subject.config.hidden_size, device, dtype)
    for _ in range(2):
        if device == "cuda":
            torch.cuda.reset_peak_memory_stats()
        start = time.perf_counter()
        result = method.quantize_block(block, Streams(None, X))
        seconds = time.perf_counter() - start
    out = {"seconds": round(seconds, 3), "phases": {k: round(v, 3) for k, v in result.trace["phases"].items()}}
    if device == "cuda":
        out["peak_GB"] = round(torch.cuda.max_memory_allocated() / 1e9, 2)
        out["inputs_and_weights_GB"] = round((X.nbytes + sum(p.nbytes for p in subject.parameters())) / 1e9, 2)
    return out


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    p.add_argument("--out", required=True)
    p.add_argument("--shape", default="LLaMA-2-7B", choices=SHAPES)
    p.add_argument("--n", type=int, default=128)
    p.add_argument("--length", type=int, default=2048)
    a = p.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    runs = {}
    for name, method in {"defaults": GPTQ(Grid(2, group=128)),
                         "static groups": GPTQ(Grid(2, group=128), groups="static"), "SpQR, 3 bits": SpQR()}.items():
        runs[name] = measure(a.shape, method, a.n, a.length, device)
        print(name, runs[name], flush=True)
    name = torch.cuda.get_device_name() if device == "cuda" else platform.processor() or "CPU"
    head = {"what": f"error feedback on one {a.shape}-shaped block, GPTQ at W2 g128, {a.n} x {a.length} tokens", "device": name,
            "torch": torch.__version__, "python": platform.python_version(), "command": "python " + " ".join(sys.argv)}
    Path(a.out).write_text(json.dumps(head | {"runs": runs}, indent=1) + "\n")


if __name__ == "__main__":
    main()
