"""The composer: rules both ways, what every legal pick becomes, what is known, and a covering selection that runs."""

from __future__ import annotations

import itertools
import json
import re
from functools import lru_cache
from pathlib import Path

import pytest
import torch

import lowbit_nb as lb
from lowbit_nb import grid as grids
from lowbit_nb.blocks import catch
from lowbit_nb.compose import CHOICES, KNOWN, LEARNED, RULES, Recipe, known
from lowbit_nb.methods import AWQ, CBQ, GPTQ, OAC, PTQ161, RTN, VPTQ, BiLLM, LRQuant, OmniQuant, SmoothQuant, TesseraQ
from lowbit_nb.quantize import describe, quantize
from lowbit_nb.reconstruct import Budget
from lowbit_nb.record import Phases
from tests import tiny, walks

ROOT = Path(__file__).resolve().parent.parent
SHORT = Budget(1, 1, 2)
Picks = tuple[str, ...]


def recipe(picks: Picks, **more: object) -> Recipe:
    return Recipe(*picks, **{"group": 16, "budget": SHORT} | more)


@lru_cache
def reasons() -> dict[Picks, list[str]]:
    return {picks: recipe(picks).reasons() for picks in itertools.product(*CHOICES.values())}


@lru_cache
def legal() -> tuple[Picks, ...]:
    return tuple(picks for picks, why in reasons().items() if not why)


def pairs(picks: Picks) -> set[tuple]:
    """Every two choices that meet in a recipe, and every one of them alone with activations in view."""
    return set(itertools.combinations(zip(CHOICES, picks, strict=True), 2))


@lru_cache
def covering() -> tuple[Picks, ...]:
    """Recipes in which every pair of choices that is legal anywhere occurs, greedily few."""
    left, chosen = set().union(*map(pairs, legal())), []
    while left:
        chosen.append(max(legal(), key=lambda picks: len(pairs(picks) & left)))
        left -= pairs(chosen[-1])
    return tuple(chosen)


# --- rules ----------------------------------------------------------------------------------------------------------


def test_rules_are_plain_data_about_the_menus() -> None:
    for rule in RULES:
        for name, values in (*rule.when.items(), *rule.allow.items()):
            assert set(values) <= set(CHOICES[name]), rule
        assert rule.why.endswith(".") and rule.when and rule.allow
    assert json.loads(json.dumps([[r.when, r.allow, r.why] for r in RULES]))


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.why[:40])
def test_every_rule_is_needed(rule) -> None:
    """Without it a combination would be legal that is not; two rules about the loss only say it in plainer words."""
    broken = [picks for picks, why in reasons().items() if rule.why in why]
    alone = [picks for picks in broken if reasons()[picks] == [rule.why]]
    assert alone or (broken and set(rule.when) == {"objective"} and rule.allow["rounding"])


def test_every_choice_can_be_made() -> None:
    for place, (name, values) in enumerate(CHOICES.items()):
        assert {picks[place] for picks in legal()} == set(values), name


def test_what_is_not_legal_raises_with_all_its_reasons_and_the_rest_is_a_method() -> None:
    for picks, why in reasons().items():
        if why:
            with pytest.raises(ValueError) as error:
                recipe(picks).method()
            assert all(said in str(error.value) for said in why)
        else:
            method = recipe(picks).method()
            assert hasattr(method, "quantize_block") or hasattr(method, "quantize_window")


@pytest.mark.parametrize("change, said", [
    ({"grid": "round"}, "grid='round' is unknown; use one of 'affine'"), ({"bits": 9}, "bits=9 is not a whole number"),
    ({"activations": 1}, "bits=1 of activations"), ({"budget": "endless"}, "budget='endless' is unknown"),
    ({"grid": "codebook", "rounding": "feedback", "bits": 5}, "codebooks take 1, 2, 3, 4")])
def test_what_no_menu_offers_is_a_reason_too(change: dict, said: str) -> None:
    found = Recipe(**change)
    assert any(said in why for why in found.reasons())
    with pytest.raises(ValueError, match=re.escape(said)):
        found.method()


def test_titles_are_short_and_tell_legal_recipes_apart() -> None:
    titles = [recipe(picks).name for picks in legal()]
    assert len(set(titles)) == len(titles) and max(map(len, titles)) < 110
    assert Recipe(activations=4).name.endswith(" · A4")


# --- what picks become ------------------------------------------------------------------------------------------------


