"""Tokens per second of whole models with random weights of real shapes: 16 bits and packed, step by step and as a graph.

    python data/benchmarks/decode.py --out data/benchmarks/decode_h200.json

One sequence, a prompt of 32 tokens, 128 new ones; the prompt is not timed.  "own" steps are transformers' forward pass, "slim"
ones `lowbit_nb.packed.slim`; both are captured alike, for 16 bits too.  Packed weights are random words and scales, so tokens
mean nothing; what takes time is the same.  Rows with an eager twin before them say how many of its tokens they wrote.  Captured
slim steps are also timed with a piece left out (the numbers are then wrong): what that piece adds to a step.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import json
import platform
import re
import statistics
import sys
import time
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from unittest import mock

import torch
import transformers
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from lowbit_nb import packing
from lowbit_nb.grid import Grid
from lowbit_nb.kernels import between, tensorcore
from lowbit_nb.packed import PackedLinear
from lowbit_nb.packed.decoder import MODES, Decoder

SHAPES = {
    "llama-3-8b": dict(hidden_size=4096, intermediate_size=14336, num_hidden_layers=32, num_attention_heads=32,
                       num_key_value_heads=8, vocab_size=128256, rope_theta=500000.0),
    "llama-2-7b": dict(hidden_size=4096, intermediate_size=11008, num_hidden_layers=32, num_attention_heads=32,
                       num_key_value_heads=32, vocab_size=32000),
    "tiny": dict(hidden_size=256, intermediate_size=512, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2,
                 vocab_size=1024),
}
GRIDS = {8: Grid(8, group=128), 4: Grid(4, group=128), 3: Grid(3, group=128), 2: Grid(2, group=128),
         1: Grid(1, group=128, zero_inside=False)}  # one bit: two free levels a group
KINDS = {"product": r"^_?product|^mixed|^prepare|^finish|^_gather|gemv|gemm|nvjet|splitK|cutlass|dot_kernel|reduce_1Block",
         "attention": r"attend|fmha|flash|sdpa", "norm": r"_add_norm", "gate": r"^_gate"}


def random_model(shape: str) -> LlamaForCausalLM:
    """That architecture in float16, weights drawn on the device."""
    torch.manual_seed(0)
    torch.set_default_dtype(torch.float16)
    with torch.device("cuda"):
        model = LlamaForCausalLM(LlamaConfig(max_position_embeddings=4096, **SHAPES[shape]))
    torch.set_default_dtype(torch.float32)
    return model.eval().requires_grad_(False)


def random_packed(d_out: int, d_in: int, grid: Grid, g: torch.Generator) -> PackedLinear:
    """Random codes, scales and zero points, as the stored form writes them; weights of size 0.02 or so."""
    def words(rows: int, codes: int) -> torch.Tensor:
        shape = (rows, packing.n_words(codes, grid.bits))
        return torch.randint(-(2**31), 2**31, shape, dtype=torch.int32, device="cuda", generator=g)

    groups = (d_out, grid.n_groups(d_in))
    s = (torch.rand(groups, device="cuda", generator=g) + 0.5) * 0.07 / grid.levels
    z = words(1, groups[0] * groups[1]) if grid.stored_zero == "integer" else torch.full(groups, 0.5, device="cuda").half()
    meta = {"form": "affine", "d_out": d_out, "d_in": d_in, "grid": asdict(grid)}
    return PackedLinear({"codes": words(d_out, d_in), "scales": s.half(), "zeros": z}, meta)


def pack_randomly(model: nn.Module, bits: int, head_bits: int) -> None:
    """Put random packed layers where the linear layers are."""
    g = torch.Generator("cuda").manual_seed(bits)
    linears = [(name, m) for name, m in model.named_modules() if isinstance(m, nn.Linear | PackedLinear)]
    for name, m in linears:
        wanted = head_bits if m is model.lm_head else bits
        path, _, last = name.rpartition(".")
        setattr(model.get_submodule(path), last, random_packed(m.out_features, m.in_features, GRIDS[wanted], g))


def weight_bytes(model: nn.Module) -> int:
    """Bytes of everything that is stored; shared storage counts once."""
    seen = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in (*model.parameters(), *model.buffers())}
    return sum(seen.values())


def seconds_a_step(decoder: Decoder, prompt: torch.Tensor, n: int, repeats: int) -> list[float]:
    """Seconds a step, once for each repeat of n new tokens."""
    taken = []
    for _ in range(repeats):
        decoder.prefill(prompt)
        torch.cuda.synchronize()
        start = time.perf_counter()
        for _ in range(n - 1):
            decoder.step()
        torch.cuda.synchronize()
        taken.append((time.perf_counter() - start) / (n - 1))
    return taken


def bill(decoder: Decoder, prompt: torch.Tensor, steps: int = 4) -> dict:
    """Where a step's time goes: launches and microseconds by kind of kernel, and the largest others."""
    decoder.prefill(prompt)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        for _ in range(steps):
            decoder.step()
        torch.cuda.synchronize()
    us, rest, launches = Counter(), Counter(), 0
    for event in profile.key_averages():
        if event.device_time_total > 0:
            kind = next((k for k, pattern in KINDS.items() if re.search(pattern, event.key)), "other")
            us[kind] += event.self_device_time_total / steps
            launches += event.count / steps
            if kind == "other":
                rest[event.key[:60]] += event.self_device_time_total / steps
    return {"launches": launches, "us": {k: round(v, 1) for k, v in us.items()},
            "other": {k: round(v, 1) for k, v in rest.most_common(3)}}


