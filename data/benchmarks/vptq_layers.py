"""VPTQ of single layers on a GPU: seconds by phase, error and honest bits; and what a model of 8 billion weights would take.

    python data/benchmarks/vptq_layers.py --out data/benchmarks/vptq_layers_h200.json

Weights are normal numbers with columns of different sizes; inputs are correlated.  Each layer is quantized twice: the first run
compiles, the second counts; it waits for the GPU after every phase.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest.mock import patch

import torch

import lowbit_nb as lb
from lowbit_nb.methods import vptq

BLOCK = {"q, o": ((4096, 4096), 2), "k, v": ((1024, 4096), 2), "gate, up": ((14336, 4096), 2), "down": ((4096, 14336), 1)}
BLOCKS = 32  # a model of 8 billion weights: LLaMA-3-8B's blocks
SMALL, LARGE = lb.Codebook(6, 4096), lb.Codebook(8, 65536)
FEEDBACK, DEFAULTS = {"retrain": 0, "refine": 0}, {}  # what a method is given beside its codebook
PHASES = ("kmeans", "feedback", "fit", "reassign", "error_share")


def problem(d_out: int, d_in: int, device: str) -> tuple[torch.Tensor, torch.Tensor]:
    """A weight and an input Hessian of that shape."""
    g = torch.Generator(device).manual_seed(0)
    size = torch.empty(d_in, device=device).log_normal_(0, 0.4, generator=g)
    W = 0.02 * torch.randn(d_out, d_in, device=device, generator=g) * size
    X = torch.randn(4 * d_in, d_in, device=device, generator=g)
    X = (X + 0.5 * X.roll(1, 1)) * size.flip(0)
    return W, X.T @ X / len(X)


def now() -> float:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


@contextmanager
def clocks() -> Iterator[Counter]:
    """Seconds spent in each of `PHASES`, those of a phase inside another taken off the outer one."""
    spent, running = Counter(), []

    def clocked(name: str, function: Callable) -> Callable:
        def call(*args: object, **settings: object) -> object:
            start = now()
            running.append(name)
            out = function(*args, **settings)
            running.pop()
            took = now() - start
            spent[name] += took
            if running:
                spent[running[-1]] -= took
            return out

        return call

    with patch.multiple(vptq, **{name: clocked(name, getattr(vptq, name)) for name in PHASES}):
        yield spent


def measure(W: torch.Tensor, H: torch.Tensor, book: lb.Codebook, settings: dict) -> dict:
    """One layer: seconds, phases, error, size and peak memory."""
    method, seconds = lb.VPTQ(book, **settings), []
    if W.is_cuda:
        torch.cuda.reset_peak_memory_stats()
    for _ in range(2):
        with clocks() as spent:
            start = now()
            stored, error = method.quantize_layer(W, H)
            seconds.append(now() - start)
    spent["rest"] = seconds[1] - sum(spent.values())
    phases = {name: round(s, 4) for name, s in spent.items()}
    out = {"shape": list(W.shape), "v": book.v, "k": book.k, "settings": settings, "seconds": round(seconds[1], 3),
           "first_seconds": round(seconds[0], 3), "phases": phases, "error_share": error,
           "bits_per_weight": stored.bits().per_weight}
    return out | ({"peak_GB": round(torch.cuda.max_memory_allocated() / 1e9, 2)} if W.is_cuda else {})


def whole_model(rows: list[dict], shapes: dict[str, tuple[int, int]], settings: dict) -> dict:
    """Seconds of all linear layers of the model, summed from the measured ones; Hessians and forward passes left out."""
    seconds = {tuple(row["shape"]): row["seconds"] for row in rows if row["settings"] == settings and row["v"] == SMALL.v}
    block = {name: BLOCK[name][1] * seconds[shape] for name, shape in shapes.items()}
    return {"settings": settings, "layers": BLOCKS * sum(n for _, n in BLOCK.values()),
            "block_seconds": {name: round(s, 3) for name, s in block.items()},
            "minutes": round(BLOCKS * sum(block.values()) / 60, 2)}


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    p.add_argument("--out", required=True, type=Path)
    p.add_argument("--divide", type=int, default=1, help="divide all shapes by this, to try the script")
    a = p.parse_args()
    print(session := lb.setup())
    device = session.device.type
    table = {"what": "VPTQ of one layer", "device": torch.cuda.get_device_name() if device == "cuda" else "CPU",
             "torch": torch.__version__, "python": platform.python_version(), "command": "python " + " ".join(sys.argv),
             "rows": []}
    shapes = {name: (d_out // a.divide, d_in // a.divide) for name, ((d_out, d_in), _) in BLOCK.items()}
    plan = [(name, SMALL, settings) for name in shapes for settings in (FEEDBACK, DEFAULTS)]
    for name, book, settings in [*plan, ("gate, up", LARGE, FEEDBACK), ("gate, up", LARGE, DEFAULTS)]:
        W, H = problem(*shapes[name], device)
        table["rows"].append(measure(W, H, book, settings))
        print(table["rows"][-1], flush=True)
        a.out.write_text(json.dumps(table, indent=1) + "\n")
    table["model_of_8B"] = [whole_model(table["rows"], shapes, settings) for settings in (FEEDBACK, DEFAULTS)]
    print(table["model_of_8B"])
    a.out.write_text(json.dumps(table, indent=1) + "\n")


if __name__ == "__main__":
    main()
