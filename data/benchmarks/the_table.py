"""All methods by one protocol, at about 4, 3 and 2 honest bits, below 2, and with activations in 8 and 4 bits, as JSON.

    python data/benchmarks/the_table.py --out data/benchmarks/the_table_h200.json
    python data/benchmarks/the_table.py --out part_0.json --part 0/12                    # one of twelve processes
    python data/benchmarks/the_table.py --out data/benchmarks/the_table_h200.json --merge part_*.json

The protocol: 128 calibration windows of 256 tokens, 256 held-out windows, seeds 0 to 2.  The seed decides which windows are
read and every choice that a method makes at random.  Rows whose budget is "paper" read as many tokens as the papers do (128
texts of 2048, TesseraQ 512) and learn as long.  `--missing FILE` leaves out what that file has already.
"""

from __future__ import annotations

import argparse
import gc
import json
import re
import time
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path

import torch
from recorded import this_run
from subject_table import EndToEnd, Then, finetune, with_activations

import lowbit_nb as lb
from lowbit_nb.bilevel import Second
from lowbit_nb.reconstruct import Budget

GRIDS = {"4": lb.Grid(4, group=64), "3": lb.Grid(3, group=64), "2": lb.Grid(2, group=64), "below 2": lb.Grid(1, group=32)}
CODED = {"4": (4, 32, 1.0), "3": (3, 32, 1.0), "2": (2, 32, 10.0)}  # SpQR: bits, group, threshold of outliers
BOOKS = {"4": lb.Codebook(2, 256), "3": lb.Codebook(2, 64), "2": lb.Codebook(4, 256), "below 2": lb.Codebook(4, 128)}
STAGES = {"4": lb.Codebook(4, 256, k_res=256), "3": lb.Codebook(4, 256, k_res=16)}
TUNED = EndToEnd(10, 50, 8)
SHARED, PAPER = 128, 1024  # calibration windows of 256 tokens


@dataclass(frozen=True)
class Plan:
    """One row of the table before it is measured."""

    level: str
    name: str
    then: Then
    budget: str = "shared"
    windows: int = SHARED


def steps(epochs: int) -> Budget:
    """So many epochs of 128 texts of 2048 tokens, a text (8 windows) a step."""
    return Budget(epochs, 128, 1, tokens=2048)


def on_a_ruler(grid: lb.Grid) -> dict[str, object]:
    """Methods that store weights on affine grids, at one size."""
    feedback, clip = lb.GPTQ(grid, damp=0.1), lb.AWQ(grid, scaling=False)
    return {
        "RTN": lb.RTN(grid), "RTN, range searched": lb.RTN(grid, clip="mse"), "GPTQ": feedback,
        "GPTQ, range not searched": lb.GPTQ(grid, damp=0.1, clip="minmax"),
        "GPTQ, shifted target": replace(feedback, shift=True), "AWQ": lb.AWQ(grid), "TesseraQ": lb.TesseraQ(clip),
        "OmniQuant": lb.OmniQuant(grid), "OAC+GPTQ": lb.OAC(feedback), "OAC+GPTQ, tokens form": lb.OAC(feedback, form="tokens"),
        "CBQ, rank 5": lb.CBQ(grid), "CBQ, full rank": lb.CBQ(grid, rank=None, sharpness=300),
        "LRQuant": lb.LRQuant(grid, budget=Budget(20, 32, 4))}


def sparse(level: str) -> dict[str, object]:
    bits, group, threshold = CODED[level]
    spqr = lb.SpQR(lb.Grid(bits, group=group, zero_inside=False), Second(rows=64), threshold, clip="mse")
    return {"SpQR": spqr, "OAC+SpQR": lb.OAC(spqr)}


def codebooks(level: str) -> dict[str, object]:
    plain = lb.VPTQ(BOOKS[level])
    two = {"VPTQ, two stages": lb.VPTQ(STAGES[level])} if level in STAGES else {}
    return {"VPTQ": plain, "VPTQ, tuned end to end": Then(plain, end_to_end=TUNED), "OAC+VPTQ": lb.OAC(plain)} | two


BINARY = {"BiLLM": lb.BiLLM(), "BiLLM, column by column": lb.BiLLM(feedback="column", per_row=True),
          "OAC+BiLLM": lb.OAC(lb.BiLLM()), "PB-LLM": lb.PBLLM(), "ARB-LLM": lb.ARBLLM()}  # near 3 bits with everything counted