def test_the_published_methods_come_back_as_they_are() -> None:
    grid = lb.Grid(2, group=64)

    def of(*picks: str) -> object:
        return Recipe(*picks).method()

    assert of("none", "affine", "nearest", "weight", "layer") == RTN(grid)
    assert of("none", "searched", "nearest", "weight", "layer") == RTN(grid, "mse")
    assert of("none", "searched", "feedback", "layer", "layer") == GPTQ(grid)
    assert of("none", "affine", "feedback", "loss", "layer") == OAC(GPTQ(grid, clip="minmax"))
    assert of("smooth", "affine", "nearest", "weight", "layer") == SmoothQuant(grid)
    assert of("searched", "searched", "nearest", "layer", "layer") == AWQ(grid)
    assert of("learned", "learned clip", "nearest", "block", "block") == OmniQuant(grid, "demo", scaling=True)
    assert of("searched", "searched", "progressive", "block", "block") == TesseraQ(AWQ(grid), "demo")
    assert of("none", "codebook", "feedback", "layer", "layer") == VPTQ()
    assert of("none", "signs", "feedback", "layer", "layer") == BiLLM()
    assert of("none", "signs", "nearest", "two teachers", "block") == PTQ161(budget="demo")
    assert of("logarithm", "learned clip", "nearest", "block and angle", "block") == LRQuant(grid, budget="demo")
    assert of("none", "searched", "low rank", "two teachers", "window") == CBQ(grid, budget="demo")


def test_parts_go_where_they_belong() -> None:
    made = Recipe("smooth", "learned clip", "feedback, then progressive", "two teachers", "block", 3, 32, 8, "fast", 5).method()
    assert isinstance(made, TesseraQ) and (made.objective, made.teachers, made.seed) == ("mse+nlc", 2, 5)
    feedback = made.start
    assert isinstance(feedback, GPTQ) and feedback.groups == "static" and feedback.grid == lb.Grid(3, group=32)
    assert isinstance(feedback.start, OmniQuant) and isinstance(feedback.start.start, SmoothQuant)
    assert made.activations == feedback.start.activations == lb.Activations(8)
    window = Recipe("none", "searched", "feedback, then progressive", "loss, then two teachers", "window").method()
    assert (window.rank, window.loss, window.teachers, window.window) == (None, "mse+kl", 2, 2)
    assert isinstance(window.start, OAC) and "loss" in window.streams and window.start.grid == window.grid


