"""The benchmark of all methods: what it plans, how work is shared and joined, and what is recorded."""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

import lowbit_nb as lb

BENCHMARKS = Path(__file__).resolve().parents[1] / "data" / "benchmarks"
RECORDED = BENCHMARKS / "the_table_h200.json"


@pytest.fixture(scope="module")
def script():
    sys.path.insert(0, str(BENCHMARKS))
    try:
        import the_table

        yield the_table
    finally:
        sys.path.remove(str(BENCHMARKS))


def asked(**given: object) -> argparse.Namespace:
    return argparse.Namespace(**{"only": "", "seeds": 3, "part": "0/1", "missing": None} | given)


def test_every_method_of_the_kit_is_in_it(script):
    """All but Joint, which goes on from another method's result: combinations have a notebook of their own."""
    used = {"Joint"}
    for plan in script.plans():
        method = plan.then.method
        used.add(type(method).__name__)
        used |= {type(inner).__name__ for inner in (getattr(method, "backend", None), getattr(method, "start", None)) if inner}
    assert {method.__name__ for method in lb.methods.METHODS.values()} <= used


def test_rows_have_names_of_their_own_and_one_protocol(script):
    plans = script.plans()
    assert max(Counter((p.level, p.name, p.budget) for p in plans).values()) == 1
    assert {p.level for p in plans} == {"4", "3", "2", "below 2", "W4A8", "W4A4"}
    assert all(p.windows == (128 if p.budget == "shared" else p.windows) for p in plans)
    assert all(p.windows >= 1024 for p in plans if p.budget == "paper")
    for p in plans:
        bits = p.level.partition("A")[2]
        rounded = p.then.activations or getattr(p.then.method, "activations", None)
        assert (rounded.bits if rounded else None) == (int(bits) if bits else None), p


def test_parts_share_the_work_and_leave_nothing_out(script):
    every = script.tasks(asked())
    parts = [script.tasks(asked(part=f"{i}/5")) for i in range(5)]
    assert sorted(map(repr, every)) == sorted(repr(task) for part in parts for task in part)
    assert all(seed in (None, 0) or not script.slow(plan) for plan, seed in every[: len(script.plans())])
    assert all(seed is None for plan, seed in every if not plan.then.method.streams)
    one = script.tasks(asked(only=r"^2: GPTQ \(shared\)$", seeds=2))
    assert [(plan.name, seed) for plan, seed in one] == [("GPTQ", 0), ("GPTQ", 1)]


def test_a_seed_reaches_everything_that_draws(script):
    inner = lb.OmniQuant(lb.Grid(2, group=64))
    made = script.seeded(lb.TesseraQ(inner), 7)
    assert made.seed == 7 and made.start.seed == 7 and replace(made, seed=0, start=inner) == lb.TesseraQ(inner)
    assert script.seeded(lb.RTN(lb.Grid(2)), 7) == lb.RTN(lb.Grid(2))
    assert script.seeded(lb.OAC(lb.VPTQ()), 3).backend.seed == 3


def test_files_are_joined_and_what_is_there_is_not_measured_again(script, tmp_path):
    def file(name: str, *rows: dict, text: str = "a") -> Path:
        path = tmp_path / name
        path.write_text(json.dumps({"evaluation": text, "runs": [{"command": name}], "rows": list(rows)}))
        return path

    def row(method: str, seed: int | None, kl: float) -> dict:
        return {"level": "2", "method": method, "budget": "shared", "seed": seed, "kl": kl, "run": 0}

    a = file("a.json", row("GPTQ", 1, 1.0), row("GPTQ", 0, 1.0), row("no longer planned", 0, 1.0))
    b = file("b.json", row("RTN", None, 5.0), row("GPTQ", 1, 2.0))
    script.merge(out := tmp_path / "out.json", [a, b])
    got = json.loads(out.read_text())
    assert [(r["method"], r["seed"], r["kl"], r["run"]) for r in got["rows"]] == [
        ("RTN", None, 5.0, 1), ("GPTQ", 0, 1.0, 0), ("GPTQ", 1, 2.0, 1)]
    assert [run["command"] for run in got["runs"]] == ["a.json", "b.json"]
    left = script.tasks(asked(only=r"^2: (GPTQ|RTN) \(shared\)$", missing=out))
    assert [(plan.name, seed) for plan, seed in left] == [("GPTQ", 2)]
    with pytest.raises(SystemExit, match="different texts"):
        script.merge(out, [file("c.json", text="b")])


def test_one_row_is_measured(script, monkeypatch):
    """The whole way on two blocks of the subject, with a text of two windows and no time spent on writing code."""
    subject = lb.load()
    subject.model.model.layers = subject.model.model.layers[:1]
    monkeypatch.setattr(script.lb.evaluate, "parse_rate", lambda other: 0.25)
    plan = next(p for p in script.plans() if (p.level, p.name) == ("W4A8", "GPTQ"))
    row = script.measure(subject, lb.text.evaluation(subject.tokenizer, n=2, length=32), replace(plan, windows=2), 1, 2)
    assert set(row) | {"run"} == set(json.loads(RECORDED.read_text())["rows"][0])
    assert row["seed"] == 1 and row["calibration"] == 2 and row["parse"] == 0.25 and 4 < row["bits_per_weight"] < 4.2
    assert 0 < row["kl"] < 3 and 0 < row["top1"] < 1


def test_what_is_recorded_is_whole(script):
    table = json.loads(RECORDED.read_text())
    keys = [script.key(row) for row in table["rows"]]
    assert len(set(keys)) == len(keys)
    planned = {(p.level, p.name, p.budget): p for p in script.plans()}
    sizes = {"4": (4, 5), "3": (2.5, 3.6), "2": (2, 2.5), "below 2": (1, 2), "W4A8": (4, 4.3), "W4A4": (4, 4.3)}
    numbers = ("kl", "top1", "perplexity", "parse", "seconds", "peak_bytes")
    for row in table["rows"]:
        plan = planned[script.key(row)[:3]]
        assert (row["seed"] is None) == (not plan.then.method.streams) and 0 <= row["run"] < len(table["runs"])
        assert row["calibration"] in (None, plan.windows)
        assert all(math.isfinite(row[k]) and row[k] >= 0 for k in numbers)
        least, most = sizes[row["level"]]
        assert least < row["bits_per_weight"] < most, row
    assert {key[:3] for key in keys} == set(planned)