def with_rounded_activations(bits: int) -> dict[str, object]:
    grid, acts = lb.Grid(4), lb.Activations(bits)
    tag = f", W4A{bits}"
    known = {name.removesuffix(tag): plan for name, (plan,) in with_activations(4, bits).items()}
    names = {"SmoothQuant, alpha 0.85": "SmoothQuant", "TesseraQ, fast, from OmniQuant": "TesseraQ", "CBQ, fast": "CBQ, rank 5"}
    keep = ("RTN", "GPTQ", "OmniQuant", "LRQuant", "LRQuant, down projection scaled too", *names)
    return {names.get(name, name): known[name] for name in keep} | {
        "AWQ": Then(lb.AWQ(grid), acts), "OAC+GPTQ": Then(lb.OAC(lb.GPTQ(grid)), acts),
        "CBQ, full rank": lb.CBQ(grid, activations=acts, rank=None, sharpness=300)}


def at_the_papers_budgets() -> list[Plan]:
    grid, long = GRIDS["2"], lb.AWQ(GRIDS["2"], scaling=False)
    methods = {
        "GPTQ": lb.GPTQ(grid, damp=0.1), "AWQ": lb.AWQ(grid), "OmniQuant": lb.OmniQuant(grid, budget=steps(40)),
        "VPTQ": lb.VPTQ(BOOKS["2"]), "OAC+GPTQ": lb.OAC(lb.GPTQ(grid, damp=0.1), batch=32),
        "CBQ, rank 5": lb.CBQ(grid, budget=steps(3)), "CBQ, full rank": lb.CBQ(grid, rank=None, sharpness=300, budget=steps(3)),
        "LRQuant": lb.LRQuant(grid, budget=steps(20))}
    plans = [Plan("2", name, as_then(method), "paper", PAPER) for name, method in methods.items()]
    return [*plans, Plan("2", "TesseraQ", Then(lb.TesseraQ(long, budget="paper")), "paper", 4 * PAPER),
            Plan("below 2", "PTQ1.61", Then(lb.PTQ161(budget=steps(20))), "paper", PAPER),
            Plan("3", "BiLLM", Then(lb.BiLLM()), "paper", PAPER)]


def plans() -> list[Plan]:
    levels = {level: on_a_ruler(grid) | codebooks(level) for level, grid in GRIDS.items()}
    for level in CODED:
        levels[level] |= sparse(level)
    levels["3"] |= BINARY
    levels["below 2"] |= {"PTQ1.61": lb.PTQ161(), "PTQ1.61, signs with feedback": lb.PTQ161(signs="feedback")}
    levels |= {f"W4A{bits}": with_rounded_activations(bits) for bits in (8, 4)}
    rows = [Plan(level, name, as_then(method)) for level in ("2", "below 2", "W4A4", "3", "4", "W4A8")
            for name, method in levels[level].items()]
    return rows + at_the_papers_budgets()


def as_then(method: object) -> Then:
    return method if isinstance(method, Then) else Then(method)


def seeded(method: object, seed: int) -> object:
    """The method with this seed, and those that it starts from or stands on as well."""
    inner = {f.name: getattr(method, f.name) for f in fields(method)}
    changed = {name: seeded(value, seed) for name, value in inner.items() if hasattr(value, "quantize_block")}
    return replace(method, **changed, **({"seed": seed} if "seed" in inner else {}))


def measure(subject: lb.Subject, held_out: lb.text.Windows, plan: Plan, seed: int | None, batch: int) -> dict:
    """Quantize, follow up, and say everything about the result."""
    method, then = plan.then.method, plan.then
    text = lb.text.calibration(subject.tokenizer, plan.windows, 256, seed=seed) if method.streams else None
    left_over = held_bytes() - sum(p.numel() * p.element_size() for p in subject.model.parameters())  # by the rows before
    began = time.perf_counter()
    result = lb.quantize(subject, method if seed is None else seeded(method, seed), text, progress=False, batch=batch)
    peaks = [block.get("peak_bytes", 0) for block in result.trace]
    result = result.with_activations(then.activations) if then.activations else result
    if then.end_to_end:
        result, _ = finetune(subject, result, text, replace(then.end_to_end, seed=seed))
        peaks.append(torch.cuda.max_memory_allocated())
    seconds = time.perf_counter() - began
    other, peak = result.apply(subject), max(peaks) - left_over if torch.cuda.is_available() else 0
    score = {name: round(value, 5) for name, value in asdict(lb.evaluate.compare(subject, other, held_out)).items()}
    return {"level": plan.level, "method": plan.name, "budget": plan.budget, "seed": seed,
            "calibration": plan.windows if text else None, "bits_per_weight": round(result.bits().per_weight, 4),
            "kl": score["kl"], "top1": score["top1"], "perplexity": score["perplexity"],
            "parse": lb.evaluate.parse_rate(other), "seconds": round(seconds, 2), "peak_bytes": peak}


