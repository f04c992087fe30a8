"""The composer: its rules are the package's, recipes and rows become points, what is told, stored and refused."""

from __future__ import annotations

import base64
import re
from dataclasses import asdict, replace

import pytest

import lowbit_nb as lb
from lowbit_nb import live
from lowbit_nb.live.composed import CHOICES, blocked, broken, combinations, front, key, of_key, points, with_picks

BEGUN = lb.Recipe(rounding="feedback, then progressive", objective="two teachers", scope="window")
ROWS = [
    *({"method": "GPTQ, damp 0.1", "bits": 2, "group": 64, "seed": seed, "calibration": 128, "bits_per_weight": 2.28,
       "kl": kl} for seed, kl in enumerate((0.97, 0.99, 0.98))),
    {"method": "GPTQ", "bits": 2, "group": 128, "seed": 0, "calibration": 128, "bits_per_weight": 2.14, "kl": 1.1},
    {"method": "TesseraQ, paper", "bits": 2, "group": 64, "seed": 0, "calibration": 512, "bits_per_weight": 2.28, "kl": 0.3},
    {"method": "GPTQ, W4A4", "bits": 4, "group": None, "seed": 0, "calibration": 128, "bits_per_weight": 4.06, "kl": 0.7},
    *(asdict(replace(BEGUN, seed=seed)) | {"name": BEGUN.name, "calibration": 512, "bits_per_weight": 2.29, "kl": kl}
      for seed, kl in enumerate((0.26, 0.28))),
]


def test_rules_are_the_packages_for_every_combination():
    every = combinations()
    assert len(every) == len({key(one) for one in every})
    legal = 0
    for one in every:
        recipe = with_picks(lb.Recipe(), one)
        reasons = [rule["why"] for rule in broken(one)]
        assert reasons == recipe.reasons(), one
        legal += not reasons
    assert 0 < legal < len(every) / 4


def test_an_option_is_struck_for_what_it_would_break():
    gptq = live.composer(recipe=lb.Recipe(rounding="feedback")).picked
    for kind, options in CHOICES.items():
        for option in options:
            whole = [rule["why"] for rule in broken({**gptq, kind: option})]
            assert blocked(gptq, kind, option) == whole  # beside legal choices nothing else can be wrong
    wrong = {**gptq, "grid": "signs", "transform": "smooth"}
    assert broken(wrong) and blocked(wrong, "scope", "model") == []  # what is wrong elsewhere is not its fault
    assert blocked(wrong, "transform", "smooth") and not blocked(wrong, "transform", "none")


def test_the_recipe_is_what_is_picked():
    composer = live.composer(recipe=replace(BEGUN, bits=3, group=128, seed=4, activations=8))
    assert composer.recipe == replace(BEGUN, bits=3, group=128, seed=4, activations=8)
    composer.picked = {**composer.picked, "rounding": "nearest", "activations": "none"}
    assert composer.recipe == replace(BEGUN, bits=3, group=128, seed=4, rounding="nearest")
    assert composer.recipe.reasons()  # an illegal pick can be asked too


def test_seeds_become_one_point_with_its_spread():
    made = {p["name"] + p["note"]: p for p in points(ROWS)}
    assert len(made) == 5
    gptq = made["GPTQ, damp 0.1W2, g64, 128 windows"]
    assert (gptq["kl"], gptq["low"], gptq["high"], gptq["seeds"]) == (pytest.approx(0.98), 0.97, 0.99, 3)
    assert (gptq["kind"], gptq["family"], gptq["key"], gptq["activations"]) == ("method", "GPTQ", "", "none")
    both = next(p for p in made.values() if p["kind"] == "combination")
    assert both["seeds"] == 2 and both["key"] == "none|searched|feedback, then progressive|two teachers|window|none"
    assert made["GPTQ, W4A4W4, 128 windows"]["activations"] == "4"


def test_a_recipe_that_is_a_published_method_is_no_combination():
    [point] = points([asdict(lb.Recipe(rounding="feedback")) | {"name": "x", "bits_per_weight": 2.3, "kl": 1.0}])
    assert (point["kind"], point["family"], point["key"][:8]) == ("method", "GPTQ", "none|sea")


