"""Combinations of parts of several papers on the bundled subject: KL, top-1, perplexity, parse rate, seconds, memory, as JSON.

    python data/benchmarks/combinations.py --out data/benchmarks/combinations_h200.json
    python data/benchmarks/combinations.py --out data/benchmarks/combinations_h200.json --only 'two teachers' --seeds 0

    python data/benchmarks/combinations.py --out data/benchmarks/combinations_h200.json --merge one.json another.json

Rows have the fields of their `Recipe`.  Rows of an earlier run stay unless this run makes them again; every row names its run.
The same text as in `subject_table.py`, so that rows of both can stand in one table.
"""

from __future__ import annotations

import argparse
import json
import re
import time
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path

import torch
from recorded import keep, opened

import lowbit_nb as lb
from lowbit_nb.record import Quantized

FAST = lb.Recipe(budget="fast")
FEEDBACK = replace(FAST, rounding="feedback")
PROGRESSIVE = replace(FAST, rounding="progressive", objective="block", scope="block")
BEGUN = replace(PROGRESSIVE, rounding="feedback, then progressive")
TWO = {"objective": "two teachers"}
JOINT = replace(PROGRESSIVE, scope="block, then model")
LEARNED = replace(PROGRESSIVE, transform="learned", grid="learned clip", bits=4, group=None, activations=4)
RECIPES = [
    # those that beat every single method: all roundings once more, by what the model predicts
    JOINT, replace(JOINT, bits=3), replace(JOINT, bits=4), replace(JOINT, bits=1, group=128),
    replace(LEARNED, scope="block, then model"),  # W4A4
    # what they are made of, alone
    PROGRESSIVE, replace(PROGRESSIVE, bits=3), replace(PROGRESSIVE, bits=4), replace(PROGRESSIVE, bits=1, group=128), LEARNED,
    # then only the steps, or the vectors
    replace(PROGRESSIVE, scope="model"), replace(FEEDBACK, scope="model"), replace(FEEDBACK, objective="loss", scope="model"),
    replace(FAST, grid="codebook", rounding="feedback", objective="loss", scope="model"),
    # a transform, a learned range or learned steps beside feedback
    replace(FEEDBACK, transform="searched"), replace(FEEDBACK, grid="learned clip", objective="block", scope="block"),
    replace(FEEDBACK, objective="block", scope="block"),
    # progressive rounding: another start, another objective, two blocks at once
    BEGUN, replace(BEGUN, transform="searched"), replace(BEGUN, objective="loss, then block"),
    replace(PROGRESSIVE, **TWO), replace(PROGRESSIVE, **TWO, scope="window"), replace(BEGUN, **TWO, scope="window"),
    replace(BEGUN, objective="loss, then two teachers", scope="window"), replace(BEGUN, scope="block, then model"),
]


def title(recipe: lb.Recipe) -> str:
    """What --only is matched against: "searched · feedback · layer · layer, W2 g64"."""
    return f"{recipe.name}, W{recipe.bits} g{recipe.group}"


def rows(subject: lb.Subject, held_out: lb.text.Windows, a: argparse.Namespace, run: int) -> Iterator[dict]:
    """One row a recipe and seed: the seed draws the calibration text and whatever the method draws."""
    for recipe in RECIPES:
        for seed in a.seeds if re.search(a.only, title(recipe)) else []:
            recipe = replace(recipe, seed=seed, budget=a.budget or recipe.budget)
            text = lb.text.calibration(subject.tokenizer, a.calibration, 256, seed=seed)
            result, seconds, peak = timed(recipe, subject, text)
            applied = result.apply(subject)
            score = lb.evaluate.compare(subject, applied, held_out)
            yield asdict(recipe) | {"name": recipe.name, "calibration": a.calibration,
                                    "bits_per_weight": result.bits().per_weight, "parse": lb.evaluate.parse_rate(applied),
                                    "seconds": round(seconds, 2), "peak_bytes": peak, "run": run} | asdict(score)


def timed(recipe: lb.Recipe, subject: lb.Subject, text: lb.text.Windows) -> tuple[Quantized, float, int | None]:
    """A result, its seconds on the clock, and the most memory that was taken meanwhile on a GPU."""
    gpu = torch.cuda.is_available()
    if gpu:
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
    began = time.perf_counter()
    result = recipe.run(subject, text, progress=False)
    if gpu:
        torch.cuda.synchronize()
    return result, time.perf_counter() - began, torch.cuda.max_memory_allocated() if gpu else None


def key(row: dict) -> tuple:
    return tuple(row[name] for name in (*asdict(lb.Recipe()), "calibration"))


def merged(table: dict, others: list[Path]) -> dict:
    """A table with the rows and runs of tables that were made side by side."""
    for path in others:
        other, before = json.loads(path.read_text()), len(table["runs"])
        if other["evaluation"] != table["evaluation"]:
            raise SystemExit(f"{path} was measured on other text ({other['evaluation']})")
        table["runs"] += other["runs"]
        new = {key(row): row | {"run": row["run"] + before} for row in other["rows"]}
        table["rows"] = [old for old in table["rows"] if key(old) not in new] + [*new.values()]
    return table


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    p.add_argument("--out", required=True, type=Path)
    p.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    p.add_argument("--windows", type=int, default=256, help="held-out windows")
    p.add_argument("--calibration", type=int, default=512, help="calibration windows")
    p.add_argument("--budget", default="", help="for all recipes: demo, fast or paper; none: each its own")
    p.add_argument("--only", default="", help="only recipes whose title matches this expression")
    p.add_argument("--note", default="", help="kept with the run: what a reader should know about its seconds")
    p.add_argument("--merge", type=Path, nargs="+", help="measure nothing, add the rows of these files")
    a = p.parse_args()
    if a.merge:
        first, *rest = [*([a.out] if a.out.exists() else []), *a.merge]
        a.out.write_text(json.dumps(merged(json.loads(first.read_text()), rest), indent=1) + "\n")
        return
    print(session := lb.setup())
    subject = lb.load(device=session.device)
    held_out = lb.text.evaluation(subject.tokenizer, n=a.windows)
    table = opened(a.out, "combinations on the bundled subject", subject, held_out, a.note)
    for row in rows(subject, held_out, a, len(table["runs"]) - 1):
        keep(table, row, key, a.out)


if __name__ == "__main__":
    main()