def held_bytes() -> int:
    """What the device holds now, garbage collected; graphs of earlier runs are among it."""
    gc.collect()
    return torch.cuda.memory_allocated()


def key(row: dict) -> tuple:
    return tuple(row[name] for name in ("level", "method", "budget", "seed"))


def tasks(a: argparse.Namespace) -> list[tuple[Plan, int | None]]:
    """What this process measures: seed 0 of everything, and what is quick, first; seeds of the papers' budgets last."""
    chosen = [plan for plan in plans() if re.search(a.only, f"{plan.level}: {plan.name} ({plan.budget})")]
    every = [(plan, seed if plan.then.method.streams else None) for seed in range(a.seeds) for plan in chosen
             if seed == 0 or plan.then.method.streams]
    known = {key(row) for row in json.loads(a.missing.read_text())["rows"]} if a.missing else set()
    every = [(plan, seed) for plan, seed in every if (plan.level, plan.name, plan.budget, seed) not in known]
    every.sort(key=lambda task: task[1] * slow(task[0]) if task[1] else 0)
    first, n = map(int, a.part.split("/"))
    return every[first::n]


def slow(plan: Plan) -> int:
    """0 if nothing is learned by gradients, more the longer it takes."""
    learned = hasattr(plan.then.method, "budget") or plan.then.end_to_end is not None
    return 9 if plan.budget == "paper" else 3 * learned if isinstance(plan.then.method, lb.CBQ) else int(learned)


def merge(out: Path, parts: list[Path]) -> None:
    """Rows of all files, the later file's where two have the same; runs are numbered anew."""
    tables = [json.loads(path.read_text()) for path in ([out] if out.exists() else []) + parts]
    if len({table["evaluation"] for table in tables}) != 1:
        raise SystemExit("these files were measured on different texts")
    runs, rows = [], {}
    for table in tables:
        rows |= {key(row): row | {"run": row["run"] + len(runs)} for row in table["rows"]}
        runs += table["runs"]
    order = {(plan.level, plan.name, plan.budget): i for i, plan in enumerate(plans())}
    kept = [row for row in rows.values() if key(row)[:3] in order]
    kept.sort(key=lambda row: (order[key(row)[:3]], row["seed"] or 0))
    out.write_text(json.dumps(tables[0] | {"runs": runs, "rows": kept}, indent=1) + "\n")


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    p.add_argument("--out", required=True, type=Path)
    p.add_argument("--merge", nargs="+", type=Path, help="join these files into --out and measure nothing")
    p.add_argument("--only", default="", help="only rows of which 'level: method (budget)' matches this expression")
    p.add_argument("--seeds", type=int, default=3)
    p.add_argument("--part", default="0/1", help="i/n: every n-th row from the i-th")
    p.add_argument("--missing", type=Path, help="leave out the rows of this file")
    p.add_argument("--windows", type=int, default=256, help="held-out windows")
    p.add_argument("--batch", type=int, default=32, help="windows at once outside learning")
    p.add_argument("--note", default="", help="kept with the run: what a reader should know about its seconds")
    a = p.parse_args()
    if a.merge:
        return merge(a.out, a.merge)
    print(session := lb.setup())
    subject = lb.load(device=session.device)
    held_out = lb.text.evaluation(subject.tokenizer, n=a.windows)
    table = {"what": "the bundled subject, every method by one protocol", "evaluation": held_out.protocol,
             "original": {"perplexity": lb.evaluate.perplexity(subject, held_out), "parse": lb.evaluate.parse_rate(subject)},
             "runs": [this_run(a.note)], "rows": []}
    for plan, seed in tasks(a):
        try:
            row = measure(subject, held_out, plan, seed, a.batch)
        except (ValueError, RuntimeError) as error:  # one row less, not all that follow
            print(f"left out: {plan.level}: {plan.name} ({plan.budget}), seed {seed}: {error}", flush=True)
            continue
        table["rows"].append(row | {"run": 0})
        print(row, flush=True)
        a.out.write_text(json.dumps(table, indent=1) + "\n")


if __name__ == "__main__":
    main()
