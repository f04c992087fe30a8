"""Every method on the bundled subject: perplexity, KL and top-1 on held-out text, as JSON.

    python data/benchmarks/subject_table.py --out data/benchmarks/subject_h200.json
    python data/benchmarks/subject_table.py --out data/benchmarks/subject_h200.json --only TesseraQ --calibration 512 --seeds 1

Rows of an earlier run stay in the file unless this run makes them again; every row names its run.
"""

from __future__ import annotations

import argparse
import re
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from recorded import keep, opened

import lowbit_nb as lb
from lowbit_nb.bilevel import Second
from lowbit_nb.endtoend import EndToEnd, finetune
from lowbit_nb.reconstruct import Budget

GRIDS = [lb.Grid(b, group=g) for b, g in ((4, 64), (3, 64), (2, 32), (2, 64), (2, 128))]
W2G64 = lb.Grid(2, group=64)
LONG = Budget(20, 32, 4)  # 20 epochs of 128 windows, the budget of OmniQuant and LRQuant
MAIN = [W2G64, lb.Grid(2, group=128), lb.Grid(3, group=64)]
SMALL = {b: lb.Grid(b, group=16, zero_inside=False) for b in (2, 3, 4)}  # grids that SpQR codes
LOSS = [lb.GPTQ(grid, damp=0.1) for grid in (*MAIN, lb.Grid(4, group=64))]  # backends under the end loss
SHIFTED = [replace(backend, shift=True) for backend in LOSS]


@dataclass(frozen=True)
class Then:
    """A method and what follows it: activations rounded behind its back, or codebooks learned end to end."""

    method: object
    activations: lb.Activations | None = None
    end_to_end: EndToEnd | None = None


def with_activations(b: int, a: int) -> dict[str, list]:
    """Rows with one ruler a row of the weight and one a token of the activations."""
    grid, acts = lb.Grid(b), lb.Activations(a)
    scaled = lb.OmniQuant(grid, scaling=True, shifts=True, activations=acts, budget=LONG)
    methods = {
        "RTN": Then(lb.RTN(grid), acts), "GPTQ": Then(lb.GPTQ(grid), acts),
        "SmoothQuant": lb.SmoothQuant(grid, activations=acts),
        "SmoothQuant, alpha 0.85": lb.SmoothQuant(grid, 0.85, activations=acts), "OmniQuant": scaled,
        "LRQuant": lb.LRQuant(grid, activations=acts, budget=LONG),
        "LRQuant, down projection scaled too": lb.LRQuant(grid, activations=acts, budget=LONG, down=True),
        "LRQuant, squared error only": lb.LRQuant(grid, activations=acts, budget=LONG, loss="mse"),
        "TesseraQ, fast, from OmniQuant": lb.TesseraQ(scaled, activations=acts),
        "CBQ, fast": lb.CBQ(grid, activations=acts)}
    return {f"{name}, W{b}A{a}": [method] for name, method in methods.items()}


