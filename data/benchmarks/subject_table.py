"""Every method on the bundled subject: perplexity, KL and top-1 on held-out text, three calibration seeds, as JSON.

    python data/benchmarks/subject_table.py --out data/benchmarks/subject_h200.json
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
from dataclasses import asdict
from pathlib import Path

import torch

import lowbit_nb as lb

GRIDS = [lb.Grid(b, group=g) for b, g in ((4, 64), (3, 64), (2, 32), (2, 64), (2, 128))]
W2G64 = lb.Grid(2, group=64)
METHODS = {
    "RTN": [lb.RTN(grid) for grid in GRIDS],
    "RTN, range searched": [lb.RTN(grid, clip="mse") for grid in GRIDS],
    "GPTQ": [lb.GPTQ(grid) for grid in GRIDS],
    "GPTQ, one group after another": [lb.GPTQ(W2G64, sequential=True)],
    "GPTQ, natural order": [lb.GPTQ(W2G64, order="natural")],
    "GPTQ, act order (order stored)": [lb.GPTQ(W2G64, order="act")],
    "GPTQ, min-pivot order (order stored)": [lb.GPTQ(W2G64, order="min_pivot")],
    "GPTQ, static groups": [lb.GPTQ(W2G64, groups="static")],
    "GPTQ, static groups, act order": [lb.GPTQ(W2G64, groups="static", order="act")],
    "GPTQ, range not searched": [lb.GPTQ(W2G64, clip="minmax")],
    "GPTQ, damp 0.1": [lb.GPTQ(W2G64, damp=0.1)],
    "GPTQ, shrink 0.1": [lb.GPTQ(W2G64, shrink=0.1)],
    "AWQ": [lb.AWQ(grid) for grid in GRIDS],
    "AWQ, clip only": [lb.AWQ(W2G64, scaling=False)],
    "OmniQuant, fast": [lb.OmniQuant(W2G64)],
    "TesseraQ from AWQ, fast": [lb.TesseraQ(lb.AWQ(grid)) for grid in (W2G64, lb.Grid(3, group=64), lb.Grid(2, group=128))],
    "TesseraQ from AWQ's clip, fast": [lb.TesseraQ(lb.AWQ(W2G64, scaling=False))],
    "TesseraQ from OmniQuant, fast": [lb.TesseraQ(lb.OmniQuant(W2G64))],
    "TesseraQ from AWQ's clip, fast, reach 0.5": [lb.TesseraQ(lb.AWQ(W2G64, scaling=False), reach=0.5)],
}


def rows(subject: lb.Subject, held_out: lb.text.Windows, seeds: range, only: str, n: int) -> list[dict]:
    """One row a method, grid and seed; a method that looks at weights only has one seed."""
    out = []
    for name, methods in METHODS.items():
        for method in methods if only in name else []:
            for seed in seeds if method.streams else [None]:
                text = lb.text.calibration(subject.tokenizer, n, 256, seed=seed) if method.streams else None
                run = lb.quantize(subject, method, text, progress=False)
                score = lb.evaluate.compare(subject, run.apply(subject), held_out)
                grid = getattr(method, "grid", None) or method.start.grid
                out.append({"method": name, "bits": grid.bits, "group": grid.group, "seed": seed, "calibration": n,
                            "bits_per_weight": run.bits().per_weight, "seconds": round(run.seconds, 2)} | asdict(score))
                print(out[-1], flush=True)
    return out


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    p.add_argument("--out", required=True)
    p.add_argument("--seeds", type=int, default=3)
    p.add_argument("--windows", type=int, default=256, help="held-out windows")
    p.add_argument("--calibration", type=int, default=64, help="calibration windows")
    p.add_argument("--only", default="", help="only methods whose name contains this")
    a = p.parse_args()
    print(lb.setup())
    subject = lb.load()
    held_out = lb.text.evaluation(subject.tokenizer, n=a.windows)
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else platform.processor() or "CPU"
    head = {"what": "the bundled subject, weights only", "device": device, "torch": torch.__version__,
            "python": platform.python_version(), "command": "python " + " ".join(sys.argv), "evaluation": held_out.protocol,
            "original_perplexity": lb.evaluate.perplexity(subject, held_out)}
    head["rows"] = rows(subject, held_out, range(a.seeds), a.only, a.calibration)
    Path(a.out).write_text(json.dumps(head, indent=1) + "\n")


if __name__ == "__main__":
    main()
