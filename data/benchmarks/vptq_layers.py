"""VPTQ of single layers on a GPU: seconds with k-means and all passes, error and honest bits.

    python data/benchmarks/vptq_layers.py --out data/benchmarks/vptq_layers_h200.json

Weights are normal numbers with columns of different sizes; inputs are correlated.  The second of two runs counts.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import time
from pathlib import Path

import torch

import lowbit_nb as lb

LAYERS = [((14336, 4096), lb.Codebook(6, 4096)), ((4096, 4096), lb.Codebook(6, 4096)), ((4096, 14336), lb.Codebook(6, 4096)),
          ((4096, 4096), lb.Codebook(4, 256)), ((14336, 4096), lb.Codebook(8, 65536))]


def problem(d_out: int, d_in: int, device: str) -> tuple[torch.Tensor, torch.Tensor]:
    """A weight and an input Hessian of that shape."""
    g = torch.Generator(device).manual_seed(0)
    size = torch.empty(d_in, device=device).log_normal_(0, 0.4, generator=g)
    W = 0.02 * torch.randn(d_out, d_in, device=device, generator=g) * size
    X = torch.randn(4 * d_in, d_in, device=device, generator=g)
    X = (X + 0.5 * X.roll(1, 1)) * size.flip(0)
    return W, X.T @ X / len(X)


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
    for (d_out, d_in), book in LAYERS:
        W, H = problem(d_out // a.divide, d_in // a.divide, device)
        for extra in ({"retrain": 0, "refine": 0}, {}):
            method, seconds = lb.VPTQ(book, **extra), []
            for _ in range(2):
                start = time.perf_counter()
                stored, error = method.quantize_layer(W, H)
                _ = float(stored.dequantize()[0, 0])
                seconds.append(time.perf_counter() - start)
            table["rows"].append({"shape": list(W.shape), "v": book.v, "k": book.k, "settings": extra,
                                  "seconds": seconds[-1], "first_seconds": seconds[0], "error_share": error,
                                  "bits_per_weight": stored.bits().per_weight})
            print(table["rows"][-1], flush=True)
            a.out.write_text(json.dumps(table, indent=1) + "\n")


if __name__ == "__main__":
    main()