CLIP = lb.AWQ(W2G64, scaling=False)
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
    "GPTQ, damp 0.1": LOSS,
    "GPTQ, shrink 0.1": [lb.GPTQ(W2G64, shrink=0.1)],
    "GPTQ, shifted target": SHIFTED,
    "OAC+GPTQ": [lb.OAC(backend) for backend in LOSS],
    "OAC+GPTQ, single pass": [lb.OAC(backend, sequential=False) for backend in LOSS],
    "OAC+GPTQ, tokens form": [lb.OAC(backend, form="tokens") for backend in LOSS],
    "OAC+GPTQ, tokens form, single pass": [lb.OAC(backend, form="tokens", sequential=False) for backend in LOSS],
    "OAC+GPTQ, sampled labels": [lb.OAC(backend, labels="sampled") for backend in LOSS],
    "OAC+GPTQ, shifted target": [lb.OAC(backend) for backend in SHIFTED],
    "OAC+GPTQ, tokens form, shifted target": [lb.OAC(backend, form="tokens") for backend in SHIFTED],
    "GPTQ, small groups": [lb.GPTQ(lb.Grid(b, group=g)) for b, g in ((3, 16), (3, 32), (3, 128), (4, 32), (4, 128), (2, 16))],
    "SpQR": [lb.SpQR(), lb.SpQR(SMALL[2]), lb.SpQR(SMALL[4])],
    "SpQR, no outliers": [lb.SpQR(grid, threshold=float("inf")) for grid in SMALL.values()],
    "SpQR, few outliers": [lb.SpQR(grid, threshold=1.0) for grid in SMALL.values()],
    "SpQR, searched grids, 64 rows": [lb.SpQR(lb.Grid(b, group=g, zero_inside=False), Second(rows=64), 1.0, clip="mse")
                                      for b in (2, 3, 4) for g in (16, 32)],
    "SpQR, damp 1": [lb.SpQR(damp=1.0)],
    "OAC+SpQR": [lb.OAC(lb.SpQR(grid)) for grid in SMALL.values()],
    "OAC+SpQR, tokens form": [lb.OAC(lb.SpQR(grid), form="tokens") for grid in SMALL.values()],
    "VPTQ": [lb.VPTQ(book) for book in (lb.Codebook(4, 256), lb.Codebook(6, 4096), lb.Codebook(4, 256, k_res=16))],
    "VPTQ, refined six times": [lb.VPTQ(refine=6)],
    "VPTQ, tuned block by block": [lb.VPTQ(tune="fast")],
    "VPTQ, tuned end to end": [Then(lb.VPTQ(), end_to_end=EndToEnd(10, 50, 8))],
    "VPTQ, tuned block by block, then end to end": [Then(lb.VPTQ(tune="fast"), end_to_end=EndToEnd(10, 50, 8))],
    "VPTQ, as in the paper": [lb.VPTQ(norm="none", weight="h", start="random", iterations=100, retrain=0, refine=0)],
    "BiLLM": [lb.BiLLM()],
    "BiLLM, as in its code": [lb.BiLLM(search="saliency", feedback="diagonal")],
    "BiLLM, column by column": [lb.BiLLM(feedback="column", per_row=True)],
    "OAC+BiLLM": [lb.OAC(lb.BiLLM())],
    "ARB-LLM": [lb.ARBLLM()],
    "PB-LLM": [lb.PBLLM()],
    "PTQ1.61, not learned": [lb.PTQ161(budget=Budget(1, 1, 1))],
    "PTQ1.61": [lb.PTQ161()],
    "PTQ1.61, 20 epochs": [lb.PTQ161(budget=Budget(20, 32, 4))],
    "PTQ1.61, signs with feedback": [lb.PTQ161(signs="feedback")],
    "AWQ": [lb.AWQ(grid) for grid in GRIDS[1:]],
    "AWQ, clip only": [lb.AWQ(W2G64, scaling=False)],
    "OmniQuant, fast": [lb.OmniQuant(grid) for grid in MAIN],
    "OmniQuant, fast, from AWQ's clip": [lb.OmniQuant(W2G64, start=lb.AWQ(W2G64, scaling=False))],
    "OmniQuant, fast, learned scaling": [lb.OmniQuant(W2G64, scaling=True)],
    "TesseraQ, fast": [lb.TesseraQ(lb.AWQ(grid, scaling=False)) for grid in MAIN],
    "TesseraQ, fast, AWQ scaling too": [lb.TesseraQ(lb.AWQ(W2G64))],
    "TesseraQ, fast, from OmniQuant": [lb.TesseraQ(lb.OmniQuant(W2G64))],
    "TesseraQ, fast, step not tuned": [lb.TesseraQ(lb.AWQ(W2G64, scaling=False), tune_scale=False)],
    "TesseraQ, fast, the paper's rate": [lb.TesseraQ(lb.AWQ(W2G64, scaling=False), reach=0.05)],
    "TesseraQ, paper, reach 3": [lb.TesseraQ(lb.AWQ(W2G64, scaling=False), budget="paper", reach=3.0)],
    "TesseraQ, paper, AWQ scaling too": [lb.TesseraQ(lb.AWQ(W2G64), budget="paper")],
    "TesseraQ, paper": [lb.TesseraQ(lb.AWQ(W2G64, scaling=False), budget="paper")],
    "CBQ, fast": [lb.CBQ(W2G64)],
    "CBQ, fast, window 1": [lb.CBQ(W2G64, window=1, overlap=0)],
    "CBQ, fast, rank 64": [lb.CBQ(W2G64, rank=64, sharpness=300)],
    "CBQ, fast, full rank, sharpness 30": [lb.CBQ(W2G64, rank=None, sharpness=30)],
    "CBQ, fast, full rank": [lb.CBQ(W2G64, rank=None, sharpness=300)],
    "CBQ, fast, full rank, window 1": [lb.CBQ(W2G64, rank=None, sharpness=300, window=1, overlap=0)],
    "CBQ, fast, full rank, from AWQ's clip": [lb.CBQ(W2G64, rank=None, sharpness=300, start=CLIP)],
    "CBQ, fast, full rank, from AWQ's clip, window 1": [
        lb.CBQ(W2G64, rank=None, sharpness=300, start=CLIP, window=1, overlap=0)],
    "LRQuant": [lb.LRQuant(W2G64, budget=LONG)],
    **with_activations(4, 8), **with_activations(6, 6), **with_activations(4, 4), **with_activations(3, 3),
}