def left_out(decoder: Decoder, prompt: torch.Tensor, n: int) -> dict[str, float]:
    """Milliseconds a step without a piece, captured anew; "products only" leaves out all of them."""
    config, like = decoder.model.config, torch.zeros(0, dtype=decoder.model.dtype, device=decoder.device)

    def empty(into: tensorcore.Operand | None, d: int) -> torch.Tensor | tensorcore.Bytes:
        return like.new_empty(decoder.batch, d) if into is None else tensorcore.Bytes.room(into, decoder.batch, like)

    pieces = {"attention": (between, "attend", lambda *_: empty(None, config.num_attention_heads * config.head_dim)),
              "gate": (between, "gate", lambda both, into=None: empty(into, config.intermediate_size)),
              "norms": (between, "add_norm", lambda h, delta, weight, eps, into=None: (h, empty(into, config.hidden_size))),
              "bytes of x": (tensorcore, "_prepare", lambda x, columns, first, second, *_: (empty(first, 0), empty(second, 0)))}
    ms, chosen_by_name = {}, {name: [piece] for name, piece in pieces.items()} | {"products only": [*pieces.values()]}
    for name, chosen in chosen_by_name.items():
        with contextlib.ExitStack() as stack:
            for piece in chosen:
                stack.enter_context(mock.patch.object(*piece))
            decoder.step = decoder._prepared()
            ms[name] = 1e3 * statistics.median(seconds_a_step(decoder, prompt, n, 5))
    return ms


