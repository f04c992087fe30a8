"""The ranking explorer: seeds summed up, fronts and orders by their definitions; what is told, stored and refused."""

from __future__ import annotations

import base64
import itertools
import random
import re

import pytest

from lowbit_nb import live
from lowbit_nb.live.ranking_model import COSTS, EVERY, JUDGES, RISING, View, front, summary


def row(level: str, method: str, seed: int | None, bits: float, kl: float, budget: str = "shared", **more: float) -> dict:
    rest = {"perplexity": 10 + 5 * kl, "top1": 1 / (1 + kl), "parse": 0.25, "seconds": 3.0, "peak_bytes": 4e8}
    return {"level": level, "method": method, "budget": budget, "seed": seed, "bits_per_weight": bits, "kl": kl} | rest | more


ROWS = [row("2", "plain", None, 2.25, 3.0, seconds=0.1), row("2", "fine", 0, 2.28, 1.0),
        row("2", "fine", 1, 2.28, 1.2, seconds=9.0), row("2", "fine", 2, 2.28, 0.8, peak_bytes=9e8),
        row("2", "fine", 0, 2.28, 0.5, budget="paper"),
        row("3", "plain", None, 3.25, 0.4), row("3", "fine", 0, 3.28, 0.4), row("W4A4", "plain", None, 4.0, 0.9)]
FAMILIES = {"plain": "nearest", "fine": "learned"}


def made_up(seed: int) -> list[dict]:
    draw = random.Random(seed)
    return [row(draw.choice(("2", "3")), f"m{k}", 0, draw.choice((2.0, 2.5, 3.0)), draw.choice((0.5, 1.0, 2.0)),
                parse=draw.choice((0.0, 0.5)), seconds=draw.choice((1.0, 2.0))) for k in range(9)]


def test_seeds_are_summed_up():
    entries = summary(ROWS, FAMILIES)
    assert [(e.level, e.name, e.seeds) for e in entries] == [
        ("2", "plain", 1), ("2", "fine", 3), ("2", "fine, paper's budget", 1), ("3", "plain", 1), ("3", "fine", 1),
        ("W4A4", "plain", 1)]
    values = entries[1].values
    assert values["kl"] == pytest.approx((1.0, 0.8, 1.2)) and entries[1].family == "learned"
    assert values["seconds"] == (3.0, 3.0, 9.0) and values["memory"] == pytest.approx((0.4, 0.4, 0.9))  # the least is shown
    assert summary(ROWS)[0].family == "other"


@pytest.mark.parametrize("seed", range(12))
def test_a_front_is_what_nothing_beats(seed):
    draw = random.Random(seed)
    points = [(draw.randint(1, 5), draw.randint(1, 5)) for _ in range(9)]
    kept = [points[i] for i in front(points)]
    assert all(a[0] < b[0] and a[1] > b[1] for a, b in itertools.pairwise(kept))
    assert set(kept) == {a for a in points if not any(b != a and b[0] <= a[0] and b[1] <= a[1] for b in points)}


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(("judge", "cost"), list(itertools.product(JUDGES, COSTS)))
def test_views_by_their_definitions(seed, judge, cost):
    entries, sign = summary(made_up(seed)), -1 if judge in RISING else 1
    view = View(entries, "2", judge, cost, judge, judge in RISING)
    assert view.seen == [i for i, e in enumerate(entries) if e.level == "2"]
    at = {i: (entries[i].values[cost][0], sign * entries[i].values[judge][0]) for i in view.seen}
    unbeaten = {i for i in view.seen if not view.beaten_by(i)}
    assert set(view.front) <= unbeaten and {at[i] for i in unbeaten} == {at[i] for i in view.front}
    assert [at[i][1] for i in view.order] == sorted(of for _, of in at.values())
    assert {view.rank(i) for i in view.seen if at[i][1] == min(of for _, of in at.values())} == {1}
    assert len(View(entries).seen) == 9 and View(entries, "2", only_front=True).order == sorted(
        View(entries, "2").front, key=lambda i: entries[i].values["kl"][0])


def test_activations_and_papers_budgets_can_be_left_out():
    entries = summary(ROWS)
    assert len(View(entries, EVERY).seen) == 5 and len(View(entries, EVERY, paper=False).seen) == 4
    assert View(entries, "2", sort="name").order == [1, 2, 0] and View(entries, "W4A4").seen == [5]


def test_the_sentence_holds_the_numbers():
    alt = live.ranking_explorer(ROWS, FAMILIES, name="test model").alt
    assert "test model: 6 entries of 8 runs. All weights alone: KL, nats against bits a weight: 5 entries." in alt
    assert "plain 3.00 at 2.25; fine, paper's budget 0.500 at 2.28; plain 0.400 at 3.25." in alt
    by = live.ranking_explorer(ROWS, level="2", judge="top1", cost="seconds").alt
    assert "Level 2: top-1 agreement against seconds: 3 entries" in by and "plain 25.0 % at 0.100" in by


@pytest.mark.parametrize("given", [{}, {"level": "2"}, {"judge": "parse", "cost": "memory"},
                                   {"level": "W4A4", "judge": "perplexity"}])
def test_stored_pictures_are_small_and_told_in_words(given):
    explorer = live.ranking_explorer(ROWS, FAMILIES, **given)
    images = re.findall(r'<img alt="([^"]+)"[^>]*base64,([^"]+)"', explorer.fallback)
    assert 2 <= len(images) <= 4 and len({alt for alt, _ in images}) == len(images)
    assert all(len(base64.b64decode(code)) <= 40_000 for _, code in images)
    assert "Not beaten, from the cheapest: " in images[0][0]


@pytest.mark.parametrize(
    ("rows", "given", "message"),
    [
        ([], {}, "no rows to rank"),
        (ROWS[:1] * 2, {}, "two rows of one seed"),
        ([{k: v for k, v in ROWS[0].items() if k != "parse"}], {}, "lacks parse"),
        ([row("2", "bad", 0, 2.0, float("nan"))], {}, "bad: a value is not finite"),
        (ROWS, {"level": "5"}, "level='5' is not there; use one of all weights alone, 2"),
        (ROWS, {"judge": "taste"}, "judge='taste' is not there"),
        (ROWS, {"cost": "money"}, "cost='money' is not there"),
        ([row("2", f"m{k}", 0, 2.0, 1.0) for k in range(7)], {"families": {f"m{k}": str(k) for k in range(7)}}, "7 families"),
        (ROWS[-1:], {}, "level='all weights alone' is not there; use one of W4A4"),
    ],
)
def test_what_cannot_be_shown_is_refused(rows, given, message):
    with pytest.raises(ValueError, match=message):
        live.ranking_explorer(rows, **given)