def rows(subject: lb.Subject, held_out: lb.text.Windows, a: argparse.Namespace, run: int) -> Iterator[dict]:
    """One row a method, grid and seed; a method that looks at weights only has one seed."""
    for name, methods in METHODS.items():
        for plan in methods if re.search(a.only, name) else []:
            plan = plan if isinstance(plan, Then) else Then(plan)
            method = plan.method
            for seed in range(a.seeds) if method.streams else [None]:
                text = lb.text.calibration(subject.tokenizer, a.calibration, 256, seed=seed) if method.streams else None
                result = lb.quantize(subject, method, text, progress=False, batch=a.batch)
                began = time.perf_counter()
                result = result.with_activations(plan.activations) if plan.activations else result
                if plan.end_to_end:
                    result, _ = finetune(subject, result, text, plan.end_to_end)
                after = time.perf_counter() - began
                score = lb.evaluate.compare(subject, result.apply(subject), held_out)
                yield {"method": name, **cut(method), "seed": seed,
                       "calibration": a.calibration if text else None, "bits_per_weight": result.bits().per_weight,
                       "seconds": round(result.seconds + after, 2), "run": run} | asdict(score)


def cut(method: object) -> dict:
    """Bits and group of a method's grid; of codebooks their sizes; of signs one bit."""
    if book := getattr(method, "book", None):
        return {"bits": book.nominal, "group": f"v{book.v} k{book.k}"}
    grid = getattr(method, "grid", None) or getattr(getattr(method, "start", None), "grid", None)
    return {"bits": grid.bits, "group": grid.group} if grid else {"bits": 1, "group": None}


def key(row: dict) -> tuple:
    return tuple(row[name] for name in ("method", "bits", "group", "seed", "calibration"))


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    p.add_argument("--out", required=True, type=Path)
    p.add_argument("--seeds", type=int, default=3)
    p.add_argument("--windows", type=int, default=256, help="held-out windows")
    p.add_argument("--calibration", type=int, default=64, help="calibration windows")
    p.add_argument("--batch", type=int, default=4, help="windows at once outside learning")
    p.add_argument("--only", default="", help="only methods whose name matches this expression")
    p.add_argument("--note", default="", help="kept with the run: what a reader should know about its seconds")
    a = p.parse_args()
    print(session := lb.setup())
    subject = lb.load(device=session.device)
    held_out = lb.text.evaluation(subject.tokenizer, n=a.windows)
    table = opened(a.out, "the bundled subject", subject, held_out, a.note)
    for row in rows(subject, held_out, a, len(table["runs"]) - 1):
        keep(table, row, key, a.out)


if __name__ == "__main__":
    main()