def measure(model: nn.Module, weights: str, mode: str, slim: bool, a: argparse.Namespace, wanted: torch.Tensor | None) -> dict:
    """One row: a decoder made, checked against tokens, timed."""
    gc.collect()  # the decoder before this one
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    prompt = torch.randint(model.config.vocab_size, (1, a.prompt), generator=torch.Generator().manual_seed(0))
    start = time.perf_counter()
    decoder = Decoder(model, a.prompt + a.tokens, graph=mode, slim=slim)
    tokens = decoder.generate(prompt, a.tokens)
    torch.cuda.synchronize()
    ready = time.perf_counter() - start
    taken = seconds_a_step(decoder, prompt, a.tokens, 3 if mode == "eager" else 5)
    row = {"weights": weights, "mode": mode, "step": "slim" if slim else "own", "ms_a_token": 1e3 * statistics.median(taken),
           "ms_spread": [1e3 * min(taken), 1e3 * max(taken)], "tokens_a_second": 1 / statistics.median(taken),
           "weight_GB": weight_bytes(model) / 1e9, "peak_GB": torch.cuda.max_memory_allocated() / 1e9,
           "seconds_until_ready": round(ready, 1)}
    if wanted is not None:
        row["same_tokens_as_eager"] = int((tokens == wanted).sum()), wanted.numel()
    if mode == "captured":
        row["bill"] = bill(decoder, prompt, min(4, a.tokens - 1))
        row |= {"ms_without": left_out(decoder, prompt, a.tokens)} if slim else {}
    return row | {"tokens": tokens}


def rows(model: nn.Module, weights: str, modes: list[tuple[str, bool]], a: argparse.Namespace, eager: dict) -> list[dict]:
    """A model's rows; the eager row of each kind of step is what the others are held against: `eager` keeps its tokens."""
    made = []
    for mode, slim in modes:
        row = measure(model, weights, mode, slim, a, eager.get((weights, slim)))
        tokens = row.pop("tokens")
        if mode == "eager":
            eager[weights, slim] = tokens
        made.append(row)
        print(" | ".join([weights, mode, row["step"], f"{row['tokens_a_second']:.1f} tok/s",
                          f"{row['ms_a_token']:.3f} ms", f"{row['weight_GB']:.2f} GB", f"peak {row['peak_GB']:.2f} GB",
                          f"ready {row['seconds_until_ready']} s",
                          str(row.get("same_tokens_as_eager", "")), str(row.get("bill", "")), str(row.get("ms_without", ""))]),
              flush=True)
    return made


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    p.add_argument("--out", required=True, type=Path)
    p.add_argument("--shape", default="llama-3-8b", choices=SHAPES)
    p.add_argument("--bits", type=int, nargs="*", default=[4, 2, 1], choices=GRIDS)
    p.add_argument("--head", type=int, default=4, choices=GRIDS, help="bits of the head of packed models")
    p.add_argument("--prompt", type=int, default=32)
    p.add_argument("--tokens", type=int, default=128)
    p.add_argument("--modes", nargs="+", default=MODES, choices=MODES, help="how steps are run")
    a = p.parse_args()
    model = random_model(a.shape)
    table = {"what": f"greedy decoding, one sequence, {a.shape} shapes, random weights", "device": torch.cuda.get_device_name(),
             "torch": torch.__version__, "transformers": transformers.__version__, "python": platform.python_version(),
             "command": "python " + " ".join(sys.argv), "prompt": a.prompt, "tokens": a.tokens, "head_bits": a.head, "rows": []}

    eager: dict[tuple[str, bool], torch.Tensor] = {}

    def add(weights: str, modes: list[tuple[str, bool]]) -> None:
        table["rows"] += rows(model, weights, [m for m in modes if m[0] in a.modes], a, eager)
        base = next((r for r in table["rows"] if (r["weights"], r["mode"], r["step"]) == ("fp16", "captured", "slim")), None)
        for r in table["rows"]:
            r["over_fp16_captured"] = r["tokens_a_second"] / base["tokens_a_second"] if base else None
        a.out.write_text(json.dumps(table, indent=1) + "\n")

    add("fp16", [("eager", False), ("captured", False), ("eager", True), ("captured", True)])
    for bits in a.bits:
        pack_randomly(model, bits, a.head)
        add(f"{bits} bits, head {a.head}", [("eager", True), ("captured", False), ("captured", True)])
    if "compiled" in a.modes:  # last, on a model as it was: the layers of this one are packed
        del model
        model = random_model(a.shape)
        add("fp16", [("compiled", False)])


if __name__ == "__main__":
    main()