def test_what_is_picked_is_found_among_the_points():
    composer = live.composer(ROWS, lb.Recipe(rounding="feedback"))
    assert [p["name"] for p in composer.here()] == ["GPTQ, damp 0.1"]  # of GPTQ, and at 2 bits in groups of 64
    composer.picked = of_key("none|searched|feedback, then progressive|two teachers|window|none")
    assert [p["name"] for p in composer.here()] == [BEGUN.name]
    assert composer.best("method")["kl"] == 0.3 and composer.best("combination")["kl"] == pytest.approx(0.27)
    composer.limit = 2.2
    assert composer.best("method")["bits"] == 2.14 and composer.best("combination") is None
    composer.picked, composer.limit = {**composer.picked, "activations": "4"}, 4.5
    assert composer.best("method")["name"] == "GPTQ, W4A4"


def test_a_row_that_was_run_here_joins():
    composer = live.composer(ROWS)
    assert composer.add(asdict(BEGUN) | {"name": "mine", "bits_per_weight": 2.3, "kl": 0.5}) is composer
    mine = composer.points[-1]
    assert (mine["kind"], mine["name"], mine["kl"], len(composer.points)) == ("yours", "mine", 0.5, 6)
    composer.add({"method": "my own", "bits_per_weight": 2.1, "kl": 0.9})
    assert [p["name"] for p in composer.points if p["kind"] == "yours"] == ["mine", "my own"]


def test_the_front_is_what_nothing_beats():
    assert [(p["bits"], p["kl"]) for p in front(points(ROWS)[:3])] == [(2.14, 1.1), (2.28, 0.3)]


def test_the_sentence_holds_the_numbers():
    alt = live.composer(ROWS, lb.Recipe(rounding="feedback"), name="test model").alt
    legal = sum(not broken(one) for one in combinations())
    for words in ("Composer, test model, 2 bits, groups of 64. transform none, grid searched, rounding feedback",
                  "this is GPTQ", f"{legal} of {len(combinations())} combinations are legal",
                  "TesseraQ, paper 2.28 bits, KL 0.300", "KL 0.270"):
        assert words in alt
    bare = live.composer(recipe=lb.Recipe(scope="block"))
    assert "not legal" in bare.alt and "Measured" not in bare.alt


@pytest.mark.parametrize("rows", [[], ROWS, ROWS[:3]])
def test_stored_pictures_are_small_and_told_in_words(rows):
    explorer = live.composer(rows, lb.Recipe(rounding="feedback"))
    images = re.findall(r'<img alt="([^"]+)"[^>]*base64,([^"]+)"', explorer.fallback)
    assert len(images) == 2 + bool(rows) + (rows == ROWS) and len({alt for alt, _ in images}) == len(images)
    assert all(len(base64.b64decode(code)) <= 40_000 for _, code in images)
    assert "Impossible beside the other choices: " in images[0][0] and "rounding low rank" in images[0][0]
    assert any("not legal" in alt for alt, _ in images)
    assert not rows or "no other setting is better at no more bits: GPTQ" in images[-1][0]


@pytest.mark.parametrize(
    ("rows", "recipe", "message"),
    [
        ([{"method": "x", "bits_per_weight": 2.0}], lb.Recipe(), "needs kl"),
        ([{"method": "x", "bits_per_weight": float("nan"), "kl": 1.0}], lb.Recipe(), "needs bits_per_weight"),
        ([{"method": "x", "bits_per_weight": 2.0, "kl": -1.0}], lb.Recipe(), "finite and above 0"),
        ([{"grid": "signs", "bits_per_weight": 2.0, "kl": 1.0}], lb.Recipe(), "it lacks transform"),
        ([], lb.Recipe(grid="octal"), "grid='octal' is not in the menu"),
        ([], lb.Recipe(activations=5), "activations='5' is not in the menu"),
    ],
)
def test_what_cannot_be_shown_is_refused(rows, recipe, message):
    with pytest.raises(ValueError, match=message):
        live.composer(rows, recipe)