def test_known_names_are_rows_of_the_table_and_say_what_the_table_says() -> None:
    """Words of the menus against the cells of ARCHITECTURE.md."""
    text = (ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8")
    rows = {cells[0].strip(): cells[1:] for line in text.splitlines() if line.startswith("| ") and line.count("|") == 7
            for cells in [line.strip("|").split("|")]}
    scale = ("–", "on request", "from its start", "one scale", "before")
    cells = {
        "transform": {"none": scale, "smooth": ("fixed exponent",), "searched": ("searched", "AWQ"),
                      "learned": ("learned scaling", "OmniQuant"), "logarithm": ("logarithmic",)},
        "grid": {"affine": ("affine", "backend"), "searched": ("range searched", "its start", "learned steps", "backend"),
                 "learned clip": ("learned clip", "its start"), "codebook": ("codebook", "backend"),
                 "signs": ("signs", "backend")},
        "rounding": {"nearest": ("nearest", "sign"), "feedback": ("feedback", "backend"), "progressive": ("progressive",),
                     "low rank": ("low-rank",)},
        "objective": {"weight": ("–",), "layer": ("layer output",), "loss": ("end loss",), "block": ("block output",),
                      "block and angle": ("angle",), "two teachers": ("teachers",)},
        "scope": {"layer": ("layer", "weight"), "block": ("block",), "window": ("window",), "model": ("end loss on request",)}}
    for name, said in KNOWN:
        row = dict(zip(CHOICES, rows[name], strict=True))
        row["scope"] += row["objective"]
        for choice, values in said.items():
            for value in values:
                assert any(word in row[choice] for word in cells[choice][value]), (name, choice, value, row[choice])
        for picks in itertools.product(*said.values()):
            assert known(Recipe(*picks)) == name and not Recipe(*picks).reasons()
    assert {name for name, _ in KNOWN} | {"SpQR", "PB-LLM, ARB-LLM"} == {name for name in rows if name in METHOD_ROWS}
    strangers = [picks for picks in legal() if known(recipe(picks)) is None]
    assert 0 < len(legal()) - len(strangers) < 40 < len(strangers)


METHOD_ROWS = {"RTN", "GPTQ", "SmoothQuant", "AWQ", "OmniQuant", "TesseraQ", "SpQR", "VPTQ", "BiLLM", "PB-LLM, ARB-LLM",
               "PTQ1.61", "LRQuant", "CBQ", "OAC"}


# --- running ----------------------------------------------------------------------------------------------------------


@lru_cache
def small() -> tuple[lb.Subject, lb.text.Windows]:
    return tiny.subject(num_hidden_layers=2), tiny.windows(4, 16)


@pytest.mark.parametrize("picks", covering(), ids=" · ".join)
def test_it_runs(picks: Picks) -> None:
    """Every pair of choices that is legal somewhere occurs here; half of the recipes round activations too."""
    subject, windows = small()
    one = recipe(picks, activations=8 if covering().index(picks) % 2 else None)
    made = one.run(subject, windows, progress=False)
    inside = catch(subject.model, windows.ids)[0][0].linears
    assert made.weights.keys() == {f"model.layers.{i}.{name}" for i in range(2) for name in inside}
    assert (made.activations == lb.Activations(8)) if one.activations else made.activations is None
    assert ("end_to_end" in made.settings) == ("end_to_end" in made.trace[-1])
    assert ("end_to_end" in made.settings) == (one.scope == "model") or one.scope == "block, then model"
    assert made.settings["recipe"]["objective"] == one.objective and json.dumps(describe(subject, one.method(), windows))
    assert torch.isfinite(made.apply(subject).model(windows.ids).logits).all()


def test_a_run_is_the_method_and_nothing_else() -> None:
    subject, windows = small()
    one = recipe(("none", "searched", "feedback", "layer", "layer"))
    assert walks.equal(one.run(subject, windows, progress=False), quantize(subject, one.method(), windows, progress=False))


# --- where progressive rounding begins behind feedback -----------------------------------------------------------------

GRID = lb.Grid(2, 16)
STILL = Budget(1, 0, 2)  # no steps: the start, made hard


STARTS = {"dynamic": GPTQ(GRID), "static": GPTQ(GRID, groups="static", order="act"), "loss": OAC(GPTQ(GRID)),
          "scaled": GPTQ(GRID, start=AWQ(GRID)), "rulers of AWQ": GPTQ(GRID, groups="static", start=AWQ(GRID)),
          "sequential": GPTQ(GRID, sequential=True)}


@pytest.mark.parametrize("start", STARTS.values(), ids=STARTS)
def test_made_hard_at_once_it_is_feedback(start) -> None:
    """The values begin between the marks beside T, and the nearest of them is what feedback chose."""
    subject, windows = small()
    expected = quantize(subject, start, windows, progress=False)
    for method in (TesseraQ(start, STILL), CBQ(GRID, None, STILL, window=1, overlap=0, rank=None, start=start)):
        found = quantize(subject, method, windows, progress=False)
        assert walks.equal(found, expected), method
        assert all(torch.equal(t, expected.params[n]) for n, t in found.params.items())


def test_what_feedback_hands_over_is_what_each_column_was_when_it_was_rounded() -> None:
    """T = W + what the errors of earlier columns ask for, so (T - W_hat)**2 D sums to the loss."""
    subject, windows = small()
    blocks, X = catch(subject.model, windows.ids)
    params, rulers = GPTQ(GRID).begin(blocks[0], X, None, Phases())
    name = "mlp.up_proj"
    stored = GPTQ(GRID).quantize_block(blocks[0], lb.streams.Streams(None, X)).weights[name]
    assert torch.equal(grids.quantize(params[name], *rulers[name], GRID), stored.q)
    assert params.keys() == rulers.keys() == blocks[0].linears.keys()
    gap = (params[name] - blocks[0].weight(name)).abs().mean()
    assert 0 < gap < blocks[0].weight(name).abs().mean()


@pytest.mark.parametrize("start, said", [
    (GPTQ(GRID, order="act"), "takes groups apart"), (GPTQ(GRID, shift=True), "cannot shift"),
    (OAC(BiLLM()), "BiLLM has no rulers")])
def test_starts_that_cannot_be(start, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        quantize(*small()[:1], TesseraQ(start, STILL) if isinstance(start, GPTQ) else CBQ(GRID, None, STILL, start=start),
                 small()[1], progress=False)


def test_feedback_after_a_scaling_sees_the_scaled_inputs() -> None:
    """By hand: the scaled weight under H / (s s.T); and the norms that were divided are in the record."""
    subject, windows = small()
    blocks, X = catch(subject.model, windows.ids)
    method = GPTQ(GRID, start=SmoothQuant(GRID))
    result = method.quantize_block(blocks[0], lb.streams.Streams(None, X))
    H = blocks[0].hessians(X, [["self_attn.q_proj"]])[0].H
    params, _ = SmoothQuant(GRID).begin(blocks[0], X, None, Phases())
    W = params["self_attn.q_proj"]
    s = (W / blocks[0].weight("self_attn.q_proj")).median(0).values
    by_hand, _ = GPTQ(GRID).quantize_layer(W, H / s.outer(s))
    assert (by_hand.q == result.weights["self_attn.q_proj"].q).float().mean() > 0.97
    plain = GPTQ(GRID).quantize_block(blocks[0], lb.streams.Streams(None, X))
    assert (plain.weights["self_attn.q_proj"].q == by_hand.q).float().mean() < 0.97
    assert set(result.params) == {"input_layernorm.weight", "post_attention_layernorm.weight"}


@pytest.mark.parametrize("start", [None, AWQ(GRID)], ids=["plain", "scaled"])
def test_steps_are_learned_after_feedback_and_codes_stay(start) -> None:
    subject, windows = small()
    plain, tuned = (quantize(subject, GPTQ(GRID, start=start, tune=tune), windows, progress=False)
                    for tune in (None, Budget(3, 8, 4)))
    first = [name for name in plain.weights if name.startswith("model.layers.0.")]
    assert all(torch.equal(plain.weights[n].q, tuned.weights[n].q) for n in first)
    assert any(not torch.equal(plain.weights[n].s, tuned.weights[n].s) for n in first)
    assert tuned.trace[0]["end"] < tuned.trace[0]["start"] and len(tuned.params) == 2 * 2


def test_a_start_s_rounded_activations_are_not_lost() -> None:
    made = quantize(small()[0], GPTQ(GRID, start=SmoothQuant(GRID, activations=lb.Activations(8))), small()[1], progress=False)
    assert made.activations == lb.Activations(8)


def test_one_bit_with_learned_ends_runs() -> None:
    picked = Recipe("none", "learned clip", "progressive", "block", "block", 1, 16, budget=SHORT)
    assert picked.reasons() == [] and picked.run(*small(), progress=False).bits().per_weight > 1


def test_windows_that_begin_at_feedback_are_kept_in_a_work_folder(tmp_path) -> None:
    """What a window carries on comes from feedback's transposed walk."""
    method = CBQ(GRID, None, SHORT, start=GPTQ(GRID))
    subject, windows = tiny.subject(num_hidden_layers=3), tiny.windows(4, 16)
    plain = quantize(subject, method, windows, progress=False)
    kept = quantize(subject, method, windows, tmp_path / "work", progress=False)
    assert all(torch.equal(plain.weights[n].q, kept.weights[n].q) for n in plain.weights)


def test_settings_that_contradict_each_other_are_refused() -> None:
    for made, said in ((lambda: GPTQ(GRID, shift=True, start=AWQ(GRID)), "use one of them"),
                       (lambda: GPTQ(GRID, start=AWQ(lb.Grid(3, 16))), "give both the same grid"),
                       (lambda: GPTQ(GRID, start=GPTQ(GRID)), "GPTQ hands out what it would round to, and GPTQ begins"),
                       (lambda: OmniQuant(GRID, start=OAC(GPTQ(GRID))), "OAC hands out what it would round to"),
                       (lambda: OAC(GPTQ(GRID, start=AWQ(GRID))), "a backend under OAC has no start"),
                       (lambda: OAC(GPTQ(GRID, tune=SHORT)), "OAC does not tune"),
                       (lambda: TesseraQ(GPTQ(GRID, tune=SHORT)), "GPTQ tunes what it has stored, and TesseraQ begins before"),
                       (lambda: TesseraQ(VPTQ()), "VPTQ has no rulers that TesseraQ could begin with"),
                       (lambda: GPTQ(GRID, start=LRQuant(GRID)), "LRQuant has no rulers that GPTQ could begin with"),
                       (lambda: CBQ(GRID, start=LRQuant(GRID)), "LRQuant has no rulers that CBQ could begin with"),
                       (lambda: TesseraQ(GPTQ(GRID, start=SmoothQuant(GRID, activations=lb.Activations(8)))),
                        "give both the same"),
                       (lambda: TesseraQ(AWQ(GRID), objective="l1"), "objective='l1' is unknown"),
                       (lambda: OmniQuant(GRID, teachers=3), "teachers=3 must be 1"),
                       (lambda: OmniQuant(GRID, scaling=True, base=1.0), "base=1.0 of the logarithm")):
        with pytest.raises(ValueError, match=re.escape(said)):
            made()
    assert set(LEARNED) < set(CHOICES["objective"])
